"""The cases that the distributed tests run."""

STRATEGIES = {"full": [], "lora": ["strategy.rank=4", "strategy.alpha=8"], "frozen": []}
STAGES = (0, 1, 2, 3)
# Ways to update, and the layouts (ranks and ZeRO stage) that each is tried on.
EVERYWHERE = ((1, 0), (2, 0), (2, 2), (2, 3))
OPTIMIZERS = {
    "lion": ("optim.name=lion", "optim.learning_rate=0.001"),
    "adafactor": ("optim.name=adafactor",),
    "muon": ("optim.name=muon",),
    "placed": (
        *("optim.head_learning_rate=0.02", "optim.layer_decay=0.5"),
        *("optim.l2_sp=0.3", "optim.weight_decay=0.4"),
    ),
}
UPDATED = {
    "lion": EVERYWHERE,
    "adafactor": EVERYWHERE[:2],
    "muon": EVERYWHERE[:2],
    "placed": EVERYWHERE,
}
# What is kept in other ways than AdamW's moments comes back bitwise: optimizer, ZeRO stage, more.
KEPT = {
    "8bit": ("optim.name=adamw_8bit", "layout.zero=0"),
    **{f"half-{zero}": (f"layout.zero={zero}", "model.dtype=bf16") for zero in STAGES},
    "adafactor": ("optim.name=adafactor", "layout.zero=0"),
    "muon": ("optim.name=muon", "layout.zero=0"),
    "lion": (
        *("optim.name=lion", "optim.learning_rate=0.001", "layout.zero=3"),
        *("optim.l2_sp=0.3", "train.ema=0.9", "train.export=ema"),
    ),
    "average": (
        *("optim.l2_sp=0.3", "layout.zero=2", "train.ema=0.7", "train.average=2"),
        *("train.save_every=4", "data.eval=eval.jsonl"),
    ),
}
ACCUMULATION = (1, 2, 4)
STEPS, BATCH, RATE, CLIP = 20, 12, 0.01, 0.2  # 53 rows: the last batch of an epoch has 5
HELD_OUT = 101
TOKENS, TOKEN_STEPS = 400, 10  # tokens in a global batch; of such an epoch has 6 or 7
BATCHINGS = {
    "tokens": [f"train.global_batch={TOKENS} tokens"],
    "grouped": ["train.group_by_length=true"],
    "both": [f"train.global_batch={TOKENS} tokens", "train.group_by_length=true"],
}
BATCHING_LAYOUTS = ((1, 0, 1), (1, 0, 3), (2, 0, 1), (2, 2, 3))  # ranks, ZeRO, micro-batch
MOVES = ((1, 2), (2, 3), (3, 1))  # ranks on which a run is stopped, and goes on
JUMP, JUMP_BACK = 31, 6  # the step whose loss jumps, and how many steps the run goes back
# Strategies one after the other, with the steps of each.
PHASES = {
    "probe-then-full": [("frozen", 6), ("full", 14)],
    "merge-then-full": [("lora", 8), ("full", 12)],
    "full-then-probe": [("full", 8), ("frozen", 12)],
    "unfreezing": [("frozen", 4), ("partial", 6), ("full", 10)],
}
PHASED_STAGES = (0, 2, 3)
EXPORT_PLACES = ("export, gathering", "export, writing", "export, giving")

# Ways of LoRA, and IA3, on few layouts; those of PARITY beside a plain loop, for all steps. Every
# method at every stage: test_every_strategy.py.
LORA = ["strategy=lora", "strategy.rank=4", "strategy.alpha=8"]
WAYS = {
    "dora": [*LORA, "strategy.dora=true"],
    "ia3": ["strategy=ia3"],
    "loraplus": [*LORA, "strategy.loraplus=16"],
    "pissa": [*LORA, "strategy.init=pissa"],
    "eva": [*LORA, "strategy.init=eva"],
}
ADAPTERS = WAYS | {
    "vera": ["strategy=vera", "strategy.rank=8"],
    "prefix_tuning": ["strategy=prefix_tuning", "strategy.tokens=4"],
    "p_tuning": ["strategy=p_tuning", "strategy.tokens=4"],
}
PARITY = ("dora", "ia3")
UP_TO_ZERO_2 = ("pissa", "eva")
ADAPTER_EXPORTS = ("pissa-2-2", "vera-2-3", "prefix_tuning-2-3", "p_tuning-2-3")
ADAPTER_STEPS = 6
FORMER = "runs/export-lora/export"  # an adapter that goes on learning
CONTINUED_STAGES = (0, 2, 3)
ADAPTER_RUNS = tuple(  # method, ranks and ZeRO stage
    (name, ranks, zero)
    for ranks, zero in ((1, 0), (2, 2), (2, 3))
    for name in ADAPTERS
    if (name in WAYS or (name, zero) == ("vera", 2) or f"{name}-{ranks}-{zero}" in ADAPTER_EXPORTS)
    and (zero < 3 or name not in UP_TO_ZERO_2)
)

EXPORTED = {
    "lora": ("config.yaml", ["strategy=lora", "data.eval=eval.jsonl"]),
    "full": ("config.yaml", ["strategy=full", "data.eval=eval.jsonl"]),
    "frozen-head": ("labelled.yaml", []),
    "lora-head": ("labelled.yaml", ["strategy=lora", "strategy.rank=4"]),
    "full-head": ("labelled.yaml", ["strategy=full"]),
    "partial": ("config.yaml", ["strategy=partial", "data.eval=eval.jsonl"]),
}

# Strategies by which some parameters of the base learn, on some layouts: ranks and ZeRO stage.
PARTS = {"partial": "config.yaml", "norm": "config.yaml", "bitfit": "labelled.yaml"}
PARTS_LAYOUTS = ((1, 0), (2, 2), (2, 3))

# Tasks of their own kind of model: a base that is taught before, and few steps on some layouts.
TEXT_TASKS = ("tags", "summary", "pairs")
TEXT_STRATEGIES = {"full": [], "lora": ["strategy.rank=4", "strategy.alpha=8"]}
TEXT_RUNS = tuple(
    (task, strategy)
    for task in TEXT_TASKS
    for strategy in TEXT_STRATEGIES
    if (task, strategy) != ("pairs", "full")  # preferences are learnt by an adapter
)
TEXT_LAYOUTS = ((1, 0), (2, 0), (2, 2), (2, 3))  # ranks and ZeRO stage; the last one exports
TEXT_STEPS, TEXT_HELD_OUT = 4, 9  # in batches of 2: with two ranks, one has nothing at the end

# A head learnt from what its frozen base was seen to make: by which config, and for how many steps.
FEATURES, FEATURE_STEPS = {"head": "labelled.yaml", "tags": "tags.yaml"}, 8

# A base in nf4, on ranks and at a stage; the last one is also stopped and resumed. One in int8.
QUANTIZED_LAYOUTS = ((1, 0), (2, 0), (2, 2), (2, 3))
QUANTIZED_STEPS = 6
LOFTQ_LAYOUTS = ((1, 0), (2, 3))
