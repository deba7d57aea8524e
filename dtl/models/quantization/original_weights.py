"""The weights of a base as its files have them, where a model holds them in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OriginalWeights(Mapping[str, "Tensor"]):
    """Weights by their names in the model, each read when it is asked for. `places`: the file that
    holds each, and its name there."""

    locations: dict[str, tuple[str, str]]

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        file, key = self.locations[name]
        with safe_open(file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


def find_original_weights(network: Any, where: str, revision: str | None) -> OriginalWeights:
    """Those of a model's files that become one weight each as they are. `network`: the plain
    model, perhaps without weights."""
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    how = get_model_conversion_mapping(network)
    renamings = [each for each in how if isinstance(each, WeightRenaming)]
    converters = [each for each in how if isinstance(each, WeightConverter)]
    named = dict(network.named_parameters())
    places = {}
    for file in _list_weight_files(where, revision):
        with safe_open(file, framework="pt") as opened:
            for key in sorted(opened.keys()):
                name, converted = rename_source_key(
                    key, renamings, converters, network.base_model_prefix, named
                )
                if name in named and converted is None:
                    places[name] = file, key
    return OriginalWeights(places)


def _list_weight_files(where: str, revision: str | None) -> list[str]:
    """The weight files of a folder, or of a hub id that has been fetched."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    alone, index = (
        cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if alone is not None or index is None:
        return [alone] if alone is not None else []
    files: list[str] = get_checkpoint_shard_files(where, index, revision=revision)[0]
    return files
