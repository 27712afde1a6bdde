"""Checks the engine against a tree of reference models, in process.

    python tools/check_oracle.py [DIR] [--kernels reference|fast|both] [--filter REGEX] [--isa NAME]

DIR holds ``index.json`` (models with prompts and tolerances), ``models``, ``expected``, ``quants``, ``tokenizers``
and ``templates``. Prints a row per case and, last, ``N of M cases pass``. Model cases whose architecture has no row
in ``runner.model.spec`` are left out and counted in a line of their own. The reference kernels must pass at level
``exact``; the fast kernels at level ``loose`` where the case calls that reliable, and their mean KL divergence must
not exceed the one that the tree records for llama.cpp itself.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runner.engine.embedding import EmbeddingInput
from runner.kernels import Kernels, select
from runner.kernels.dequantize import dequantize
from runner.load import LoadedModel, Loader
from runner.model.spec import ARCHITECTURES
from runner.protocol import LoadRequest, Operation
from runner.sequence import Batch
from tools.oracle_text import template_rows, tokenizer_rows


@dataclass(frozen=True)
class Row:
    """One checked case. ``passed`` None: not scored, only shown."""

    kind: str
    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "info"}[self.passed]
        return f"{mark}  {self.kind:<10} {self.name:<34} {self.detail}"


@dataclass(frozen=True)
class Difference:
    max_abs: float
    kl: float
    same_top: bool
    margin: float

    def within(self, tolerance: dict[str, float]) -> bool:
        near_tie = self.margin < 2 * tolerance["max_abs"]
        return self.kl <= tolerance["kl"] and self.max_abs <= tolerance["max_abs"] and (self.same_top or near_tie)


def compare(logits: np.ndarray, reference: np.ndarray) -> Difference:
    """KL divergence from the reference distribution, and the largest difference of logits."""
    mine, other = logits.astype(np.float64), reference.astype(np.float64)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - x.max() - np.log(np.exp(x - x.max()).sum())

    p, q = log_softmax(other), log_softmax(mine)
    best = np.sort(other)
    return Difference(
        max_abs=float(np.abs(mine - other).max()),
        kl=float((np.exp(p) * (p - q)).sum()),
        same_top=int(mine.argmax()) == int(other.argmax()),
        margin=float(best[-1] - best[-2]),
    )


def load_model(path: Path, kernels: Kernels) -> LoadedModel:
    """Level exact means float32 throughout, the cache included."""
    loader = Loader(path, kernels)
    cache_type: Literal["f16", "f32"] = "f32" if kernels.name == "reference" else "f16"
    request = LoadRequest(operation=Operation.ALLOC, num_ctx=512, num_batch=64, kv_cache_type=cache_type)
    loader.handle(request)
    loader.handle(request.model_copy(update={"operation": Operation.COMMIT}))
    loader.wait()
    if loader.model is None:
        raise RuntimeError(loader.health().message)
    return loader.model


def last_logits(model: LoadedModel, tokens: list[int], split: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits after ``tokens[:split]`` (in chunks) and after all tokens (the rest one by one)."""
    sequence = model.cache.open()
    assert sequence is not None
    results = []
    chunk = model.transformer.max_tokens
    runs = [tokens[i : min(i + chunk, split)] for i in range(0, split, chunk)] + [[t] for t in tokens[split:]]
    done = 0
    for run in runs:
        logits = model.forward([(sequence, run, "last")])
        done += len(run)
        if done in (split, len(tokens)):
            results.append(logits[0].copy())
    model.cache.close(sequence)
    return results[0], results[-1]


def model_rows(root: Path, kernels: Kernels, pattern: str) -> Iterator[Row]:
    """One row per model case, then what the fast kernels' mean KL amounts to."""
    index = json.loads((root / "index.json").read_text())
    level = "exact" if kernels.name == "reference" else "loose"
    divergences: list[tuple[float, float]] = []
    for case in index["models"]:
        if case["gguf_arch"] not in ARCHITECTURES or not re.search(pattern, case["id"]):
            continue
        if case["kind"] == "embedding":
            yield embedding_row(root, case, kernels, level)
            continue
        yield from causal_row(root, case, kernels, level, divergences)
    if kernels.name == "fast" and divergences:
        mine, peer = (float(np.mean(column)) for column in zip(*divergences, strict=True))
        detail = f"{mine:.3e}; llama.cpp {peer:.3e}"
        yield Row("kl", "mean over the model cases", mine <= peer, detail)


