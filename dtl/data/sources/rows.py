"""The rows that a config's data source holds, one after the other, each with its place."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

from dtl.config.schema import Source
from dtl.core.cache_folder import folder as cache_folder
from dtl.core.cache_folder import write_note
from dtl.core.errors import DtlError, Fault, near
from dtl.data.modalities.media_files import digest_of_files, file_of, renamed
from dtl.data.sources.formats import READERS, Fields, FileFault, Item, Spot, reader_of, unopened
from dtl.data.sources.hub import load_from_hub, names_for_numbers
from dtl.data.sources.media_folders import media_folder
from dtl.data.sources.naming import listed, names_in
from dtl.data.sources.random_access import Seeker, seekers_of
from dtl.mini import files as mini

FAULTS_SHOWN = 5
TOUCHED = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
SETTLED_SECONDS = 2.0  # a younger file may be written again within the tick of its time stamps


@dataclass(frozen=True)
class Row:
    """One raw example. `index` counts from 0; `place` tells a reader where it stands."""

    index: int
    location: str
    fields: dict[str, object]
    folder: Path = Path()  # what the names of files in it are relative to


Check = Callable[[Row], Fault | None]


@dataclass(frozen=True)
class Content:
    """What lies behind a source: how to read it from its start, and a digest of its bytes.

    `files`: their names, as places begin with them. `paths`: the files whose rows stand one after
    the other in them; none where rows are made of a folder or come from a hub.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[], Iterator[Item]]
    digest: Callable[[], str]
    folder: Path = Path()
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What one pass over a source has found: how many rows are good, and what the others lack."""

    good: int
    bad: tuple[Fault, ...]


class Rows:
    """The good rows of a source, read from disk anew at each iteration and never held whole.

    Only they are numbered and count for the limit, so that the order of the data and the split are
    those of a source without the rows at fault.
    """

    def __init__(
        self,
        content: Content,
        source: Source,
        columns: Mapping[str, str],
        *,
        check: Check,
        skips: bool,
        media: str | None = None,
    ) -> None:
        self.name = content.name
        self.files = content.files
        self._content = content
        self._source = source
        self._columns = dict(columns)
        self._check = check
        self._skips = skips
        self._media = media

    def __iter__(self) -> Iterator[Row]:
        """Raises DtlError at a row at fault that is not skipped, and tells of some more."""
        return self._good([])

    def read_through(self) -> Reading:
        """One pass. Raises DtlError as an iteration does."""
        skipped: list[Fault] = []
        good = sum(1 for _ in self._good(skipped))
        return Reading(good, tuple(skipped))

    def spots(self, seekers: Sequence[Seeker], skipped: list[Fault]) -> Iterator[tuple[int, Spot]]:
        """Where each good row stands: the number of its file, and its spot there. Faults are told,
        and those skipped are added, as in `read_through`."""
        at = (0, Spot(0, 0))

        def items() -> Iterator[Item]:
            nonlocal at
            for number, seeker in enumerate(seekers):
                try:
                    for spot, item in seeker.spots():
                        at = (number, spot)
                        yield item
                except OSError as fault:
                    yield unopened(seeker.shown, fault)

        for _ in self._good(skipped, items()):  # it asks for one item at a time
            yield at

    def seekers(self, place: str) -> tuple[Seeker, ...]:
        """What reads single rows of each file. Raises DtlError, at the key that names the source,
        where there is none."""
        content = self._content
        if not content.paths:
            raise DtlError.of(
                f"{place}.streaming",
                f"the rows of {content.name} are made of the files in it, and stand in none",
                "list them in a JSON lines file, with the columns that the task reads, and name "
                "that",
            )
        return seekers_of(list(content.paths), list(content.files), place=place)

    def _good(self, skipped: list[Fault], items: Iterator[Item] | None = None) -> Iterator[Row]:
        judged = self._judged(self._content.read() if items is None else items)
        for found in judged:
            if isinstance(found, Row):
                yield found
            elif self._skips and not isinstance(found, FileFault):
                skipped.append(found)
            else:
                others = (other for other in judged if isinstance(other, Fault))
                raise DtlError(found, *islice(others, 0 if self._skips else FAULTS_SHOWN - 1))

    def _judged(self, items: Iterator[Item]) -> Iterator[Row | Fault]:
        good = 0
        for item in items:
            found = self.judge(good, item)
            yield found
            good += isinstance(found, Row)
            if good == self._source.limit:
                return

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the first row's fields."""
        return tuple(next(iter(self)).fields)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content and all that decides which rows and names come out of it."""
        source = self._source
        parts = [self._content.digest(), source.name, source.split, source.limit, self._columns]
        if self._media is not None:
            parts.append(digest_of_files(self._named_files(self._media)))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _named_files(self, media: str) -> Iterator[tuple[str, Path]]:
        """What the rows, also those at fault, name in the column."""
        for item in self._content.read():
            if isinstance(item, Fault):
                continue
            column = self._columns.get(media)
            value = item[1].get(column) if column else renamed(item[1], media).get(media)
            if (file := file_of(value, self._content.folder)) is not None:
                yield str(value), file

    def judge(self, index: int, item: Item) -> Row | Fault:
        """The row with its columns named as dtl names them, or what is wrong with it."""
        if isinstance(item, Fault):
            return item
        place, given = item
        fields: Fields = {k: v for k, v in given.items() if k not in self._columns.values()}
        for name, column in self._columns.items():
            if column not in given:
                return Fault(
                    place,
                    f"no column '{column}', which data.columns.{name} names",
                    near(column, given) or f"the row has {listed(given)}",
                )
            fields[name] = given[column]
        if self._media is not None:
            fields = renamed(fields, self._media)
        row = Row(index, place, fields, self._content.folder)
        return self._check(row) or row


def _nothing_is_wrong(_: Row) -> None:
    return None


def open_rows(
    source: Source,
    columns: Mapping[str, str],
    place: str = "data.train",
    *,
    check: Check = _nothing_is_wrong,
    skips: bool = False,
    media: str | None = None,
) -> Rows:
    """The rows of a local file or folder, of data that dtl makes, or of a hub data set.

    `columns` maps dtl's name of a column to its name in the data; `place` is the config key that
    messages name; `check` says what is wrong with a row; `skips`: a row at fault is left out;
    `media`: the column (audio or image) that may name a file.
    Raises DtlError where there is nothing to read or the first row is at fault and not skipped,
    which is all that is read here.
    """
    content = _content(source, place, media)
    rows = Rows(content, source, columns, check=check, skips=skips, media=media)
    first = next(content.read(), None)
    if first is None:
        raise DtlError.of(place, f"{content.name} has no rows", "name data with rows")
    if not skips or isinstance(first, FileFault):
        _refuse(_missing_columns(first, content.name, columns))
        found = rows.judge(0, first)
        _refuse([found] if isinstance(found, Fault) else [])
    return rows


def _missing_columns(item: Item, name: str, columns: Mapping[str, str]) -> list[Fault]:
    """All that the first row lacks, at the keys that name them."""
    if isinstance(item, Fault):
        return []
    _, given = item
    return [
        Fault(
            f"data.columns.{ours}",
            f"{name} has no column '{column}'",
            near(column, given) or f"it has {listed(given)}",
        )
        for ours, column in columns.items()
        if column not in given
    ]


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise DtlError(*faults)


def _content(source: Source, place: str, media: str | None) -> Content:
    if source.path.startswith(mini.PREFIX):
        return _made(source, place)
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _folder(path, source, place, media)
    if path.exists() or _looks_local(path, source.path):
        return _file(path, source, place)
    if source.streaming:
        raise DtlError.of(
            f"{place}.streaming",
            f"{source.path} is no file or folder here, and of a hub data set no rows are streamed",
            "fetch it as Parquet files (hf download --repo-type dataset) and name their folder",
        )
    return _hub(source, place)


def _looks_local(path: Path, written: str) -> bool:
    """Whether a path that is not there was meant as a file, rather than as `owner/name`."""
    return (
        path.suffix.lower() in READERS
        or written.startswith((".", "/", "~"))
        or written.count("/") > 1
        or (len(path.parts) > 1 and path.parent.is_dir())
    )


def _made(source: Source, place: str) -> Content:
    name, _, split = source.path.removeprefix(mini.PREFIX).partition("/")
    split = split or source.split or ""
    if name in mini.DATA and not split:
        splits = " or ".join(f"{mini.PREFIX}{name}/{one}" for one in mini.DATA[name])
        raise DtlError.of(f"{place}.path", f"{source.path} names no split", f"write {splits}")
    _refuse_name(source, place)
    path = mini.file(name, split)
    return _contents(
        [path], shown=[f"{mini.PREFIX}{name}/{split}"], name=source.path, noted=source.streaming
    )


def _file(path: Path, source: Source, place: str) -> Content:
    if not path.exists():
        raise _missing(path, source.path, place)
    if source.split is not None:
        raise DtlError.of(
            f"{place}.split", f"{source.path} is one file and has no splits", "remove the key"
        )
    _refuse_name(source, place)
    return _contents([path], shown=[source.path], name=source.path, noted=source.streaming)


def _folder(folder: Path, source: Source, place: str, media: str | None) -> Content:
    """All data files of a folder in the order of their names, or those of one split; or the sounds
    or pictures in it."""
    _refuse_name(source, place)
    found = media_folder(folder, source.split, media) if media is not None else None
    if found is not None:
        return Content(
            source.path, (source.path,), found.read, lambda: _digest(found.files), found.folder
        )
    inside = folder / source.split if source.split else folder
    files = _data_files(inside) if inside.is_dir() else _files_of_split(folder, str(source.split))
    if not files:
        wanted = f"no data files of the split '{source.split}'" if source.split else "no data files"
        raise DtlError.of(
            f"{place}.path",
            f"{source.path} holds {wanted}",
            f"it has {listed(names_in(folder))}; dtl reads {', '.join(READERS)}",
        )
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise DtlError.of(
            f"{place}.path",
            f"{source.path} holds files of several kinds ({', '.join(kinds)})",
            "name one file, or keep one kind in the folder",
        )
    shown = [str(Path(source.path) / path.relative_to(folder)) for path in files]
    return _contents(files, shown=shown, name=source.path, noted=source.streaming)


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder; of one that `datasets` saved, not its notes beside them."""
    notes = {"dataset_info.json", "state.json", "dataset_dict.json"}
    files = (path for path in folder.iterdir() if path.suffix.lower() in READERS)
    return sorted(path for path in files if path.is_file() and path.name not in notes)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """train.jsonl, or train-00000-of-00002.parquet and its like."""
    return [path for path in _data_files(folder) if path.stem.partition("-")[0] == split]


