"""No pickle and no foreign code is run, wherever it is; no secret is printed."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
import torch

from dtl.cli import app as cli
from dtl.core.errors import Fault, without_secrets
from dtl.train.checkpoint import CheckpointStore
from tests import tiny
from tests.distributed import launching

CONFIG = """
model: {path: base, dtype: fp32}
task: {name: causal_lm, max_length: 32}
data: {train: data}
strategy: full
train: {steps: 2, global_batch: 4, save_every: 1}
layout: {processes_per_node: 1, zero_stage: 0}
"""
WEIGHTS = "model-00001-of-00002.safetensors"
MARKER = "s3cr3t-m4rk3r"


class Payload:
    """What unpickling it does: it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def pickled(path: Path, canaries: Path) -> None:
    """A plain pickle that leaves a canary when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"weight": Payload(canaries / path.name)}))


def saved_by_torch(path: Path, canaries: Path) -> None:
    """The same in torch's own format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Payload(canaries / path.name)}, path)


def script(path: Path, canaries: Path) -> None:
    """Python that leaves a canary when it is imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import os\nos.mkdir({str(canaries / path.name)!r})\nclass X: pass\n")


# What lies about, and no run may so much as open.
BESIDE_A_MODEL = {
    "pytorch_model.bin": saved_by_torch,
    "adapter_model.bin": saved_by_torch,
    "training_args.bin": saved_by_torch,
    "optimizer.pt": saved_by_torch,
    "scheduler.pt": saved_by_torch,
    "scaler.pt": saved_by_torch,
    "rng_state.pth": saved_by_torch,
    "rng_state_0.pth": pickled,
    "global_step1/mp_rank_00_model_states.pt": saved_by_torch,
    "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt": saved_by_torch,
    "vocab.pkl": pickled,
    "tokenizer.pkl": pickled,
    "tokenizer.model": pickled,
    "vocab.json.npy": pickled,
    "modeling_x.py": script,
    "configuration_x.py": script,
    "tokenization_x.py": script,
    "custom_generate/generate.py": script,
}
BESIDE_DATA = {
    "data.py": script,
    "rows.py": script,
    "rows.npy": pickled,
    "rows.pkl": pickled,
    "state.pt": saved_by_torch,
}


@pytest.fixture
def canaries(tmp_path: Path) -> Path:
    folder = tmp_path / "canaries"
    folder.mkdir()
    return folder


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: Path, canaries: Path) -> Path:
    """A folder with a model of one's own, data and a config."""
    folder = tmp_path / "workdir"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(decoder, folder / "base")
    (folder / "data").mkdir()
    tiny.write_texts(folder / "data" / "rows.jsonl", 12)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def change(file: Path, **keys: object) -> None:
    """Set keys of a JSON file."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, **keys}))


def dtl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dtl", *arguments],
        env=launching.environment(**environment),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("plant", [pickled, saved_by_torch, script])
def test_the_payloads_work(plant, tmp_path, canaries):
    """What the tests below plant does leave a canary once it is loaded."""
    plant(tmp_path / "payload", canaries)
    if plant is pickled:
        pickle.loads((tmp_path / "payload").read_bytes())
    elif plant is saved_by_torch:
        torch.load(tmp_path / "payload", weights_only=False)
    else:
        exec((tmp_path / "payload").read_text())
    assert (canaries / "payload").exists()


def test_payloads_in_model_data_cache_and_checkpoints_are_not_run(workdir, canaries):
    """A run, and its continuation, with a payload in each place where some loader looks."""
    for name, plant in BESIDE_A_MODEL.items():
        plant(workdir / "base" / name, canaries)
    (workdir / "base" / "latest").write_text("global_step1")
    change(
        workdir / "base" / "config.json",
        auto_map={
            "AutoConfig": "configuration_x.X",
            "AutoModel": "modeling_x.X",
            "AutoModelForCausalLM": "modeling_x.X",
        },
    )
    change(
        workdir / "base" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]},
    )
    for name, plant in BESIDE_DATA.items():
        plant(workdir / "data" / name, canaries)
    ended = dtl("train", "run.yaml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(canaries.iterdir()) == []

    run = workdir / "runs" / "run"
    shutil.rmtree(run / "export")
    (run / "result.json").unlink()
    first, second = sorted((run / "checkpoints").iterdir())
    saved_by_torch(second / "optimizer.pt", canaries)  # foreign: this one is renamed
    saved_by_torch(first / "rng_state.pth", canaries)  # known to a manifest that was changed
    files = json.loads((first / "manifest.json").read_text())["files"]
    content = (first / "rng_state.pth").read_bytes()
    seal = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    change(first / "manifest.json", files={**files, "rng_state.pth": seal})
    for folder in (*Path(os.environ["DTL_CACHE"]).glob("encoded/*"), run):
        pickled(folder / "index.pkl", canaries)
        saved_by_torch(folder / "input_ids.pt", canaries)
    ended = dtl("resume", "runs/run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"resuming from {first.relative_to(workdir)}" in ended.stdout.replace(f"{workdir}/", "")
    assert list(canaries.iterdir()) == []


@dataclass(frozen=True)
class Refused:
    """A payload, the command that reads it, and the expected message."""

    name: str
    plant: Callable[[Path, Path], object]
    message: str
    overrides: tuple[str, ...] = ()


def weights_only_in_a_pickle(workdir: Path, canaries: Path) -> None:
    (workdir / "base" / "model.safetensors").unlink()
    saved_by_torch(workdir / "base" / "pytorch_model.bin", canaries)


def index_naming(shard: str) -> Callable[[Path, Path], None]:
    def plant(workdir: Path, canaries: Path) -> None:
        base = workdir / "base"
        (base / "model.safetensors").rename(base / WEIGHTS)
        saved_by_torch(base / shard, canaries)
        names = {"model.embed_tokens.weight": shard, "lm_head.weight": WEIGHTS}
        change(base / "model.safetensors.index.json", metadata={}, weight_map=names)

    return plant


def adapter_beside_a_model(workdir: Path, canaries: Path) -> None:
    saved_by_torch(workdir / "base" / "adapter_model.bin", canaries)
    change(
        workdir / "base" / "adapter_config.json",
        peft_type="LORA",
        base_model_name_or_path="../other",
    )


def adapter_named_as_weights(workdir: Path, canaries: Path) -> None:
    saved_by_torch(workdir / "base" / "adapter_model.bin", canaries)
    change(workdir / "base" / "config.json", transformers_weights="adapter_model.bin")


def architecture_of_its_own(workdir: Path, canaries: Path) -> None:
    for name in ("configuration_x.py", "modeling_x.py"):
        script(workdir / "base" / name, canaries)
    names = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    change(workdir / "base" / "config.json", model_type="x", auto_map=names)


def code_from_elsewhere(file: str, key: str) -> Callable[[Path, Path], None]:
    def plant(workdir: Path, canaries: Path) -> None:
        change(workdir / "base" / file, auto_map={key: "someone/else--modeling_x.X"})

    return plant


def kernel_of_the_hub(workdir: Path, canaries: Path) -> None:
    change(workdir / "base" / "config.json", _attn_implementation="someone/kernel")


def data_file(name: str, plant: Callable[[Path, Path], None]) -> Refused:
    return Refused(
        f"data in {name}",
        lambda workdir, canaries: plant(workdir / name, canaries),
        f"{name}: '{Path(name).suffix}' files are not supported",
        (f"data.train={name}",),
    )


def only_a_script(workdir: Path, canaries: Path) -> None:
    script(workdir / "scripted" / "scripted.py", canaries)


def pickles_in_the_current_folder(workdir: Path, canaries: Path) -> None:
    pickled(workdir / "train.pkl", canaries)


def tag_in_the_config(workdir: Path, canaries: Path) -> None:
    call = f'!!python/object/apply:os.mkdir ["{canaries / "tag"}"]'
    (workdir / "run.yaml").write_text(CONFIG + f"run: {{name: {call}}}\n")


def escape_in_the_chat_template(workdir: Path, canaries: Path) -> None:
    call = f"cycler.__init__.__globals__.os.mkdir('{canaries / 'template'}')"
    (workdir / "base" / "chat_template.jinja").write_text("{{ " + call + " }}")
    rounds = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tiny.write_rows(workdir / "chat.jsonl", [{"messages": rounds}])


REFUSED = [
    Refused(
        "weights only in a pickle",
        weights_only_in_a_pickle,
        "weights in a pickle (pytorch_model.bin)",
    ),
    Refused(
        "index naming a pickle",
        index_naming("shard.bin"),
        "which is no safetensors file in its folder",
    ),
    Refused(
        "index leading out",
        index_naming("../out.bin"),
        "which is no safetensors file in its folder",
    ),
    Refused(
        "index leading out to safetensors",
        index_naming("../out.safetensors"),
        "names the weights '../out.safetensors'",
    ),
    Refused("adapter beside a model", adapter_beside_a_model, "is an adapter"),
    Refused(
        "adapter named as weights",
        adapter_named_as_weights,
        "which is no safetensors file in its folder",
    ),
    Refused("architecture of its own", architecture_of_its_own, "cannot read the config of base"),
    Refused(
        "model code from elsewhere",
        code_from_elsewhere("config.json", "AutoModelForCausalLM"),
        "takes code of no pinned version from another repository",
        ("model.trust_remote_code=true",),
    ),
    Refused(
        "tokenizer code from elsewhere",
        code_from_elsewhere("tokenizer_config.json", "AutoTokenizer"),
        "takes code of no pinned version from another repository",
        ("model.trust_remote_code=true",),
    ),
    Refused("kernel of the hub", kernel_of_the_hub, "requests code of the hub"),
    data_file("rows.npy", pickled),
    data_file("rows.pkl", pickled),
    data_file("rows.pt", saved_by_torch),
    data_file("rows.py", script),
    Refused("folder with a script", only_a_script, "has no data files", ("data.train=scripted",)),
    Refused(
        "pickles in the current folder",
        pickles_in_the_current_folder,
        "'pandas' is a file format, not a dataset",
        ("data.train={path: pandas, split: train}",),
    ),
    Refused("tag in the config", tag_in_the_config, "YAML tags such as !!python/object/apply"),
    Refused(
        "tag in an override",
        lambda workdir, canaries: None,
        "YAML tags such as !!python/object/apply",
        ('optim.betas=[!!python/object/apply:os.mkdir ["tagged"], 0.9]',),
    ),
    Refused(
        "escape in a chat template",
        escape_in_the_chat_template,
        "chat.jsonl:1: the chat template of base does not accept the row",
        ("data.train=chat.jsonl",),
    ),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_files_that_would_run_code_are_one_fault(refused, workdir, canaries, capfd):
    refused.plant(workdir, canaries)
    assert cli.main(["train", "run.yaml", *refused.overrides]) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert refused.message in message
    assert list(canaries.iterdir()) == []
    assert not (workdir / "runs").exists() and not (workdir / "tagged").exists()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (index_naming("shard.bin"), "which is no safetensors file in its folder"),
        (adapter_beside_a_model, "is an adapter"),
    ],
    ids=["index", "adapter"],
)
def test_the_same_holds_for_a_hub_model(plant, message, workdir, canaries, tmp_path):
    """As the hub's cache has it: a commit, and what its main branch points to."""
    plant(workdir, canaries)
    home = tmp_path / "hub" / "models--someone--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0a" * 20)
    shutil.copytree(workdir / "base", home / "snapshots" / ("0a" * 20))
    ended = dtl("plan", "run.yaml", "model.path=someone/model", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
    assert list(canaries.iterdir()) == []


def test_an_override_that_looks_like_a_tag_is_text(workdir):
    from dtl.config.load import load_config

    config = load_config("run.yaml", ["model.path=!!python/name:os.system"])
    assert config.model.path == "!!python/name:os.system"


def test_cached_arrays_are_loaded_without_pickle(workdir, canaries):
    """Python objects in a memory map would be addresses that anyone could write."""
    from dtl.core.checksums import DamagedFolder, seal_folder
    from dtl.data.cache.encoded import EncodedData
    from dtl.data.cache.encoder import encode_rows
    from dtl.data.example import EncodedExample
    from dtl.data.sources.rows import Row

    for values in (
        [["input_ids", {"dtype": "O", "single": False}]],
        [["../../input_ids", {"dtype": "<i4", "single": False}]],
    ):
        data = encode_rows(
            [Row(0, "", {})],
            lambda row: EncodedExample({"input_ids": [1, 2]}, 2, 1),
            key="k",
            location="",
        )
        change(data.folder / "index.json", values=values)
        seal_folder(data.folder)
        with pytest.raises(DamagedFolder, match="input_ids have dtype"):
            EncodedData(data.folder)


@pytest.mark.parametrize("name", ["../x.pt", "../../x.safetensors", "sub/../../x", "/etc/hostname"])
def test_a_manifest_with_a_path_outside_of_the_checkpoint_is_an_error(tmp_path, name):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (tmp_path / "x.pt").write_bytes(b"x")
    seal = {"bytes": 1, "sha256": sha256(b"x").hexdigest()}
    change(folder / "manifest.json", step=1, run="mine", files={name: seal})
    assert name in str(CheckpointStore(tmp_path, "mine").find_damage(folder))


@pytest.mark.parametrize("linked", ["step-00000001", "manifest.json", "part-00001.safetensors"])
def test_a_link_in_a_checkpoint_is_an_error(tmp_path, linked):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "part-00001.safetensors").write_bytes(b"x")
    seal = {"bytes": 1, "sha256": sha256(b"x").hexdigest()}
    change(folder / "manifest.json", step=1, run="mine", files={"part-00001.safetensors": seal})
    assert CheckpointStore(tmp_path, "mine").find_damage(folder) is None
    path = folder if linked == folder.name else folder / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert CheckpointStore(tmp_path, "mine").find_damage(folder) is not None


