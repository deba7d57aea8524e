"""Opens the content behind a data source: files, folders, built-in data or a hub dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dtl import mini
from dtl.config.schema import Source
from dtl.core.errors import DtlError, near
from dtl.data.sources.digests import digest_files
from dtl.data.sources.formats import READERS, find_reader
from dtl.data.sources.hub import class_name_mapper, load_hub_dataset
from dtl.data.sources.media_folders import detect_media_folder
from dtl.data.sources.naming import format_names, list_names
from dtl.data.sources.results import ReadResult, os_error_fault


@dataclass(frozen=True)
class SourceContent:
    """The content of a source: how to read its rows, and a digest of its bytes.

    `files`: display names, with which the locations of rows begin. `paths`: the files that hold the
    rows in order; empty if the rows are made from a folder's files or come from the hub.
    """

    display_name: str
    files: tuple[str, ...]
    read_rows: Callable[[], Iterator[ReadResult]]
    compute_digest: Callable[[], str]
    folder: Path = Path()
    paths: tuple[Path, ...] = ()


def open_source(source: Source, location: str, media: str | None) -> SourceContent:
    """Return the content of a source. `location`: the config key that names it; `media`: the column
    (audio or image) that may name a file. Raises DtlError if there is nothing to read."""
    if source.path.startswith(mini.PREFIX):
        return _open_builtin(source, location)
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _open_folder(path, source, location, media)
    if path.exists() or _is_local_path(path, source.path):
        return _open_file(path, source, location)
    if source.streaming:
        raise DtlError.of(
            f"{location}.streaming",
            f"{source.path} is not a local file or folder, and hub datasets cannot be streamed",
            "download it as Parquet files (hf download --repo-type dataset) and name their folder",
        )
    return _open_hub_dataset(source, location)


def _is_local_path(path: Path, configured: str) -> bool:
    """Return whether a missing path was meant as a file rather than as `owner/name`."""
    return (
        path.suffix.lower() in READERS
        or configured.startswith((".", "/", "~"))
        or configured.count("/") > 1
        or (len(path.parts) > 1 and path.parent.is_dir())
    )


def _open_builtin(source: Source, location: str) -> SourceContent:
    name, _, split = source.path.removeprefix(mini.PREFIX).partition("/")
    split = split or source.split or ""
    if name in mini.SPLITS and not split:
        splits = " or ".join(f"{mini.PREFIX}{name}/{one}" for one in mini.SPLITS[name])
        raise DtlError.of(f"{location}.path", f"{source.path} has no split", f"write {splits}")
    _check_no_config_name(source, location)
    path = mini.data_file(name, split)
    return _open_files(
        [path],
        display_names=[f"{mini.PREFIX}{name}/{split}"],
        display_name=source.path,
        cache_digest=source.streaming,
    )


def _open_file(path: Path, source: Source, location: str) -> SourceContent:
    if not path.exists():
        raise _missing_file_error(path, source.path, location)
    if source.split is not None:
        raise DtlError.of(
            f"{location}.split", f"{source.path} is a single file without splits", "remove the key"
        )
    _check_no_config_name(source, location)
    return _open_files(
        [path], display_names=[source.path], display_name=source.path, cache_digest=source.streaming
    )


def _open_folder(folder: Path, source: Source, location: str, media: str | None) -> SourceContent:
    """Open a media folder, or else all data files of the folder or split, sorted by name."""
    _check_no_config_name(source, location)
    corpus = detect_media_folder(folder, source.split, media) if media is not None else None
    if corpus is not None:
        return SourceContent(
            source.path,
            (source.path,),
            corpus.read_rows,
            lambda: digest_files(corpus.files),
            corpus.folder,
        )
    files = _find_data_files(folder, source, location)
    display_names = [str(Path(source.path) / path.relative_to(folder)) for path in files]
    return _open_files(
        files, display_names=display_names, display_name=source.path, cache_digest=source.streaming
    )


def _find_data_files(folder: Path, source: Source, location: str) -> list[Path]:
    split_folder = folder / source.split if source.split else folder
    files = (
        _list_data_files(split_folder)
        if split_folder.is_dir()
        else _list_split_files(folder, str(source.split))
    )
    if not files:
        of_split = f" of the split '{source.split}'" if source.split else ""
        raise DtlError.of(
            f"{location}.path",
            f"{source.path} has no data files{of_split}",
            f"use a folder with {', '.join(READERS)} files "
            f"(this one has {format_names(list_names(folder))})",
        )
    suffixes = sorted({path.suffix.lower() for path in files})
    if len(suffixes) > 1:
        raise DtlError.of(
            f"{location}.path",
            f"{source.path} has files of several formats ({', '.join(suffixes)})",
            "use one file, or keep files of one format in the folder",
        )
    return files


def _list_data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder, without the metadata that `datasets` saves with them."""
    metadata = {"dataset_info.json", "state.json", "dataset_dict.json"}
    files = (path for path in folder.iterdir() if path.suffix.lower() in READERS)
    return sorted(path for path in files if path.is_file() and path.name not in metadata)


def _list_split_files(folder: Path, split: str) -> list[Path]:
    """Return files named as train.jsonl or train-00000-of-00002.parquet."""
    return [path for path in _list_data_files(folder) if path.stem.partition("-")[0] == split]


def _open_files(
    paths: list[Path], *, display_names: list[str], display_name: str, cache_digest: bool
) -> SourceContent:
    readers = [find_reader(path, name) for path, name in zip(paths, display_names, strict=True)]

    def read_rows() -> Iterator[ReadResult]:
        files = zip(readers, paths, display_names, strict=True)
        return chain.from_iterable(_read_file(reader, path, name) for reader, path, name in files)

    return SourceContent(
        display_name,
        tuple(display_names),
        read_rows,
        lambda: digest_files(paths, use_cache=cache_digest),
        paths[0].parent,
        tuple(paths),
    )


def _read_file(
    reader: Callable[[Path, str], Iterator[ReadResult]], path: Path, display_name: str
) -> Iterator[ReadResult]:
    try:
        yield from reader(path, display_name)
    except OSError as error:
        yield os_error_fault(display_name, error)


def _open_hub_dataset(source: Source, location: str) -> SourceContent:
    dataset = load_hub_dataset(source, location)
    map_class_names = class_name_mapper(dataset)

    def read_rows() -> Iterator[ReadResult]:
        for number, fields in enumerate(dataset, start=1):
            yield f"{source.path} ({dataset.split}): row {number}", map_class_names(fields)

    files = [Path(file["filename"]) for file in dataset.cache_files]

    def compute_digest() -> str:
        return digest_files(files) if files else str(dataset._fingerprint)

    return SourceContent(source.path, (source.path,), read_rows, compute_digest)


def _check_no_config_name(source: Source, location: str) -> None:
    if source.name is not None:
        raise DtlError.of(
            f"{location}.name",
            f"only a hub dataset has a config name (got the local path {source.path})",
            "remove the key",
        )


def _missing_file_error(path: Path, configured: str, location: str) -> DtlError:
    hint = near(path.name, list_names(path.parent))
    return DtlError.of(
        f"{location}.path", f"file not found: {configured}", hint or _describe_folder(path.parent)
    )


def _describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"correct the path: the folder {folder} does not exist either"
    return f"correct the path: the folder {folder} has {format_names(list_names(folder))}"
