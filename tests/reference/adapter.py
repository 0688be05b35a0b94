"""Loads an adapter that `llava-worker train` wrote with peft, and compares its logits with those
of the finished model, which has the adapter folded in (in f16, hence the tolerance).

    python tests/reference/adapter.py BASE RUN
"""

import sys
from pathlib import Path

import torch
from models import pixels
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

TOLERANCE = 2e-2


def main(base, run):
    load = lambda source: LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    merged, plain = load(run / "model"), load(base)
    side, image = plain.config.vision_config.image_size, plain.config.image_token_id
    places = (side // plain.config.vision_config.patch_size) ** 2
    ids = torch.tensor([[1, 20, *[image] * places, 33, 40, 41, 50, 51, 52]])
    inputs = dict(input_ids=ids, pixel_values=pixels(5, 3 * side * side).reshape(1, 3, side, side))
    with torch.no_grad():
        before = plain(**inputs).logits
        adapted = PeftModel.from_pretrained(plain, run / "adapter")
        projector = load_file(run / "adapter/non_lora_trainables.safetensors")
        known = dict(adapted.base_model.model.named_parameters())
        for name, tensor in projector.items():
            [parameter] = [p for n, p in known.items() if n.endswith(name.removeprefix("model."))]
            parameter.copy_(tensor)
        after, folded = adapted(**inputs).logits, merged(**inputs).logits
    moved, apart = (after - before).abs().max().item(), (after - folded).abs().max().item()
    print(f"the adapter moves logits by up to {moved:.4f}; peft and the finished model differ by {apart:.5f}")
    assert moved > 10 * TOLERANCE or apart < 0.1 * moved, "the adapter hardly does anything: train longer"
    assert apart < TOLERANCE


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