# --- secrets


def test_secrets_of_the_environment_are_printed_nowhere(workdir):
    """Of a run of two processes: its folder, its output, and all command lines."""
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
    environment = launching.environment(**dict.fromkeys(names, MARKER))
    argv = [
        sys.executable,
        "-m",
        "dtl",
        "train",
        "run.yaml",
        "layout.processes_per_node=2",
        "layout.zero_stage=1",
    ]
    with (workdir / "told.txt").open("w") as output:
        process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)
    seen: set[str] = set()
    while process.poll() is None:
        seen |= command_lines(process.pid)
        time.sleep(0.25)
    assert process.returncode == 0, (workdir / "told.txt").read_text()
    assert sum("dtl.launch.worker" in line for line in seen) >= 2, "the processes were looked at"
    written = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert {
        workdir / "told.txt",
        workdir / "runs" / "run" / "logs" / "rank-1.log",
    } <= written.keys()
    assert not [path for path, content in written.items() if MARKER.encode() in content]
    assert not [line for line in seen if MARKER in line]


def command_lines(parent: int) -> set[str]:
    """Of a process and all below it."""
    found = set()
    try:
        above = psutil.Process(parent)
        for process in (above, *above.children(recursive=True)):
            found.add(" ".join(process.cmdline()))
    except psutil.Error:  # it has just ended
        pass
    return found


@pytest.mark.parametrize("key", ["data.train", "data.eval.path", "model.path"])
def test_a_password_in_a_url_is_not_printed(workdir, capfd, key):
    address = f"https://user:{MARKER}@example.com/rows.jsonl?token={MARKER}"
    assert cli.main(["train", "run.yaml", f"{key}={address}"]) == 2
    message = capfd.readouterr()
    assert "dtl reads no https:// addresses" in message.err
    assert MARKER not in message.err + message.out
    assert not (workdir / "runs").exists()


def test_only_the_secrets_of_a_url_are_hidden():
    fault = Fault("at s3://key:pass@bucket/a?sig=1", "see https://example.com/b", "mail a@b?")
    assert str(fault) == "at s3://***@bucket/a?***: see https://example.com/b. Fix: mail a@b?"
    assert without_secrets("http://one@two/ http://x?y z") == "http://***@two/ http://x?*** z"
