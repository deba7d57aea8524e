"""One rank of a run: what it does when it has the lock of the run folder."""

from types import SimpleNamespace

import pytest

from dtl.config.schema import RunConfig
from dtl.core.lock import Lease
from dtl.launch import worker
from dtl.run.folder import RESULT


class _Watchdog:
    """Records what is reported to it."""

    def __init__(self):
        self.activities, self.folder = [], None

    def heartbeat(self, activity, *, timeout):
        self.activities.append((activity, timeout))

    def write_to(self, folder):
        self.folder = folder


class _FinishedMeanwhile:
    """A run folder that another process has finished while this one waited for its lock."""

    def __init__(self, path):
        self.path, self.heartbeats, self.last_step = path, path / "heartbeats", 7

    @property
    def state(self):
        assert (self.path / "lease.json").is_file(), "looked before the lock is held"
        return "finished"


def test_run_that_was_finished_while_this_one_waited_is_not_trained_again(tmp_path, capsys):
    engine = SimpleNamespace(
        is_main_process=True, barrier=lambda: None, broadcast_object=lambda value: value
    )
    config = RunConfig.model_validate(
        {
            "model": {"path": "base"},
            "task": "causal_lm",
            "strategy": "lora",
            "data": {"train": {"path": "rows.jsonl"}},
            "train": {"steps": 1, "loading_hang_seconds": 55},
        }
    )
    prepared = SimpleNamespace(config=config)
    run = worker._RankRun(_FinishedMeanwhile(tmp_path), prepared, external=None)
    watchdog, output = _Watchdog(), open(tmp_path / "terminal", "w+")  # noqa: SIM115
    with output:
        end = worker._train_with_lock(run, engine, watchdog, stop=None, terminal=output)
        output.seek(0)
        assert f"{tmp_path} is finished; nothing to do" in output.read()
    assert end == (0, 7)
    assert watchdog.activities == [("waiting for the lock of the run folder", 55)]
    assert watchdog.folder is None and not (tmp_path / RESULT).exists()


def test_heartbeats_of_a_folder_that_another_process_holds_are_not_written(tmp_path, monkeypatch):
    """They would replace those of its ranks. Here the lock is still held when training begins."""
    started = []
    monkeypatch.setattr(worker, "set_threads", lambda **_: None)

    def start(run, stop, watchdog):
        watchdog.heartbeat("joining the process group", timeout=60)
        started.append((watchdog.folder, watchdog._thread.is_alive()))
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_start_engine", start)
    layout = SimpleNamespace(processes_per_node=1, device="cpu", world_size=1)
    prepared = SimpleNamespace(plan=SimpleNamespace(layout=layout))
    folder = SimpleNamespace(path=tmp_path, heartbeats=tmp_path / "h", state="interrupted")
    run = worker._RankRun(folder, prepared, external=None)
    with pytest.raises(KeyboardInterrupt):
        worker._train(run, None, None)
    with Lease(tmp_path), pytest.raises(KeyboardInterrupt):
        worker._train(run, None, None)
    assert started == [(tmp_path / "h", True), (None, True)], "the watch begins before the engine"
    assert (tmp_path / "h" / "rank-0.json").is_file()
