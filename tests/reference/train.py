"""Trains a small LLaVA for three steps with PyTorch, whole and with LoRA, and
keeps the losses and a sample of every gradient.

    python tests/reference/train.py tests/fixtures/models/llava-v5 tests/fixtures/train
"""

import json
import sys
from pathlib import Path

import torch
from models import IMAGE, TILE, pixels
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

STEPS = 3
SAMPLES = 48
ADAM = dict(lr=2e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
CLIP = 1.0
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
LORA = dict(r=4, lora_alpha=8.0, target_modules=rf".*language_model\.layers\.\d+\.[a-z_]+\.({'|'.join(TARGETS)})")
IMAGE_TOKENS = (TILE // 8) ** 2

# Token ids, -1 for an image, and where each learned run starts and ends.
CONVERSATIONS = [
    ([1, 20, -1, 33, 40, 41, 50, 51, 52, 2, 60, 61, 70, 2], [(6, 10), (12, 14)]),
    ([1, 21, 22, 23, 24, 80, 81, 82, 2], [(5, 9)]),
    ([1, -1, 34, -1, 35, 36, 90, 91, 2], [(6, 9)]),
]


def batch():
    rows, labels, images = [], [], 0
    for ids, learned in CONVERSATIONS:
        row, label = [], []
        for at, token in enumerate(ids):
            if token < 0:
                row += [IMAGE] * IMAGE_TOKENS
                label += [-100] * IMAGE_TOKENS
                images += 1
            else:
                row.append(token)
                label.append(token if any(a <= at < b for a, b in learned) else -100)
        rows.append(row)
        labels.append(label)
    longest = max(map(len, rows))
    pad = lambda lists, value: torch.tensor([r + [value] * (longest - len(r)) for r in lists])
    return dict(
        input_ids=pad(rows, 0),
        attention_mask=pad([[1] * len(r) for r in rows], 0),
        pixel_values=pixels(11, images * 3 * TILE * TILE).reshape(images, 3, TILE, TILE),
    ), pad(labels, -100)


def decays(name):
    return not (name.endswith(".bias") or "norm" in name or name.endswith("class_embedding"))


def train(model, trained):
    inputs, labels = batch()
    named = [(n, p) for n, p in model.named_parameters() if trained(n)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    groups = [
        dict(params=[p for n, p in named if decays(n)], weight_decay=ADAM["weight_decay"]),
        dict(params=[p for n, p in named if not decays(n)], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, **{k: v for k, v in ADAM.items() if k != "weight_decay"})
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in named:
            if parameter.grad is not None:
                flat = parameter.grad.flatten()
                stride = max(1, len(flat) // SAMPLES)
                gradients[f"{step}.{clean(name)}"] = flat[::stride][:SAMPLES].clone()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_([p for _, p in named], CLIP).item())
        optimizer.step()
    return dict(losses=losses, norms=norms), gradients


def clean(name):
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default", "")


def main(source, out):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    load = lambda: LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)

    results = {"conversations": CONVERSATIONS, "samples": SAMPLES, "lora": dict(r=4, alpha=8.0, targets=TARGETS)}
    results["full"], gradients = train(load(), lambda name: True)
    save_file(gradients, out / "full.safetensors")

    model = get_peft_model(load(), LoraConfig(lora_dropout=0.0, **LORA))
    adapters = {}
    for seed, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "lora_" in name:
            parameter.data = pixels(1000 + seed, parameter.numel()).reshape(parameter.shape) * 0.1
            adapters[clean(name)] = parameter.data.clone()
    save_file(adapters, out / "adapters.safetensors")
    results["lora_run"], gradients = train(model, lambda name: "lora_" in name or "multi_modal_projector" in name)
    save_file(gradients, out / "lora.safetensors")
    (out / "expected.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
