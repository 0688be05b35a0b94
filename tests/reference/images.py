"""Writes tests/fixtures/images: what Pillow, transformers and LLaVA make of pictures.

    python tests/reference/images.py --llava PATH

PATH is a checkout of LLaVA's own repository; only its functions
for images are run. Versions: tests/reference/requirements.txt.
"""
import argparse
import csv
import hashlib
import importlib.util
import io
import json
import math
import pathlib
import shutil
import struct
import sys
import tempfile
import types

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer, models
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "images"
NEXT_POINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


def pattern(width, height):
    """A picture with edges and fine detail that the tests can make again by arithmetic."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return (((x * 7 + y * 13 + c * 29) ^ ((x * y) >> 3) ^ ((x // 5 + y // 3) % 2 * 200)) & 255).astype(np.uint8)


def original_module(path, name):
    """LLaVA's mm_utils alone: its package imports far more than images need."""
    package = types.ModuleType("llava")
    package.__path__ = [str(pathlib.Path(path) / "llava")]
    sys.modules["llava"] = package
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(path) / "llava" / "mm_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for key in [key for key in sys.modules if key == "llava" or key.startswith("llava.")]:
        del sys.modules[key]
    return module


# --- pixel tensors -----------------------------------------------------------------------------


def case(name, size, images, values, mean, std):
    """One case: levels of every tile as a digest, and a few normalised values to compare as numbers."""
    values = np.asarray(values, dtype=np.float64)
    mean, std = np.array(mean)[None, :, None, None], np.array(std)[None, :, None, None]
    levels = (values * std + mean) * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    flat = values.reshape(-1)
    at = [int(flat.size * part / 11) for part in range(11)]
    return {
        "processor": name,
        "size": size,
        "images": images,
        "tiles": values.shape[0],
        "levels_sha256": hashlib.sha256(levels.round().astype(np.uint8).tobytes()).hexdigest(),
        "values": [[i, round(float(flat[i]), 6)] for i in at],
    }


