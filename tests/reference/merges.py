"""Writes fixtures of LLaVA's own ways of merging tiles, which transformers has no words for, from LLaVA's own code.

    python tests/reference/merges.py tests/fixtures/models --llava PATH

PATH is a checkout of LLaVA's repository: its `prepare_inputs_labels_for_multimodal` merges, around transformers' tower
and language model. The weights are those of `original-next`, whose merge (`spatial_unpad`) is checked to come out as
transformers'. Versions: tests/reference/requirements.txt.
"""
import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import models


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def llava_arch(path):
    """The module alone: its package imports far more."""
    folder = Path(path) / "llava"
    stub("llava", __path__=[str(folder)])
    stub("llava.model", __path__=[str(folder / "model")])
    stub("llava.model.multimodal_encoder.builder", build_vision_tower=None)
    stub("llava.model.multimodal_projector.builder", build_vision_projector=None)
    return importlib.import_module("llava.model.llava_arch"), importlib.import_module("llava.mm_utils")


def runner(arch, mm_utils, merge):
    """`models.run` by LLaVA's code."""
    points = [[width, height] for height, width in models.NEXT_PINPOINTS]

    def run(model, prompt, sizes):
        language, head = model.model.language_model, model.lm_head

        class Tower:
            num_patches_per_side = models.TILE // models.PATCH
            config = types.SimpleNamespace(image_size=models.TILE)

            def __call__(self, images):
                return model.model.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]

        tower = Tower()
        inner = types.SimpleNamespace(
            get_vision_tower=lambda: tower,
            mm_projector=model.model.multi_modal_projector,
            embed_tokens=language.embed_tokens,
            image_newline=model.model.image_newline,
        )

        class Whole(arch.LlavaMetaForCausalLM):
            config = types.SimpleNamespace(
                mm_patch_merge_type=merge, image_aspect_ratio="anyres", image_grid_pinpoints=points,
                tokenizer_model_max_length=2048,
            )
            model, device = inner, torch.device("cpu")

            def get_model(self):
                return inner

        grids = [mm_utils.get_anyres_image_grid_shape(size, points, models.TILE) for size in sizes]
        tiles = [(1 + columns * rows, (columns, rows)) for columns, rows in grids]
        side = models.TILE
        images = [
            models.pixels(index, count * 3 * side * side).reshape(count, 3, side, side)
            for index, (count, _) in enumerate(tiles)
        ]

        def embed(ids, images, sizes):
            ids = torch.tensor([[-200 if token < 0 else token for token in ids]])
            if not images:
                return language.embed_tokens(ids)
            return Whole().prepare_inputs_labels_for_multimodal(ids, None, None, None, None, images, sizes)[4]

        features = [embed([1, -1], [image], [size])[0, 1:] for image, size in zip(images, sizes)]
        embeds = embed(prompt, images, sizes)
        tokens, gaps, first = [], [], None
        while len(tokens) < models.GREEDY:
            said = language.embed_tokens(torch.tensor([tokens], dtype=torch.long))
            states = language(inputs_embeds=torch.cat([embeds, said], 1)).last_hidden_state
            logits = head(states)[0, -1]
            first = logits if first is None else first
            top = logits.topk(2).values
            gaps.append((top[0] - top[1]).item())
            tokens.append(int(logits.argmax()))
        return first, features, tokens, min(gaps), tiles

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--llava", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    arch, mm_utils = llava_arch(args.llava)
    model = models.randomise(models.llava_next(models.text("llama")), 2)

    known = load_file(args.out / "original-next" / "expected.safetensors")
    described = {case["name"]: case for case in json.loads((args.out / "original-next" / "expected.json").read_text())}
    run = runner(arch, mm_utils, "spatial_unpad")
    with torch.no_grad():
        for case in described.values():
            logits, features, tokens, _, _ = run(model, case["prompt"], [image["size"] for image in case["images"]])
            worst = (logits - known[case["name"] + ".logits"]).abs().max().item()
            assert worst < 1e-4 and tokens == case["greedy"], (case["name"], worst)
            assert [len(feature) for feature in features] == [image["tokens"] for image in case["images"]]

    for merge in ("flat", "spatial"):
        folder = args.out / f"original-{merge}"
        folder.mkdir(exist_ok=True)
        config = models.original(model, "../clip-tiny", **models.ANYRES | {"mm_patch_merge_type": merge})
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors, cases = models.compute(model, 2, runner(arch, mm_utils, merge))
        save_file(tensors, folder / "expected.safetensors")
        (folder / "expected.json").write_text(json.dumps(cases) + "\n")
        weights = folder / "model.safetensors"
        weights.unlink(missing_ok=True)
        weights.symlink_to("../original-next/model.safetensors")


if __name__ == "__main__":
    main()
