"""The baseline for fault injection: a plain transformers Trainer that resumes from its checkpoints.

    torchrun --nproc-per-node 2 benchmarks/plain_trainer.py MODEL ROWS.jsonl OUT

OUT gets the checkpoints, and `losses.jsonl` with one line per step.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Losses(TrainerCallback):
    """Write one line per step, from the first process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "loss": logs["loss"]}) + "\n")


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.rows, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    rows = [
        {"input_ids": [*ids[: options.max_length - 1], tokenizer.eos_token_id]}
        for ids in tokenizer(texts)["input_ids"]
    ]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out),
            max_steps=options.steps,
            save_steps=options.save_every,
            save_total_limit=2,
            per_device_train_batch_size=options.batch,
            learning_rate=options.learning_rate,
            logging_steps=1,
            disable_tqdm=True,
            report_to=[],
            use_cpu=True,
            seed=0,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[Losses(options.out / "losses.jsonl")],
    )
    has_checkpoint = any(options.out.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if has_checkpoint else None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the base")
    parser.add_argument("rows", help="a JSONL file with a text in each row")
    parser.add_argument("out", type=Path, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--save-every", type=int, default=4, help="steps")
    parser.add_argument("--batch", type=int, default=3, help="examples per step and process")
    parser.add_argument("--max-length", type=int, default=64, help="tokens")
    parser.add_argument("--learning-rate", type=float, default=0.003)
    return parser.parse_args()


if __name__ == "__main__":
    main()