def _contents(paths: list[Path], *, shown: list[str], name: str, noted: bool) -> Content:
    readers = [reader_of(path, place) for path, place in zip(paths, shown, strict=True)]

    def read() -> Iterator[Item]:
        each = zip(readers, paths, shown, strict=True)
        return chain.from_iterable(_openly(reader, path, place) for reader, path, place in each)

    return Content(
        name,
        tuple(shown),
        read,
        lambda: _digest(paths, noted=noted),
        paths[0].parent,
        tuple(paths),
    )


def _openly(
    reader: Callable[[Path, str], Iterator[Item]], path: Path, place: str
) -> Iterator[Item]:
    try:
        yield from reader(path, place)
    except OSError as fault:
        yield unopened(place, fault)


def _digest(paths: Iterable[Path], *, noted: bool = False) -> str:
    """`noted`: of a file that has been read before and not been touched since, from the cache."""
    of_one = _noted_digest if noted else _digest_of
    return hashlib.sha256(b"".join(of_one(path) for path in paths)).hexdigest()


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _noted_digest(path: Path) -> bytes:
    """Every process asks for it at every start, and files that are streamed are large."""
    before = path.stat()
    version = [str(path.resolve()), *(getattr(before, name) for name in TOUCHED)]
    name = hashlib.sha256(json.dumps(version).encode()).hexdigest()
    note = cache_folder() / "digests" / name
    if note.exists():
        return bytes.fromhex(note.read_text(encoding="utf-8"))
    digest = _digest_of(path)
    settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED_SECONDS
    if settled and path.stat() == before:
        write_note(note, digest.hex())
    return digest


def _hub(source: Source, place: str) -> Content:
    found = load_from_hub(source, place)
    named = names_for_numbers(found)

    def read() -> Iterator[Item]:
        for number, fields in enumerate(found, start=1):
            yield f"{source.path} ({found.split}): row {number}", named(fields)

    files = [Path(file["filename"]) for file in found.cache_files]

    def digest() -> str:
        return _digest(files) if files else str(found._fingerprint)

    return Content(source.path, (source.path,), read, digest)


def _refuse_name(source: Source, place: str) -> None:
    if source.name is not None:
        raise DtlError.of(
            f"{place}.name", f"only a hub data set has one, not {source.path}", "remove the key"
        )


def _missing(path: Path, written: str, place: str) -> DtlError:
    hint = near(path.name, names_in(path.parent))
    return DtlError.of(f"{place}.path", f"no such file: {written}", hint or _inside(path.parent))


def _inside(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    return f"the folder {folder} has {listed(names_in(folder))}"
