"""Records what llama.cpp answers for a model, as the reference of tests/runner/model/test_reference.py.

    PEER_PYTHON tools/record_reference.py MODEL.gguf OUT.json PROMPT...

PEER_PYTHON is an interpreter with llama-cpp-python. For every prompt (text, special tokens parsed, BOS by the
model's rule) it writes the token ids, the ten best log-probabilities after the prompt, and 24 greedy tokens, computed
with a float32 cache and without flash attention.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

NUM_GREEDY = 24
NUM_TOP = 10


def record(model: Any, prompt: str) -> dict[str, Any]:
    ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[len(ids) - 1], dtype=np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    top = np.argsort(-logits)[:NUM_TOP]
    greedy: list[int] = []
    margins: list[float] = []
    for _ in range(NUM_GREEDY):
        row = np.array(model.scores[model.n_tokens - 1])
        best = np.sort(row)
        greedy.append(int(row.argmax()))
        margins.append(round(float(best[-1] - best[-2]), 4))
        model.eval([greedy[-1]])
    return {
        "prompt": prompt,
        "ids": ids,
        "top_ids": top.tolist(),
        "top_logprobs": [round(float(logprobs[i]), 5) for i in top],
        "greedy": greedy,
        "greedy_margins": margins,
    }


def main() -> None:
    import llama_cpp

    path, out, *prompts = sys.argv[1:]
    f32 = 0  # ggml's number of the type
    model = llama_cpp.Llama(
        path, n_ctx=512, n_threads=2, logits_all=True, verbose=False, type_k=f32, type_v=f32, flash_attn=False
    )
    records = [record(model, prompt) for prompt in prompts]
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"engine": f"llama-cpp-python {llama_cpp.__version__}", "cases": records}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
