"""The baseline for start-up time: LoRA with transformers and PEFT alone.

    python benchmarks/plain_lora.py MODEL ROWS.jsonl --mark FILE

FILE is created after the first optimizer step.
"""

import argparse
import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.rows, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    rows = [
        [*ids[: options.max_length - 1], tokenizer.eos_token_id]
        for ids in tokenizer(texts)["input_ids"]
    ]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=options.learning_rate, weight_decay=0.0)
    order = torch.randperm(len(rows)).tolist()
    for step in range(options.steps):
        examples = [
            rows[index] for index in order[step * options.batch : (step + 1) * options.batch]
        ]
        batch = tokenizer.pad({"input_ids": examples}, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with open(options.mark, "a", encoding="utf-8") as mark:
            mark.write(f"{float(loss.detach())}\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the base")
    parser.add_argument("rows", help="a JSONL file with a text in each row")
    parser.add_argument("--mark", required=True, help="file that gets one loss per step")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    return parser.parse_args()


if __name__ == "__main__":
    main()
