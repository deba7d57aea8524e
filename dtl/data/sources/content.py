"""Opens the content behind a data source: files, folders, built-in data or a hub dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dtl import mini
from dtl.config.schema import Source
from dtl.core.errors import DtlError, near
from dtl.core.paths import find_obstacle
from dtl.data.sources.data_file import DataFile, data_suffix, open_data_files
from dtl.data.sources.digests import digest_files
from dtl.data.sources.file_reader import FileReader, check_options
from dtl.data.sources.formats import FORMAT_OF_SUFFIX, SUFFIXES, format_name, open_reader
from dtl.data.sources.hub import class_name_mapper, load_hub_dataset
from dtl.data.sources.media_folders import detect_media_folder
from dtl.data.sources.naming import format_names, list_names
from dtl.data.sources.results import FormatDescription, ReadResult

METADATA_FILES = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
DOCUMENT_NAMES = frozenset({"readme", "license", "licence", "copying", "requirements"})


@dataclass(frozen=True)
class SourceContent:
    """The content of a source: how to read its rows, and a digest of its bytes.

    `files`: display names, with which the locations of rows begin. `description`: the format, and
    what was detected. `readers`: of the files that hold the rows in order; empty if the rows are
    made from a folder's files or come from the hub.
    """

    display_name: str
    files: tuple[str, ...]
    read_rows: Callable[[], Iterator[ReadResult]]
    compute_digest: Callable[[], str]
    description: FormatDescription
    folder: Path = Path()
    readers: tuple[FileReader, ...] = ()


def open_source(source: Source, location: str, media: str | None) -> SourceContent:
    """Return the content of a source. `location`: the config key that names it; `media`: the column
    (audio or image) that may name a file. Raises DtlError if there is nothing to read."""
    if source.path.startswith(mini.PREFIX):
        return _open_builtin(source, location)
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _open_folder(path, source, location, media)
    if path.is_symlink() or path.exists() or _is_local_path(path, source.path):
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
        data_suffix(path) in SUFFIXES
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
    file = DataFile(path, f"{mini.PREFIX}{name}/{split}")
    return _open_files([file], source, location)


def _open_file(path: Path, source: Source, location: str) -> SourceContent:
    if not path.exists():
        raise _missing_file_error(path, source.path, location)
    if source.split is not None:
        raise DtlError.of(
            f"{location}.split", f"{source.path} is a single file without splits", "remove the key"
        )
    _check_no_config_name(source, location)
    return _open_files(open_data_files(path, source.path, suffixes=SUFFIXES), source, location)


def _open_folder(folder: Path, source: Source, location: str, media: str | None) -> SourceContent:
    """Open a media folder, or else all data files of the folder or split, sorted by name."""
    _check_no_config_name(source, location)
    corpus = detect_media_folder(folder, source.split, media) if media is not None else None
    if corpus is not None:
        _check_no_file_options(source, location)
        return SourceContent(
            source.path,
            (source.path,),
            corpus.read_rows,
            lambda: digest_files(corpus.files),
            FormatDescription(f"{media} folder"),
            corpus.folder,
        )
    return _open_files(_find_data_files(folder, source, location), source, location)


def _find_data_files(folder: Path, source: Source, location: str) -> list[DataFile]:
    split_folder = folder / source.split if source.split else folder
    paths = (
        _list_data_files(split_folder, source)
        if split_folder.is_dir()
        else _list_split_files(folder, source)
    )
    if not paths:
        raise _no_files_error(folder, source, location)
    files = [
        file
        for path in paths
        for file in open_data_files(
            path, str(Path(source.path) / path.relative_to(folder)), suffixes=SUFFIXES
        )
    ]
    formats = sorted({str(format_name(file, source)) for file in files})
    if len(formats) > 1:
        raise DtlError.of(
            f"{location}.path",
            f"{source.path} has files of several formats ({', '.join(formats)})",
            "use one file, or keep files of one format in the folder",
        )
    return files


def _no_files_error(folder: Path, source: Source, location: str) -> DtlError:
    splits = [entry.name for entry in sorted(folder.iterdir()) if _list_data_files(entry, source)]
    if source.split is None and splits:
        return DtlError.of(
            f"{location}.split",
            f"{source.path} has several splits or folders ({', '.join(splits)})",
            f"set it to {' or '.join(splits)}",
        )
    of_split = f" of the split '{source.split}'" if source.split else ""
    return DtlError.of(
        f"{location}.path",
        f"{source.path} has no data files{of_split}",
        f"use a folder with {', '.join(FORMAT_OF_SUFFIX)} files "
        f"(this one has {format_names(list_names(folder))})",
    )


def _list_data_files(folder: Path, source: Source) -> list[Path]:
    """Return the data files of a folder, without the metadata that `datasets` saves with them.

    Plain text files count only if there are no others, because a README is one as well.
    """
    if not folder.is_dir():
        return []
    visible = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    files = [path for path in visible if path.is_file() and path.name not in METADATA_FILES]
    known = [path for path in files if data_suffix(path) in SUFFIXES or path.suffix == ".zip"]
    if source.file_format is not None:
        own = [path for path in known if _has_format(path, source.file_format)]
        return own or [path for path in files if path not in known]
    documents = [path for path in known if _has_format(path, "text")]
    return [path for path in known if path not in documents] or [
        path for path in documents if path.stem.lower() not in DOCUMENT_NAMES
    ]


def _has_format(path: Path, name: str) -> bool:
    return FORMAT_OF_SUFFIX.get(data_suffix(path)) == name


def _list_split_files(folder: Path, source: Source) -> list[Path]:
    """Return files named as train.jsonl or train-00000-of-00002.parquet."""
    return [
        path
        for path in _list_data_files(folder, source)
        if path.name.partition(".")[0].partition("-")[0] == source.split
    ]


def _open_files(files: Sequence[DataFile], source: Source, location: str) -> SourceContent:
    readers = tuple(open_reader(file, source) for file in files)
    check_options(readers[0], location)

    def read_rows() -> Iterator[ReadResult]:
        return chain.from_iterable(reader.iter_rows() for reader in readers)

    paths = list(dict.fromkeys(file.path for file in files))
    return SourceContent(
        source.path,
        tuple(file.display_name for file in files),
        read_rows,
        lambda: digest_files(paths, use_cache=source.streaming),
        _describe(readers),
        paths[0].parent,
        readers,
    )


def _describe(readers: Sequence[FileReader]) -> FormatDescription:
    """Return the format of the first file, with what was detected in it."""
    first, more = readers[0], len(readers) - 1
    files = (f"{len(readers)} files",) if more else ()
    return FormatDescription(first.label, (*files, *first.describe()))


def _open_hub_dataset(source: Source, location: str) -> SourceContent:
    _check_no_file_options(source, location)
    dataset = load_hub_dataset(source, location)
    map_class_names = class_name_mapper(dataset)

    def read_rows() -> Iterator[ReadResult]:
        for number, fields in enumerate(dataset, start=1):
            yield f"{source.path} ({dataset.split}): row {number}", map_class_names(fields)

    files = [Path(file["filename"]) for file in dataset.cache_files]

    def compute_digest() -> str:
        return digest_files(files) if files else str(dataset._fingerprint)

    description = FormatDescription("hub dataset")
    return SourceContent(source.path, (source.path,), read_rows, compute_digest, description)


def _check_no_config_name(source: Source, location: str) -> None:
    if source.name is not None:
        raise DtlError.of(
            f"{location}.name",
            f"only a hub dataset has a config name (got the local path {source.path})",
            "remove the key",
        )


def _check_no_file_options(source: Source, location: str) -> None:
    """Raise DtlError for options of files where the rows are in no files that dtl parses."""
    names = [name for name in source.file_options if name != "format" or source.file_format]
    if names:
        raise DtlError.of(
            f"{location}.{names[0]}",
            f"{source.path} is no file with lines, and has no such option",
            "remove the key, or set it at the source that needs it",
        )


def _missing_file_error(path: Path, configured: str, location: str) -> DtlError:
    obstacle = find_obstacle(path)
    if obstacle is not None:
        return DtlError.of(f"{location}.path", obstacle, "correct the path")
    hint = near(path.name, list_names(path.parent))
    return DtlError.of(
        f"{location}.path", f"file not found: {configured}", hint or _describe_folder(path.parent)
    )


def _describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"correct the path: the folder {folder} does not exist either"
    return f"correct the path: the folder {folder} has {format_names(list_names(folder))}"