def nested(name, processor, folder):
    """The same settings where transformers 5 saves them: inside the file of the whole processor."""
    words = {"a": 0, "<image>": 1, "<video>": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")))
    more = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    if name == "next":
        whole = LlavaNextProcessor(processor, tokenizer, **more)
    elif name == "onevision":
        # Its processor wants one for videos too, which PyTorch's own library makes: only this file is of interest.
        whole = LlavaProcessor(processor, tokenizer, patch_size=14, vision_feature_select_strategy="full")
    else:
        whole = LlavaProcessor(processor, tokenizer, **more)
    with tempfile.TemporaryDirectory() as saved:
        whole.save_pretrained(saved)
        folder.mkdir(exist_ok=True)
        shutil.copy(pathlib.Path(saved) / "processor_config.json", folder)


def pixels(llava):
    clip = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    edge = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    wide = dict(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    both = dict(size={"height": 54, "width": 54})
    next_points = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    ov_points = [[54 * a, 54 * b] for a in range(1, 7) for b in range(1, 7)]
    processors = {
        "crop": (CLIPImageProcessorPil(**edge, **clip), clip),
        "crop_inside": (CLIPImageProcessorPil(**wide, **clip), clip),
        "pad": (LlavaImageProcessorPil(do_pad=True, **edge, **clip), clip),
        "stretch": (SiglipImageProcessorPil(**both, **half), half),
        "next": (LlavaNextImageProcessorPil(image_grid_pinpoints=next_points, do_pad=False, **edge, **clip), clip),
        "onevision": (LlavaOnevisionImageProcessorPil(image_grid_pinpoints=ov_points, do_pad=False, resample=3, **both, **half), half),
    }
    for name, (processor, _) in processors.items():
        folder = OUT / "processors" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict(), indent=1, default=str, sort_keys=True) + "\n")
        nested(name, processor, folder / "nested")
    sizes = [(1, 1), (1, 90), (90, 1), (2, 3), (56, 56), (54, 54), (55, 57), (57, 55), (64, 64), (112, 56), (56, 112),
             (100, 30), (30, 100), (200, 150), (150, 200), (333, 250), (250, 333), (311, 97), (97, 311), (640, 480),
             (17, 400), (400, 17), (1024, 31), (113, 113), (225, 224)]
    cases = []
    for width, height in sizes:
        image = Image.fromarray(pattern(width, height))
        for name, (processor, norm) in processors.items():
            out = processor(image, return_tensors="np")
            values = np.asarray(out["pixel_values"])
            values = values[0] if values.ndim == 5 else values
            cases.append(case(name, [width, height], 1, values, norm["image_mean"], norm["image_std"]))
        out = processors["onevision"][0]([[image, image]], return_tensors="np")
        cases.append(case("onevision", [width, height], 2, np.asarray(out["pixel_values"])[0], *half.values()))
        # The original code, around transformers' own CLIP processor.
        clip_processor = processors["crop"][0]
        shim = types.SimpleNamespace(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_mean=clip["image_mean"],
            preprocess=lambda image, return_tensors=None: clip_processor(image, return_tensors="pt"),
        )
        for ratio in ("pad", "anyres"):
            config = types.SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=next_points)
            values = llava.process_images([image], shim, config)[0].numpy()
            values = values if values.ndim == 4 else values[None]
            cases.append(case(f"original_{ratio}", [width, height], 1, values, *clip.values()))
    (OUT / "pixels.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


# --- token counts ------------------------------------------------------------------------------


def original_tokens(llava, size, points, side, tile, most=None):
    """prepare_inputs_labels_for_multimodal's arithmetic, through LLaVA's own grid choice."""
    columns, rows = llava.get_anyres_image_grid_shape(size, points, tile)
    width, height = columns * side, rows * side
    if size[0] / size[1] > width / height:
        new = int(size[1] * (width / size[0]))
        height -= 2 * ((height - new) // 2)
    else:
        new = int(size[0] * (height / size[1]))
        width -= 2 * ((width - new) // 2)
    if most:
        times = math.sqrt(height * width / (most * side**2))
        if times > 1.1:
            height, width = int(height // times), int(width // times)
    return side * side + height * (width + 1)


def counts(llava):
    ov_points = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
    rng = np.random.default_rng(7)
    sizes = {(20, 31), (336, 336), (672, 672), (640, 480), (480, 640), (1920, 1080), (1, 1), (1, 4000), (4000, 1), (335, 337)}
    sizes |= {(w, h) for w in (50, 100, 335, 336, 337, 500, 672, 1008, 1344, 2304, 3000) for h in (50, 100, 335, 336, 337, 500, 672, 1008, 1344, 2304, 3000)}
    while len(sizes) < 420:
        top = int(rng.choice([340, 1400, 6000]))
        sizes.add((int(rng.integers(1, top)), int(rng.integers(1, top))))
    nxt = LlavaNextProcessor.__new__(LlavaNextProcessor)
    nxt.image_processor = types.SimpleNamespace(image_grid_pinpoints=[list(p) for p in NEXT_POINTS])
    nxt.patch_size, nxt.num_additional_image_tokens, nxt.vision_feature_select_strategy = 14, 1, "default"
    ov = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    ov.image_processor = types.SimpleNamespace(image_grid_pinpoints=ov_points)
    ov.num_image_tokens, ov.vision_aspect_ratio = 729, "anyres_max_9"
    with open(OUT / "token_counts.csv", "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["width", "height", "next_hf", "next_original", "onevision_hf", "onevision_original"])
        for w, h in sorted(sizes):
            rows.writerow([
                w, h,
                nxt._get_number_of_features(h, w, 336, 336) - 1,
                original_tokens(llava, (w, h), NEXT_POINTS, 24, 336),
                ov._get_number_of_features(h, w, 384, 384),
                original_tokens(llava, (w, h), ov_points, 27, 384, 9),
            ])


# --- files of every colour type ------------------------------------------------------------------


def files():
    folder = OUT / "files"
    folder.mkdir(parents=True, exist_ok=True)
    base = Image.fromarray(pattern(37, 23))
    smooth = Image.fromarray(np.stack([np.add.outer(np.arange(40) * 3, np.arange(56) * 2) % 256] * 3, -1).astype(np.uint8))
    alpha = Image.fromarray((pattern(37, 23)[..., 0] // 2 + 60))

    def with_alpha(image):
        image = image.copy()
        image.putalpha(alpha)
        return image

    palette = base.quantize(31)
    clear = palette.copy()
    clear.info["transparency"] = 3
    wide16 = (pattern(37, 23).astype(np.uint16) << 8) | 77
    made = {
        "rgb.png": base, "rgba.png": with_alpha(base), "gray.png": base.convert("L"), "gray_alpha.png": with_alpha(base.convert("L")),
        "one_bit.png": base.convert("1"), "palette.png": palette, "palette_clear.png": clear, "rgb.gif": palette, "clear.gif": clear,
        "rgb.webp": base, "rgba.webp": with_alpha(base), "one_by_n.png": Image.fromarray(pattern(1, 300)), "n_by_one.png": Image.fromarray(pattern(300, 1)),
    }
    for name, image in made.items():
        extra = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        if "clear" in name:
            extra["transparency"] = 3
        image.save(folder / name, **extra)
    second = Image.fromarray(255 - pattern(37, 23)).quantize(31)
    palette.save(folder / "animated.gif", save_all=True, append_images=[second], duration=50)
    smooth.save(folder / "lossy.webp", quality=90)
    png16(folder / "rgb16.png", wide16, 2)
    png16(folder / "gray16.png", wide16[..., :1], 0)
    for subsampling, name in ((0, "444"), (1, "422"), (2, "420")):
        smooth.save(folder / f"jpeg_{name}.jpg", quality=92, subsampling=subsampling)
    smooth.save(folder / "progressive.jpg", quality=92, progressive=True)
    smooth.convert("L").save(folder / "gray.jpg", quality=92)
    smooth.convert("CMYK").save(folder / "cmyk.jpg", quality=92)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        smooth.crop((0, 0, 32, 16)).save(folder / f"turned_{turn}.jpg", quality=95, subsampling=0, exif=exif)
    base.save(folder / "turned_6.png", exif=exif_of(6))
    base.save(folder / "turned_8.webp", lossless=True, exif=exif_of(8))
    for path in sorted(folder.iterdir()):
        if path.suffix == ".rgb":
            continue
        image = ImageOps.exif_transpose(Image.open(path))
        rgb = np.asarray(image.convert("RGB"))
        if path.name == "gray16.png":  # Pillow clips to white here; the upper byte is the picture.
            rgb = np.repeat((wide16[..., :1] >> 8).astype(np.uint8), 3, 2)
        path.with_name(path.name + ".rgb").write_bytes(struct.pack("<II", rgb.shape[1], rgb.shape[0]) + rgb.tobytes())


def exif_of(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def png16(path, samples, colour):
    import zlib
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--llava", required=True)
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    llava = original_module(args.llava, "llava_mm_utils")
    pixels(llava)
    counts(llava)
    files()
