"""The cases that the distributed tests run."""

STRATEGIES = {"full": [], "lora": ["strategy.rank=4", "strategy.alpha=8"], "frozen": []}
STAGES = (0, 1, 2, 3)
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
EXPORT_PLACES = ("export, gathering", "export, writing", "export, giving")

EXPORTED = {
    "lora": ("config.yaml", ["strategy=lora", "data.eval=eval.jsonl"]),
    "full": ("config.yaml", ["strategy=full", "data.eval=eval.jsonl"]),
    "frozen-head": ("labelled.yaml", []),
    "lora-head": ("labelled.yaml", ["strategy=lora", "strategy.rank=4"]),
    "full-head": ("labelled.yaml", ["strategy=full"]),
}

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
