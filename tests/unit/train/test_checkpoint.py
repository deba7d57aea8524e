"""A checkpoint is complete or absent, and damage is found before a weight is read."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import torch

from dtl.core.errors import RunFailed
from dtl.train import checkpoint, checkpoint_tensors
from dtl.train.checkpoint import CheckpointStore
from dtl.train.checkpoint_tensors import CheckpointTensors
from dtl.train.progress import Progress

NAMES = ("block.weight", "head.weight", "head.bias")


@dataclass
class SingleRankEngine:
    """As much of an engine as the store needs."""

    rank: int = 0
    world_size: int = 1
    is_main_process: bool = True
    values: dict = field(
        default_factory=lambda: {n: torch.nn.Parameter(torch.randn(3, 2)) for n in NAMES}
    )

    def parameters_to_save(self):
        return list(self.values.items())

    def full_tensor(self, value):
        return value.detach().clone()

    def changed_buffers(self):
        return {}

    def optimizer_state(self, value):
        full = self.full_tensor(value)
        return {"exp_avg": full * 2, "exp_avg_sq": full**2}

    def all_gather_object(self, values):
        return values

    def barrier(self):
        return None

    def loss_scaler_state(self):
        return None


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "checkpoints", "mine")
    for step in (4, 8):
        made.save(SingleRankEngine(), Progress(step=step, digest="d"))
    return made


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 3)


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def damage_empty(path):
    path.write_bytes(b"")


def damage_delete(path):
    path.unlink()


def damage_link(path):
    target = path.parent.parent / "moved"
    path.rename(target)
    path.symlink_to(target)


def damage_other_step(path):
    shutil.copy(path.parent.parent / "step-00000004" / path.name, path)


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]
FILES = ("part-00001.safetensors", "progress.json", "manifest.json")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_older_checkpoint_is_returned(store, damage, name):
    newest = store.folder / "step-00000008"
    damage(newest / name)
    found, damaged = store.find_newest_intact()
    assert found == store.folder / "step-00000004"
    assert [entry.path for entry in damaged] == [newest]
    assert damaged[0].reason


@pytest.mark.parametrize(
    "key", [b"sha256", b"bytes", b"files", b"step", b"run", b"part-00001.safetensors"]
)
def test_one_flipped_bit_in_a_key_of_the_manifest_is_damage(store, key):
    manifest = store.step_path(8) / "manifest.json"
    data = bytearray(manifest.read_bytes())
    data[data.index(b'"' + key) + 1] ^= 1
    manifest.write_bytes(data)
    found, damaged = store.find_newest_intact()
    assert found == store.step_path(4)
    assert [entry.path.name for entry in damaged] == ["step-00000008"]


def test_additional_file_or_renamed_folder_is_damage(store):
    (store.folder / "step-00000008" / "rng_state.pth").write_bytes(b"\x80\x04N.")
    (store.folder / "step-00000004").rename(store.folder / "step-00000005")
    found, damaged = store.find_newest_intact()
    assert found is None
    assert "rng_state.pth" in damaged[0].reason
    assert "contains step 4" in damaged[1].reason


def test_newest_checkpoints_are_retained_and_contain_what_was_saved(tmp_path):
    engine, store = SingleRankEngine(), CheckpointStore(tmp_path, "mine")
    for step in range(1, 6):
        store.save(engine, Progress(step=step, updates=step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "step-00000005" / "part-00001.safetensors")
    for name, value in engine.values.items():
        assert torch.equal(stored[f"weight/{name}"], value)
        assert torch.equal(stored[f"exp_avg/{name}"], value * 2)
        assert torch.equal(stored[f"exp_avg_sq/{name}"], value**2)
    assert checkpoint.read_progress(tmp_path / "step-00000005") == Progress(step=5, updates=5)


CALLS_OF_A_SAVE = ("os.fsync", "os.open", "pathlib.Path.rename", "pathlib.Path.replace")


@pytest.mark.parametrize("call", CALLS_OF_A_SAVE)
@pytest.mark.parametrize("at", range(1, 7))
def test_kill_at_any_call_of_a_save_leaves_an_intact_checkpoint(tmp_path, monkeypatch, call, at):
    """The exception stands for the kill: no code of dtl catches it."""

    class Killed(BaseException):
        pass

    engine, store = SingleRankEngine(), CheckpointStore(tmp_path, "mine", newest_to_keep=1)
    store.save(engine, Progress(step=1))
    owner, _, name = call.rpartition(".")
    home = os if owner == "os" else checkpoint.Path
    real, counted = getattr(home, name), [0]

    def dying(*arguments, **named):
        counted[0] += 1
        if counted[0] == at:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(home, name, dying)
        with suppress(Killed):
            store.save(engine, Progress(step=2))
    found, damaged = store.find_newest_intact()
    assert found is not None and damaged == []
    store.save(engine, Progress(step=3))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]
    assert store.find_damage(tmp_path / "step-00000003") is None
    json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())


def test_checkpoint_of_another_run_is_damage_and_one_before_a_config_change_is_not(store):
    other = CheckpointStore(store.folder, "another")
    found, damaged = other.find_newest_intact()
    assert found is None
    assert [entry.reason for entry in damaged] == ["it belongs to another run"] * 2
    changed = CheckpointStore(store.folder, "another", ("mine",))
    assert changed.find_newest_intact() == (store.step_path(8), [])


def test_best_checkpoint_and_one_before_the_rollback_limit_are_retained(tmp_path):
    store = CheckpointStore(tmp_path, "mine", newest_to_keep=1, rollback_steps=4)
    for step in range(12):
        store.save(
            SingleRankEngine(),
            Progress(step=step, best_score=0.5, best_step=3 if step >= 3 else None),
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:08d}" for step in (3, 8, 9, 10, 11)
    ]
    assert store.find_newest_intact(last_step=7)[0] == store.step_path(3)
    store.remove_after(3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_save_fails_where_tensors_read_back_differ(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, "mine")
    store.save(SingleRankEngine(), Progress(step=1))
    real = checkpoint_tensors.save_file

    def corrupt(tensors, path):
        corrupted = {name: value.clone() for name, value in tensors.items()}
        next(iter(corrupted.values()))[0, 0] += 1
        real(corrupted, path)

    monkeypatch.setattr(checkpoint_tensors, "save_file", corrupt)
    with pytest.raises(RunFailed, match="1 of 9 tensors read back differ"):
        store.save(SingleRankEngine(), Progress(step=2))
    assert store.find_newest_intact() == (store.step_path(1), [])


def test_nothing_is_written_into_a_folder_that_another_process_has_taken_over(tmp_path):
    def lost():
        raise RunFailed.of("runs/x", "was taken over", "end one of the two")

    with pytest.raises(RunFailed, match="taken over"):
        CheckpointStore(tmp_path / "checkpoints", "mine", check_lease=lost).save(
            SingleRankEngine(), Progress(step=1)
        )
    assert not (tmp_path / "checkpoints").exists()


def test_changed_buffers_are_saved_and_restored(tmp_path):
    class WithNorm(SingleRankEngine):
        def changed_buffers(self):
            return {"norm.running_mean": torch.tensor([1.0, 2.0])}

    model = torch.nn.Sequential()
    model.norm = torch.nn.BatchNorm1d(2).requires_grad_(False)
    path = CheckpointStore(tmp_path, "mine").save(WithNorm(), Progress(step=1))
    checkpoint_tensors.restore_buffers(CheckpointTensors(path), model)
    assert model.norm.running_mean.tolist() == [1.0, 2.0]
    assert model.norm.num_batches_tracked.item() == 0
