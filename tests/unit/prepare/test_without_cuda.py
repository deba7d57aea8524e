"""Planning and checking never initialize CUDA: a process that has cannot hand it to a fork, and
would hold memory of a GPU beside the run that it supervises."""

import json
import subprocess
import sys

from dtl.config import registry
from dtl.config.schema import Model
from dtl.models.pretrained_config import load_model_config
from dtl.models.processor import load_processor
from tests import task_bench, tiny

# In a fresh process, because bitsandbytes asks for GPUs when it is imported.
PROLOGUE = """
import json, sys, traceback, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch

initialized = []

def fail():
    initialized.append("".join(traceback.format_stack()))
    raise RuntimeError("CUDA would be initialized here")

torch.cuda._lazy_init = fail
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch._C._cuda_getCurrentRawStream = None  # read by bitsandbytes, and absent in a CPU build

from dtl.plan.records import Hardware

GPU = Hardware("cuda", 1, 80 * 10**9, "GPU", supports_bf16=True, has_compiler=True)
"""
PLAN_EVERYTHING = """
from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.data.batching import Batching
from dtl.models.pretrained_config import load_model_config
from dtl.plan.planner import make_plan
from dtl.plan.request import PlanRequest

for case in json.load(sys.stdin):
    config = RunConfig.model_validate(case["config"])
    request = PlanRequest(
        config=config,
        parts=assemble(config),
        dataset_stats=case["dataset_stats"],
        model_config=load_model_config(config.model),
        batching=Batching(32, 8, 0),
        lengths=np.full(32, 16),
        hardware=GPU,
    )
    try:
        make_plan(request)
        print(case["name"])
    except DtlError:
        pass  # this strategy does not support this task
"""
PREPARE_AND_CHECK = """
from dtl import api
from dtl.compare.plan import with_local_layout
from dtl.compare.run import PRELOADED_MODULES
from dtl.prepare.prepared_run import prepare_run

for module in PRELOADED_MODULES:
    __import__(module)
config = api.load_config(sys.argv[1])
prepare_run(config, hardware=GPU)
api.check(config)
with_local_layout(config)
print("checked")
"""
EPILOGUE = """
if initialized:
    sys.exit(initialized[0][-6000:])
"""


def run(code, *arguments, stdin=""):
    """Return the lines that a fresh process prints; fail where it would initialize CUDA."""
    argv = [sys.executable, "-c", PROLOGUE + code + EPILOGUE, *arguments]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def describe(request, task, strategy):
    """Return a config of a task and a strategy, and the dataset stats of the task."""
    case = task_bench.CASES[task][0]
    folder = request.getfixturevalue(case.base)
    made, source = task_bench.make_task(task, **case.options), Model(path=str(folder))
    stats = made.collect_dataset_stats(task_bench.make_rows(case.rows), load_model_config(source))
    _, stats = made.adapt_processor(load_processor(source, made.processor_kind), stats)
    return {
        "name": f"{task} {strategy}",
        "dataset_stats": stats,
        "config": {
            "model": {"path": str(folder)},
            "task": {"name": task, **case.options},
            "strategy": strategy,
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 3},
        },
    }


def test_planning_every_task_and_every_strategy_initializes_no_cuda(request):
    tasks, strategies = registry.list_names("tasks"), registry.list_names("strategies")
    pairs = {(task, "lora") for task in tasks} | {
        ("text_classification", name) for name in strategies
    }
    cases = [describe(request, *pair) for pair in sorted(pairs)]
    quantized = describe(request, "causal_lm", "lora")
    quantized["config"]["model"]["quantize"] = "nf4"
    lines = run(PLAN_EVERYTHING, stdin=json.dumps([*cases, quantized]))
    planned = {name for line in lines for name in line.split(" ")}
    assert planned >= {*tasks, *strategies}


def test_preparing_and_checking_a_run_initializes_no_cuda(decoder, cache, tmp_path):
    rows = [{"text": " ".join(tiny.WORDS[n : n + 8])} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_adapter(decoder, tmp_path / "adapter")
    config = {
        "model": {"path": str(decoder)},
        "task": "causal_lm",
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "strategy": {"name": "lora", "continue_from": str(tmp_path / "adapter")},
        "train": {"steps": 3},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert "checked" in run(PREPARE_AND_CHECK, str(tmp_path / "run.yaml"))


def save_adapter(base, folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), options).save_pretrained(folder)
