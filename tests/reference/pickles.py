"""Writes tests/fixtures/pickles: a checkpoint as torch.save writes it, the same in the format of before PyTorch 1.6 and as
safetensors, one with other things beside its tensors, and a hostile one."""
import os
import pathlib

import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "pickles"
(OUT / "checkpoint").mkdir(parents=True, exist_ok=True)
for folder in ("hostile", "legacy", "trainer"):
    (OUT / folder).mkdir(exist_ok=True)
torch.manual_seed(1)
base = torch.randn(6, 5)
first = {
    "single": torch.randn(3, 4), "half": torch.randn(7).half(), "brain": torch.randn(2, 3, 2).bfloat16(),
    "transposed": torch.randn(4, 3).t(), "rows_of_another": base[2:5],
}
second = {"whole": base, "ids": torch.arange(9), "scalar": torch.tensor(2.5)}
for number, tensors in ((1, first), (2, second)):
    torch.save(tensors, OUT / "checkpoint" / f"pytorch_model-0000{number}-of-00002.bin")
(OUT / "checkpoint" / "config.json").write_text("{}\n")
everything = {**first, **second}
torch.save(everything, OUT / "legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
(OUT / "legacy" / "config.json").write_text("{}\n")
# What a trainer keeps: parameters below a name, a view with gaps, and things that are no tensors.
inner = {
    "parameter": torch.nn.Parameter(base), "gaps": base[1::2, ::3], "mask": torch.tensor([True, False]),
    "complex": torch.zeros(2, dtype=torch.complex64),
}
torch.save({"state_dict": inner, "epoch": 3}, OUT / "trainer" / "pytorch_model.bin")
save_file({name: tensor.contiguous().clone() for name, tensor in everything.items()}, OUT / "expected.safetensors")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


torch.save({"weight": torch.zeros(2), "hook": Hostile()}, OUT / "hostile" / "pytorch_model.bin")