def causal_row(
    root: Path, case: dict[str, Any], kernels: Kernels, level: str, divergences: list[tuple[float, float]]
) -> Iterator[Row]:
    expected = np.load(root / case["expected"])
    model = load_model(root / case["file"], kernels)
    worst = Difference(0.0, 0.0, True, 0.0)
    passed = True
    for prompt in case["prompts"]:
        tokens = prompt["ids"] + prompt["greedy"]
        for where, logits in zip(("last", "end"), last_logits(model, tokens, len(prompt["ids"])), strict=True):
            difference = compare(logits, expected[f"{prompt['name']}_{where}"])
            passed &= difference.within(case["tolerance"][level])
            worst = max(worst, difference, key=lambda d: d.max_abs)
            if where == "last":
                divergences.append((difference.kl, prompt["measured"]["native"]["kl"]))
    scored = level == "exact" or case["loose_reliable"]
    detail = f"{level}: max |Δ| {worst.max_abs:.2e} of {case['tolerance'][level]['max_abs']:.2e}, kl {worst.kl:.1e}"
    yield Row(f"{kernels.name}", case["id"], passed if scored else None, detail)


def embedding_row(root: Path, case: dict[str, Any], kernels: Kernels, level: str) -> Row:
    reference = np.load(root / case["expected"])["ref"].astype(np.float64)
    model = load_model(root / case["file"], kernels)
    cosines = []
    for ids, wanted in zip(case["ids"], reference, strict=True):
        sequence = model.cache.open()
        assert sequence is not None
        pooled = EmbeddingInput(ids)
        pooled.advance(model.transformer.embed(Batch.of([(sequence, ids, "none")]))[0], model.spec.pooling or "mean")
        got = pooled.vector(model.spec.pooling or "mean")
        model.cache.close(sequence)
        cosines.append(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted))
    least, allowed = min(cosines), case["tolerance"][level]["cos"]
    return Row(kernels.name, case["id"], bool(least >= allowed), f"{level}: cosine {least:.6f} of {allowed}")


def quant_rows(root: Path) -> Iterator[Row]:
    """Dequantization of raw blocks against ggml's own values."""
    types = json.loads((root / "quants" / "index.json").read_text())["types"]
    blocks = np.load(root / "quants" / "blocks.npz")
    for name, facts in types.items():
        if f"{name}_raw" not in blocks:
            continue  # a remark, not a type
        try:
            got = dequantize(facts["type_id"], blocks[f"{name}_raw"], facts["block_size"])
        except (KeyError, ValueError) as error:
            yield Row("quant", name, False, str(error))
            continue
        wanted = blocks[f"{name}_f32"]
        scale = np.abs(wanted).max(axis=1, keepdims=True) + 1e-30
        worst = float((np.abs(got.reshape(wanted.shape).astype(np.float64) - wanted) / scale).max())
        yield Row("quant", name, worst <= 1e-6, f"max relative difference {worst:.1e}")


def text_rows(root: Path, kind: str, check: Callable[[Path], Any]) -> Iterator[Row]:
    for name, passed, detail in check(root):
        yield Row(kind, name, passed, detail)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "oracle")
    parser.add_argument("--kernels", choices=("reference", "fast", "both"), default="both")
    parser.add_argument("--filter", default="", help="only model cases whose name matches")
    parser.add_argument("--isa", default=None, help="instruction set of the fast kernels")
    arguments = parser.parse_args()
    root = arguments.root
    if not (root / "index.json").is_file():
        parser.error(f"{root} has no index.json")
    rows: list[Row] = []

    def show(source: Iterator[Row]) -> None:
        for row in source:
            rows.append(row)
            print(row, flush=True)

    for name in ("reference", "fast") if arguments.kernels == "both" else (arguments.kernels,):
        show(model_rows(root, select(name, arguments.isa, 2), arguments.filter))
    if not arguments.filter:
        show(quant_rows(root))
        show(text_rows(root, "tokenizer", tokenizer_rows))
        show(text_rows(root, "template", template_rows))
    cases = json.loads((root / "index.json").read_text())["models"]
    unknown = sorted({c["gguf_arch"] for c in cases} - set(ARCHITECTURES))
    print(f"left out, architecture not known: {', '.join(unknown) or 'none'}")
    scored = [row.passed for row in rows if row.passed is not None]
    print(f"{sum(scored)} of {len(scored)} cases pass")
    return 0 if all(scored) else 1


if __name__ == "__main__":
    sys.exit(main())
