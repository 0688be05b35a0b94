"""Makes small random LLaVA models of every family and layout, and what
transformers computes with them.

    python tests/reference/models.py tests/fixtures/models

Each folder below the output is a checkpoint as a user would have it, with
`expected.safetensors` and `expected.json` beside the weights: prompts, image
sizes, the logits after the prompt, the features of every image, and 64 greedy
tokens. Weights are random in f16; transformers computes in f32 with them.
"""

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import select_best_resolution

VOCAB = 128
IMAGE = 127
TILE = 32
PATCH = 8
GREEDY = 64

# Height first, as transformers lists them.
NEXT_PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
ONEVISION_PINPOINTS = [[TILE * a, TILE * b] for a in range(1, 7) for b in range(1, 7)]


def pixels(seed, count):
    """Numbers from -2 to 2 that the tests make again from the same seed."""
    index = np.arange(count, dtype=np.uint64)
    mixed = (index * np.uint64(2654435761) + np.uint64(seed) * np.uint64(40503) + np.uint64(12345)) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    mixed = mixed ^ (mixed >> np.uint64(13))
    return torch.from_numpy((mixed.astype(np.float64) / 2**32 * 4 - 2).astype(np.float32))


def randomise(model, seed):
    """Weights large enough that every part matters to the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.state_dict().items():
        if not parameter.is_floating_point():
            continue
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "layrnorm" in name:
            values = values * 0.2 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            values = values * 0.2
        elif "embed" in name or "newline" in name:
            values = values * 0.8
        elif "patch" in name:
            values = values * 0.1
        else:
            values = values * 1.4 / math.sqrt(parameter.shape[-1])
        parameter.copy_(values.half().float())
    model.tie_weights()
    return model.eval()


def text(kind, **more):
    base = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base.update(more)
    return {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[kind](**base)


def vision(kind, **more):
    base = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
    )
    base.update(more)
    if kind == "siglip":
        return SiglipVisionConfig(vision_use_head=False, **base)
    return CLIPVisionConfig(projection_dim=32, **base)


def llava(text_config, vision_config, **more):
    config = LlavaConfig(text_config=text_config, vision_config=vision_config, image_token_index=IMAGE, **more)
    return LlavaForConditionalGeneration(config)


def llava_next(text_config):
    config = LlavaNextConfig(
        text_config=text_config,
        vision_config=vision("clip"),
        image_token_index=IMAGE,
        image_grid_pinpoints=NEXT_PINPOINTS,
    )
    return LlavaNextForConditionalGeneration(config)


def onevision():
    config = LlavaOnevisionConfig(
        text_config=text("qwen2", num_key_value_heads=2, rope_theta=1e6),
        vision_config=vision("siglip"),
        image_token_index=IMAGE,
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def tiles_of(model, size, images):
    """Tiles of an image of (width, height), and its grid (columns, rows)."""
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    single = isinstance(model, LlavaOnevisionForConditionalGeneration) and images > 1
    if pinpoints is None or single:
        return 1, None
    height, width = select_best_resolution((size[1], size[0]), pinpoints)
    grid = (width // TILE, height // TILE)
    return 1 + grid[0] * grid[1], grid


def run(model, prompt, sizes):
    """The logits after the prompt, each image's features and greedy tokens.
    The prompt's -1 are image slots."""
    tiles = [tiles_of(model, size, len(sizes)) for size in sizes]
    values = [
        pixels(index, count * 3 * TILE * TILE).reshape(count, 3, TILE, TILE) for index, (count, _) in enumerate(tiles)
    ]
    more = {}
    features = []
    if sizes:
        most = max(count for count, _ in tiles)
        padded = torch.zeros(len(sizes), most, 3, TILE, TILE)
        for index, value in enumerate(values):
            padded[index, : len(value)] = value
        plain = isinstance(model, LlavaForConditionalGeneration)
        more["pixel_values"] = padded[:, 0] if plain else padded
        if not plain:
            more["image_sizes"] = torch.tensor([[height, width] for width, height in sizes])
        if isinstance(model, LlavaOnevisionForConditionalGeneration):
            more["batch_num_images"] = torch.tensor([len(sizes)])
        output = model.model.get_image_features(**more)
        output = getattr(output, "pooler_output", output)
        if isinstance(output, torch.Tensor):
            output = list(output)
        features = [feature.reshape(-1, feature.shape[-1]) for feature in output]
    ids = []
    image = iter(features)
    for token in prompt:
        ids.extend([IMAGE] * len(next(image)) if token < 0 else [token])
    tokens, gaps = [], []
    first = None
    while len(tokens) < GREEDY:
        logits = model(input_ids=torch.tensor([ids + tokens]), **more).logits[0, -1]
        first = logits if first is None else first
        top = logits.topk(2).values
        gaps.append((top[0] - top[1]).item())
        tokens.append(int(logits.argmax()))
    return first, features, tokens, min(gaps), tiles


