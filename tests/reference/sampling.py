"""Writes tests/fixtures/sampling.json: what penalties, bias and cuts make of a row of logits.

    python tests/reference/sampling.py

Repetition penalty, bias, temperature, top-k and top-p are transformers' own processors, in the order in which its
`generate` runs them. It has no presence and frequency penalty: these are OpenAI's definition, applied behind the
repetition penalty as vLLM does (`apply_penalties`). Versions: tests/reference/requirements.txt.
"""
import json
import pathlib

import numpy as np
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "sampling.json"
VOCAB = 12


def changed(logits, prompt, answer, bias, repetition, presence, frequency):
    scores = torch.tensor([logits])
    ids = torch.tensor([prompt + answer])
    if bias:
        scores = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias])(ids, scores)
    if repetition != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(repetition)(ids, scores)
    counts = torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=VOCAB)
    scores = scores - frequency * counts - presence * (counts > 0)
    return scores[0].tolist()


def kept(logits, temperature, top_k, top_p):
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor([logits]))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return [token for token in range(VOCAB) if scores[0, token] > -torch.inf]


def main():
    rng = np.random.default_rng(5)
    rows = lambda: [round(float(x), 3) for x in rng.normal(0, 2, VOCAB)]
    tokens = lambda most: [int(x) for x in rng.integers(0, VOCAB, rng.integers(1, most))]
    changes = []
    for bias, repetition, presence, frequency in [
        ([], 1.3, 0.0, 0.0), ([], 0.8, 0.0, 0.0), ([], 1.0, 0.7, 0.0), ([], 1.0, 0.0, 0.4), ([], 1.0, -0.5, -0.3),
        ([[2, 4.0], [7, -100.0]], 1.0, 0.0, 0.0), ([[2, 4.0], [5, -3.0]], 1.5, 0.0, 0.0),
        ([[1, 2.5], [3, -2.5], [4, 0.5]], 1.2, 0.6, 0.25),
    ]:
        for _ in range(3):
            case = dict(logits=rows(), prompt=tokens(6), answer=tokens(8), bias=bias, repetition=repetition,
                        presence=presence, frequency=frequency)
            changes.append(case | {"changed": changed(**case)})
    cuts = []
    for temperature, top_k, top_p in [(1.0, 0, 0.9), (1.0, 4, 1.0), (0.7, 0, 0.5), (1.6, 5, 0.8), (0.3, 3, 0.95), (1.0, 0, 0.01)]:
        # Flat enough that whatever is kept is drawn in a few thousand draws.
        case = dict(logits=[x / 4 for x in rows()], temperature=temperature, top_k=top_k, top_p=top_p)
        cuts.append(case | {"kept": kept(**case)})
    OUT.write_text(json.dumps({"changes": changes, "cuts": cuts}) + "\n")


if __name__ == "__main__":
    main()
