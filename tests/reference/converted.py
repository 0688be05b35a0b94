"""Compares what transformers makes of a checkpoint that `llava-worker convert` wrote with the results of its source.

    python tests/reference/converted.py CONVERTED tests/fixtures/models/SOURCE
"""
import json
import sys
from pathlib import Path

import models
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

made, source = Path(sys.argv[1]), Path(sys.argv[2])
model = AutoModelForImageTextToText.from_pretrained(made, dtype=torch.float32).eval()
models.IMAGE = model.config.image_token_id
expected = load_file(source / "expected.safetensors")
worst = 0
with torch.no_grad():
    for case in json.loads((source / "expected.json").read_text()):
        sizes = [tuple(image["size"]) for image in case["images"]]
        logits, _, tokens, *_ = models.run(model, case["prompt"], sizes)
        wanted = expected[case["name"] + ".logits"]
        worst = max(worst, (logits[: len(wanted)] - wanted).abs().max().item())
        assert tokens == case["greedy"], case["name"]
print(f"{made.name}: logits differ by {worst:.1e} at most, greedy tokens are equal")
