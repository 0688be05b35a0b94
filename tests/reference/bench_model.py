"""Runs `llava-worker bench` and transformers on one checkpoint in turn, and prints the medians side by side.

    python tests/reference/bench_model.py WORKER MODEL OUT [--rounds 3] [--steps 16] [--batch 1,4,8,16] [--only int4,bf16]

Each figure is kept in OUT, so that `--only` can measure one subject at a time; the table is made of all that is there.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

THREADS = os.cpu_count()
TEXT = 32
OURS = {"none": "llava-worker, bf16 weights", "int8": "llava-worker, int8", "int4": "llava-worker, int4"}
THEIRS = {"f32": "transformers f32", "bf16": "transformers bf16"}


def peer(folder, dtype, steps, batches):
    """The stages of `llava-worker bench` by transformers: the same shapes and as many tokens."""
    import torch
    from transformers import DynamicCache, LlavaForConditionalGeneration

    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    loaded = time.perf_counter() - started
    config = model.config.vision_config
    pixels = torch.randn(1, 3, config.image_size, config.image_size).to(dtype)
    language, embed = model.model.language_model, model.get_input_embeddings()

    def see():
        seen = model.model.get_image_features(pixel_values=pixels)
        seen = getattr(seen, "pooler_output", seen)
        return seen[0] if isinstance(seen, (tuple, list)) else seen.reshape(-1, seen.shape[-1])

    def read(prompt):
        cache = DynamicCache(config=model.config.text_config)
        states = language(inputs_embeds=prompt, past_key_values=cache, use_cache=True).last_hidden_state
        model.lm_head(states[:, -1:])
        return cache

    def timed(work, times):
        all = []
        for _ in range(times):
            start = time.perf_counter()
            result = work()
            all.append(time.perf_counter() - start)
        return result, statistics.median(all)

    stages = []
    with torch.inference_mode():
        features, vision = timed(see, 3)
        ids = (torch.arange(TEXT) * 7919) % model.config.text_config.vocab_size
        prompt = torch.cat([features, embed(ids)])[None]
        for batch in batches:
            # Prompts of one length: the best case of a batch that starts together.
            cache, prefill = timed(lambda: read(prompt), 3 if batch == 1 else 1)
            cache.batch_repeat_interleave(batch)
            last = torch.arange(batch)[:, None]

            def step():
                states = language(inputs_embeds=embed(last), past_key_values=cache, use_cache=True).last_hidden_state
                model.lm_head(states)

            _, decode = timed(step, steps)
            stage = dict(batch=batch, step_seconds=decode, decode_tokens_per_second=batch / decode)
            if batch == 1:
                stage |= dict(vision_seconds=vision, prefill_seconds=prefill)
            stages.append(stage)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(load_seconds=loaded, stages=stages, memory=dict(peak_bytes=held))))


def run(args, subject):
    """One round of a subject, as it prints it."""
    if subject in OURS:
        command = [args.worker, "bench", "--json", "--model", args.model, "--quantization", subject, "--threads", THREADS]
        command += ["--prompt-tokens", TEXT, "--steps", args.steps, "--batch", args.batch, "--repeat", 1]
    else:
        command = [sys.executable, __file__, "peer", args.model, subject, args.steps, args.batch]
    said = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout
    with open(args.out / f"{subject}.jsonl", "a") as file:
        file.write(json.dumps(json.loads(said)) + "\n")


def table(out):
    """Medians of every round that is kept, a line for each subject; None where nothing is."""
    rounds = {}
    for subject in [*OURS, *THEIRS]:
        file = out / f"{subject}.jsonl"
        if file.exists():
            rounds[subject] = [json.loads(line) for line in file.read_text().splitlines()]
    batches = sorted({stage["batch"] for runs in rounds.values() for one in runs for stage in one["stages"]})

    def middle(subject, batch, key):
        found = [s[key] for one in rounds[subject] for s in one["stages"] if s["batch"] == batch and key in s]
        return statistics.median(found) if found else None

    show = lambda value, digits: "–" if value is None else f"{value:,.{digits}f}"
    columns = "".join(f" decode {batch} |" for batch in batches)
    print(f"| {THREADS} threads | load s | memory MiB | vision s | prefill s |{columns}")
    print("|---|" + "---:|" * (4 + len(batches)))
    for subject, runs in rounds.items():
        memory = statistics.median(one["memory"]["peak_bytes"] for one in runs) / 2**20
        load = statistics.median(one["load_seconds"] for one in runs)
        cells = [show(load, 1), show(memory, 0)]
        cells += [show(middle(subject, 1, key), 2) for key in ("vision_seconds", "prefill_seconds")]
        cells += [show(middle(subject, batch, "decode_tokens_per_second"), 1) for batch in batches]
        print(f"| {(OURS | THEIRS)[subject]} | " + " | ".join(cells) + " |")
    print()
    for subject, runs in rounds.items():
        for memory in (one["memory"] for one in runs if "within" in one["memory"]):
            verdict = "within" if memory["within"] else "MORE THAN"
            mib = {key: memory[key] / 2**20 for key in ("peak_bytes", "weight_bytes", "kv_bytes", "allowed_bytes")}
            print(f"{OURS[subject]}: {mib['peak_bytes']:,.0f} MiB, {verdict} weights {mib['weight_bytes']:,.0f} + kv "
                  f"{mib['kv_bytes']:,.0f} + 300 = {mib['allowed_bytes']:,.0f} MiB")
    return all(one["memory"].get("within", True) for runs in rounds.values() for one in runs)


def main():
    if sys.argv[1] == "peer":
        folder, dtype, steps, batches = sys.argv[2:]
        return peer(folder, dtype, int(steps), [int(batch) for batch in batches.split(",")])
    parser = argparse.ArgumentParser()
    for name in ("worker", "model", "out"):
        parser.add_argument(name, type=lambda path: Path(path).resolve())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", default="1,4,8,16")
    parser.add_argument("--only", help="measure these and keep what is there of the others")
    args = parser.parse_args()
    if not args.only:
        shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    subjects = args.only.split(",") if args.only else [*OURS, *THEIRS]
    for round in range(args.rounds):
        for subject in subjects:
            print(f"round {round + 1}: {subject}", file=sys.stderr, flush=True)
            run(args, subject)
    if not table(args.out):
        sys.exit("memory: more than weights, keys and values, and 300 MiB")


if __name__ == "__main__":
    main()
