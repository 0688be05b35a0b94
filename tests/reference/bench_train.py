"""Times optimiser steps of the demo model: this project's trainer and PyTorch, in turn, on
the same records, and prints the medians as a table.

    python tests/reference/bench_train.py WORKER MODEL DATA OUT [--rounds 3] [--steps 40]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoConfig, LlavaForConditionalGeneration

BATCH = 16
THREADS = os.cpu_count()
SETTINGS = """\
model: {model}
from_scratch: true
tokenizer: {data}/tokenizer.json
output: {out}
seed: 1
threads: {threads}
stages:
  - {{kind: full, data: {data}/train.json, steps: {steps}, batch: {batch}, micro_batch: 4, optimizer: {{rate: 1.0e-3}}}}
"""


def ours(worker, model, data, out, steps):
    """Tokens/s, GFLOP/s and seconds by phase of the trainer's own journal, without its first ten steps."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = out / "train.yaml"
    settings.write_text(SETTINGS.format(model=model, data=data, out=out / "run", steps=steps + 10, batch=BATCH, threads=THREADS))
    subprocess.run([worker, "train", "--config", settings], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = [json.loads(line) for line in (out / "run/journal.jsonl").read_text().splitlines()]
    steps = [e for e in events if e["event"] == "step"][1:]
    middle = lambda key: statistics.median(e[key] for e in steps)
    spent = {key: sum(e["spent"][key] for e in steps) for key in steps[0]["spent"]}
    return middle("tokens_per_second"), middle("gflops"), spent


class Records:
    """LLaVA's records as padded batches: ids, labels of the assistant's words, pixels."""

    def __init__(self, config, data):
        self.data = data
        self.records = json.loads((data / "train.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
        self.image = config.image_token_id
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.places = side * side

    def encode(self, record):
        ids, labels = [1], [-100]
        for turn in record["conversations"]:
            said = turn["from"] == "gpt"
            text = turn["value"] + "</s>" if said else "USER: " + turn["value"] + " ASSISTANT: "
            for i, piece in enumerate(text.split("<image>")):
                if i > 0:
                    ids += [self.image] * self.places
                    labels += [-100] * self.places
                tokens = self.tokenizer.encode(piece, add_special_tokens=False).ids
                ids += tokens
                labels += tokens if said else [-100] * len(tokens)
        return ids, labels

    def batch(self, step):
        some = [self.records[(step * BATCH + i) % len(self.records)] for i in range(BATCH)]
        encoded = [self.encode(record) for record in some]
        longest = max(len(ids) for ids, _ in encoded)
        pad = lambda rows, value: torch.tensor([row + [value] * (longest - len(row)) for row in rows])
        images = [numpy.asarray(Image.open(self.data / record["image"]), dtype=numpy.float32) for record in some]
        pixels = torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1.0
        tokens = sum(len(ids) for ids, _ in encoded)
        mask = pad([[1] * len(ids) for ids, _ in encoded], 0)
        return tokens, dict(
            input_ids=pad([ids for ids, _ in encoded], 0), attention_mask=mask, pixel_values=pixels
        ), pad([labels for _, labels in encoded], -100)


def torchs(model, data, steps):
    """Tokens/s of PyTorch and its seconds by phase, without its first five steps."""
    torch.set_num_threads(THREADS)
    config = AutoConfig.from_pretrained(model)
    net = LlavaForConditionalGeneration(config).float().train()
    records = Records(config, data)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    rates, spent = [], dict(load=0.0, forward=0.0, backward=0.0, update=0.0)
    for step in range(steps + 5):
        marks = [time.perf_counter()]
        mark = lambda: marks.append(time.perf_counter())
        tokens, inputs, labels = records.batch(step)
        mark()
        logits = net(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        mark()
        adam.zero_grad()
        loss.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        mark()
        if step >= 5:
            rates.append(tokens / (marks[-1] - marks[0]))
            for phase, begin, end in zip(spent, marks, marks[1:]):
                spent[phase] += end - begin
    return statistics.median(rates), spent


def main():
    parser = argparse.ArgumentParser()
    for name in ("worker", "model", "data", "out"):
        parser.add_argument(name, type=lambda path: Path(path).resolve())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    rates, flops, theirs, where = [], [], [], []
    for round in range(args.rounds):
        rate, gflops, spent = ours(args.worker, args.model, args.data, args.out, args.steps)
        other, others = torchs(args.model, args.data, args.steps)
        print(f"round {round + 1}: {rate:.0f} tokens/s, PyTorch {other:.0f}", flush=True)
        rates.append(rate), flops.append(gflops / rate), theirs.append(other), where.append((spent, others))
    middle = statistics.median
    share = lambda spent, phase: f"{100 * spent.get(phase, 0) / sum(spent.values()):.0f} %"
    print(f"\n| {THREADS} threads, f32 | tokens/s | GFLOP/s | load | forward | backward | update |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, rate, spent in (
        ("llava-worker train", middle(rates), where[-1][0]),
        (f"PyTorch {torch.__version__.split('+')[0]}", middle(theirs), where[-1][1]),
    ):
        shares = " | ".join(share(spent, phase) for phase in ("load", "forward", "backward", "update"))
        print(f"| {name} | {rate:,.0f} | {rate * middle(flops):.0f} | {shares} |")
    ratio = middle(a / b for a, b in zip(rates, theirs))
    print(f"\nllava-worker trains {ratio:.2f} times as fast (median of {args.rounds} rounds).")


if __name__ == "__main__":
    main()
