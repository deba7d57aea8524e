"""The files and folders that a run's config names: found from any folder, also after a move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dtl.config.schema import RunConfig
from dtl.mini import PREFIX

PATH_KEYS = (  # where a config names files; * is each item of a list
    ("model", "path"),
    ("model", "adapters", "*"),
    ("data", "train", "path"),
    ("data", "mix", "*", "path"),
    ("data", "eval", "path"),
    ("strategy", "continue_from"),
    ("strategy", "*", "continue_from"),
    ("compare", "source_data", "path"),
    ("compare", "ood_data", "path"),
)


def list_local_paths(config: RunConfig) -> list[str]:
    """Return the relative paths in a config at which there is something now; others are names of
    the Hub."""
    found: list[str] = []

    def collect(path: str) -> str:
        if _is_relative(path) and Path(path).exists() and path not in found:
            found.append(path)
        return path

    _replace_paths(config.model_dump(mode="json"), collect)
    return found


@dataclass(frozen=True)
class LocalPaths:
    """The relative paths of a run's config.

    `names`: what `list_local_paths` returned. `started_in`: the folder in which it did. `project`:
    that folder as it is called now, where it has been moved together with the run.
    """

    names: tuple[str, ...]
    started_in: Path
    project: Path

    @classmethod
    def from_record(cls, record: dict[str, Any], run: Path) -> Self:
        """Return those of a run folder with this run.json; runs of earlier versions have none."""
        started_in = Path(record.get("started_in", Path.cwd()))
        project = find_project(run, record["config"]["run"]["dir"], started_in)
        return cls(tuple(record.get("local_paths", ())), started_in, project)

    @property
    def are_elsewhere(self) -> bool:
        """Whether this process is in another folder."""
        return bool(self.names) and self.project != Path.cwd()

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the config with absolute paths, where this process is in another folder."""
        return self._change(config, self._find) if self.are_elsewhere else config

    def unresolve(self, config: RunConfig) -> RunConfig:
        """Return the config with the paths that `resolve` has changed as they were written."""
        written = {
            str(root / name): name
            for name in self.names
            for root in (self.started_in, self.project)
        }
        return self._change(config, lambda path: written.get(path, path)) if written else config

    def _find(self, path: str) -> str:
        if path not in self.names:
            return path
        moved = self.project / path
        return str(moved if moved.exists() else self.started_in / path)

    @staticmethod
    def _change(config: RunConfig, change: Callable[[str], str]) -> RunConfig:
        return RunConfig.model_validate(_replace_paths(config.model_dump(mode="json"), change))


def find_project(run: Path, run_dir: str, started_in: Path) -> Path:
    """Return the folder in which a run was started, as it is called now.

    `run`: the run folder. `run_dir`: `run.dir` of its config. If it is relative, the run is that
    far below the project, wherever both have been moved.
    """
    depth = len(Path(run_dir).parts)
    folder = run.resolve()
    if Path(run_dir).is_absolute() or run_dir.startswith("~") or ".." in Path(run_dir).parts:
        return started_in
    if folder.parts[-depth - 1 : -1] != Path(run_dir).parts:
        return started_in  # the run has been moved alone
    return folder.parents[depth]


def _is_relative(path: str) -> bool:
    return not path.startswith((PREFIX, "/", "~"))


def _replace_paths(values: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change each text at PATH_KEYS in place, and return the values."""
    for keys in PATH_KEYS:
        _replace(values, keys, change)
    return values


def _replace(value: Any, keys: tuple[str, ...], change: Callable[[str], str]) -> None:
    first, rest = keys[0], keys[1:]
    items: list[Any] = []
    if first == "*" and isinstance(value, list):
        items = list(range(len(value)))
    elif isinstance(value, dict) and value.get(first) is not None:
        items = [first]
    for item in items:
        if rest:
            _replace(value[item], rest, change)
        elif isinstance(value[item], str):
            value[item] = change(value[item])
