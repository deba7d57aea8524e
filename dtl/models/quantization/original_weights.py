"""The weights of a base before quantization, read from its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OriginalWeights(Mapping[str, "Tensor"]):
    """Weights by their names in the model, each read when it is accessed. `locations`: the file of
    each weight and its name in the file."""

    locations: dict[str, tuple[str, str]]

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        file, key = self.locations[name]
        with safe_open(file, framework="pt") as opened:
            weight: Tensor = opened.get_tensor(key)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


def find_original_weights(network: Any, where: str, revision: str | None) -> OriginalWeights:
    """Return the weights of a model's files that become one parameter each, unchanged.

    `network`: the unquantized model, possibly on the meta device.
    """
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(network)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    parameters = dict(network.named_parameters())
    locations = {}
    for file in _list_weight_files(where, revision):
        with safe_open(file, framework="pt") as opened:
            for key in sorted(opened.keys()):
                name, converted = rename_source_key(
                    key, renamings, converters, network.base_model_prefix, parameters
                )
                if name in parameters and converted is None:
                    locations[name] = file, key
    return OriginalWeights(locations)


def _list_weight_files(where: str, revision: str | None) -> list[str]:
    """Return the weight files of a folder, or of a hub id in the cache."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    single_file, index = (
        cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if single_file is not None or index is None:
        return [single_file] if single_file is not None else []
    files: list[str] = get_checkpoint_shard_files(where, index, revision=revision)[0]
    return files