def cases(model, seed):
    """Prompts for a model: text alone, one image, two images."""
    generator = np.random.default_rng(seed)

    def words(count):
        return [int(word) for word in generator.integers(3, 120, count)]

    several = [(50, 40), (20, 70), (64, 64), (300, 40), (37, 333), (200, 190)]
    plain = isinstance(model, LlavaForConditionalGeneration)
    yield "text", [1, *words(9)], []
    for width, height in several[: 1 if plain else None]:
        yield f"one-{width}x{height}", [1, *words(4), -1, *words(5)], [(width, height)]
    yield "two", [1, *words(3), -1, *words(4), -1, *words(2)], [(50, 40), (30, 90)]


@torch.no_grad()
def compute(model, seed, run=run):
    tensors, described = {}, []
    for name, prompt, sizes in cases(model, seed):
        for attempt in range(20):
            logits, features, tokens, gap, tiles = run(model, prompt, sizes)
            if gap > 2e-3:
                break
            prompt = [3 + (token * 7 + attempt) % 110 if 2 < token < 120 else token for token in prompt]
        else:
            raise SystemExit(f"{name}: two greedy tokens are too close to tell apart ({gap})")
        tensors[f"{name}.logits"] = logits
        for index, feature in enumerate(features):
            # The first and last rows, and the sum of all: enough to see any change.
            tensors[f"{name}.features.{index}.ends"] = torch.cat([feature[:2], feature[-2:]])
            tensors[f"{name}.features.{index}.mean"] = feature.double().mean(0).float()
        described.append(
            {
                "name": name,
                "prompt": prompt,
                "images": [
                    {"size": size, "tiles": count, "grid": grid, "tokens": len(feature)}
                    for size, (count, grid), feature in zip(sizes, tiles, features)
                ],
                "greedy": tokens,
            }
        )
    return tensors, described


CLASSIC = [
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.image_newline", "image_newline"),
]
NESTED = [("model.vision_tower.", "model.vision_tower.vision_model.")]
ORIGINAL = [
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
]


def renamed(model, rules):
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.get_text_config().tie_word_embeddings:
            continue
        for old, new in rules:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        tensors[name] = tensor.half().contiguous().clone()
    return tensors


def write(folder, config, tensors, expected, shards=1):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        index = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            save_file(part, folder / file)
            index |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=0) + "\n")
    if expected is not None:
        save_file(expected[0], folder / "expected.safetensors")
        (folder / "expected.json").write_text(json.dumps(expected[1]) + "\n")


def sparse(model):
    """A config as the hub's old files have it: only what differs from the defaults."""
    full = model.config.to_dict()
    keep = {key: full[key] for key in ("architectures", "model_type", "image_token_index") if key in full}
    keep["architectures"] = [type(model).__name__]
    for key in (
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "image_grid_pinpoints",
        "vision_aspect_ratio",
        "use_image_newline_parameter",
    ):
        if key in full:
            keep[key] = full[key]
    inner = model.config.text_config.to_diff_dict()
    inner.pop("rope_parameters", None)
    inner["rope_theta"] = model.config.text_config.rope_parameters["rope_theta"]
    inner["model_type"] = model.config.text_config.model_type
    keep["text_config"] = inner
    keep["vision_config"] = model.config.vision_config.to_diff_dict()
    keep["vision_config"]["model_type"] = model.config.vision_config.model_type
    keep["torch_dtype"] = "float16"
    return keep


def full(model):
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "float16"
    return config


def original(model, tower, **more):
    """LLaVA's own config.json: flat, width before height."""
    config = model.config.text_config.to_dict()
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    kind = config["model_type"]
    config |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}[kind],
        "mm_vision_tower": tower,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "use_mm_proj": True,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "torch_dtype": "float16",
    }
    return config | more


def tower_config(model):
    config = model.config.vision_config.to_dict()
    config["model_type"] = {"clip_vision_model": "clip_vision_model", "siglip_vision_model": "siglip_vision_model"}[
        config["model_type"]
    ]
    return config


def split_tower(tensors):
    prefix = "model.vision_tower.vision_tower."
    tower = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return rest, tower


ANYRES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[width, height] for height, width in NEXT_PINPOINTS],
    "unfreeze_mm_vision_tower": True,
}


