"""Trains the demo model on the items that demo/data.py collected. CPU or, where torch finds one, a CUDA GPU.

    python -m demo.train [--steps N] [--out FOLDER]

Writes tokenizer.json, shape.json and model.pt into demo/work. The model in the repository took 4 575 steps of 4 096
tokens: 45 minutes on two CPU cores, last loss 0.09. ``--steps 20`` is a smoke run. Needs torch (``pip install --group
train``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.conversations import Sampler
from demo.data import ITEMS_PATH, load
from demo.network import Llama, Shape
from demo.vocabulary import Encoder, train

SEED = 1
STEPS = 4575
ROWS, ROW_LENGTH = 16, 256  # tokens of a step: ROWS * ROW_LENGTH
LEARNING_RATE, WARM_UP_STEPS, FINAL_SHARE = 2e-3, 100, 0.02
QUESTION_WEIGHT = 0.1  # of a token of the question in the loss; a token of the answer counts 1
PROBES = ("What does textwrap.dedent do?", "What is collections.Counter?", "Hello")


def batches(sampler: Sampler, encoder: Encoder) -> Iterator[tuple[Tensor, Tensor]]:
    """Exchanges one after the other, cut into (ROWS, ROW_LENGTH + 1) ids and their weights in the loss."""
    size = ROWS * (ROW_LENGTH + 1)
    ids: list[int] = []
    weights: list[float] = []
    while True:
        while len(ids) < size:
            exchange = sampler.draw()
            parts = (
                (encoder.prompt(exchange.question), QUESTION_WEIGHT),
                (encoder.reply(exchange.answer), 1.0),
                (encoder.newline(), QUESTION_WEIGHT),
            )
            for part, weight in parts:
                ids += part
                weights += [weight] * len(part)
        yield torch.tensor(ids[:size]).view(ROWS, -1), torch.tensor(weights[:size]).view(ROWS, -1)
        del ids[:size], weights[:size]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to FINAL_SHARE."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def optimizer_for(model: Llama) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))


def loss_of(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross entropy of every next token."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids[:, :-1])
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def reply(model: Llama, encoder: Encoder, question: str, max_tokens: int = 60) -> str:
    """The greedy answer, without a cache: slow, for a look while training."""
    prompt = encoder.prompt(question)
    ids = list(prompt)
    device = model.token_embd.weight.device
    while len(ids) < len(prompt) + max_tokens:
        token = int(model(torch.tensor([ids], device=device))[0, -1].argmax())
        if token == encoder.end:
            break
        ids.append(token)
    return encoder.decode(ids[len(prompt) :])


def fit(model: Llama, encoder: Encoder, sampler: Sampler, steps: int, device: torch.device) -> None:
    """Trains in place and prints the loss every 50 steps, probe answers every 500."""
    optimizer, data, started = optimizer_for(model), batches(sampler, encoder), time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        ids, weights = (tensor.to(device) for tensor in next(data))
        loss = loss_of(model, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}, {time.monotonic() - started:.0f} s, loss {loss.item():.3f}", flush=True)
        if (step + 1) % 500 == 0:
            for question in PROBES:
                print(f"   {question} -> {reply(model, encoder, question)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=ITEMS_PATH.parent)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    items, out = load(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(items, SEED)
    tokenizer.save(str(out / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Llama(Shape(num_tokens=encoder.num_tokens)).to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}", flush=True)
    fit(model, encoder, Sampler(items, SEED), arguments.steps, device)
    (out / "shape.json").write_text(json.dumps(asdict(model.shape)), "utf-8")
    torch.save(model.state_dict(), out / "model.pt")
    print(f"{out / 'model.pt'}: next, python -m demo.export")


if __name__ == "__main__":
    main()