def overlays(out, model):
    """A language model as LLaVA's base, a projector for it, and a LoRA that
    peft made of it, with the projector as LLaVA's non_lora_trainables."""
    tensors, tower = split_tower(renamed(model, ORIGINAL))
    projector = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}
    base = {name: tensor for name, tensor in tensors.items() if name not in projector}
    config = original(model, "clip-tiny")
    write(out / "lora-base", model.config.text_config.to_dict(), base, None)

    write(out / "projector-only", config, {}, compute(model, 7))
    (out / "projector-only" / "model.safetensors").unlink()
    save_file(projector, out / "projector-only" / "mm_projector.safetensors")

    language = LlamaForCausalLM(model.config.text_config)
    weights = {name: tensor.float() for name, tensor in base.items()}
    language.load_state_dict(weights)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(language, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(8)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.2).half().float()
    folder = out / "lora"
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    keep = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "fan_in_fan_out")
    (folder / "adapter_config.json").write_text(json.dumps({key: settings[key] for key in keep}, indent=1) + "\n")
    adapter = {name: tensor.half() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(adapter, folder / "adapter_model.safetensors")
    trainable = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    save_file(trainable, folder / "non_lora_trainables.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    merged = adapted.merge_and_unload()
    whole = copy.deepcopy(model)
    whole.model.language_model.load_state_dict(merged.model.state_dict())
    expected = compute(whole, 9)
    save_file(expected[0], folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(expected[1]) + "\n")


def projectors(out):
    """LLaVA's other projectors on transformers' towers and language models, each with another rotary scaling."""
    hidden = 32
    gelu = torch.nn.GELU
    line = torch.nn.Linear
    linear = {"rope_type": "linear", "factor": 2.0}
    llama3 = {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    made = {
        "linear": (line(hidden, hidden), "cls_patch", linear, "linear"),
        "mlp3x": (
            torch.nn.Sequential(line(hidden, hidden), gelu(), line(hidden, hidden), gelu(), line(hidden, hidden)),
            "patch", llama3, "mlp3x_gelu",
        ),
        "identity": (torch.nn.Identity(), "patch", None, "identity"),
    }
    for seed, (name, (projector, feature, scaling, kind)) in enumerate(made.items(), 20):
        more = {"rope_parameters": {"rope_theta": 10000.0, **scaling}} if scaling else {}
        strategy = "full" if feature == "cls_patch" else "default"
        model = llava(text("llama", **more), vision("clip"), vision_feature_select_strategy=strategy)
        model.model.multi_modal_projector = projector
        model = randomise(model, seed)
        rules = [("model.multi_modal_projector.", "model.mm_projector."), *ORIGINAL]
        config = original(
            model, "vision_tower", mm_projector_type=kind, mm_vision_select_feature=feature, rope_scaling=scaling,
            vision_config=tower_config(model),
        )
        write(out / f"original-{name}", config, renamed(model, rules), compute(model, seed))


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    model = randomise(llava(text("llama"), vision("clip")), 1)
    expected = compute(model, 1)
    write(out / "llava-classic", sparse(model), renamed(model, CLASSIC), expected, shards=3)
    write(out / "llava-nested", full(model), renamed(model, NESTED), expected)
    copy.deepcopy(model).half().save_pretrained(out / "llava-v5")
    for extra in (out / "llava-v5").glob("generation_config.json"):
        extra.unlink()
    save_file(expected[0], out / "llava-v5" / "expected.safetensors")
    (out / "llava-v5" / "expected.json").write_text(json.dumps(expected[1]) + "\n")
    tensors = renamed(model, ORIGINAL)
    rest, tower = split_tower(tensors)
    write(out / "original-outside", original(model, "openai/clip-tiny"), rest, expected)
    write(out / "clip-tiny", tower_config(model), tower, None)
    inside = original(model, "vision_tower")
    write(out / "original-inside", inside, tensors, expected)
    (out / "original-inside" / "vision_tower").mkdir()
    (out / "original-inside" / "vision_tower" / "config.json").write_text(json.dumps(tower_config(model), indent=1) + "\n")

    overlays(out, model)

    model = randomise(llava_next(text("llama")), 2)
    expected = compute(model, 2)
    write(out / "next-vicuna", sparse(model), renamed(model, CLASSIC), expected)
    config = original(model, "../clip-tiny", **ANYRES)
    write(out / "original-next", config, renamed(model, ORIGINAL), expected)

    model = randomise(llava_next(text("mistral", num_key_value_heads=2, sliding_window=24)), 3)
    write(out / "next-mistral", full(model), renamed(model, []), compute(model, 3))

    model = randomise(llava_next(text("llama", num_key_value_heads=1, rope_theta=5e6, num_attention_heads=7, hidden_size=56)), 4)
    write(out / "next-yi", sparse(model), renamed(model, CLASSIC), compute(model, 4))

    tied = text("qwen2", num_key_value_heads=2, rope_theta=1e6, tie_word_embeddings=True)
    model = llava(
        tied, vision("siglip"), vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True
    )
    model = randomise(model, 5)
    write(out / "interleave", sparse(model), renamed(model, CLASSIC), compute(model, 5))

    model = randomise(onevision(), 6)
    expected = compute(model, 6)
    write(out / "onevision", full(model), renamed(model, []), expected)
    tensors = renamed(model, ORIGINAL)
    config = original(
        model,
        "siglip-tiny",
        image_aspect_ratio="anyres_max_9",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints="(1x1),...,(6x6)",
        vision_config=tower_config(model) | {"num_hidden_layers": 4},
    )
    write(out / "original-onevision", config, tensors, expected)

    projectors(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
