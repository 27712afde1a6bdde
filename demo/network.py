"""The demo model in torch: a Llama whose parameters carry GGUF's tensor names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; the defaults are the model in the repository (5.5 M parameters)."""

    num_tokens: int = 4096
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    ffn_width: int = 704
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


class Norm(nn.Module):
    """Root-mean-square norm with a weight."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self._epsilon = shape.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self._epsilon)


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding of pairs (2i, 2i+1), the order that GGUF's llama weights have."""
    _, _, length, dim = x.shape  # (batch, heads, positions, head_dim)
    frequencies = base ** (-torch.arange(0, dim, 2, device=x.device).float() / dim)
    angles = torch.outer(torch.arange(length, device=x.device).float(), frequencies)
    cos, sin, even, odd = angles.cos(), angles.sin(), x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """One layer: attention with grouped queries, then SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        kv_width = shape.num_kv_heads * shape.head_dim
        self.attn_norm, self.ffn_norm = Norm(shape), Norm(shape)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_gate = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.ffn_down = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.attn_norm(x))
        hidden = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(hidden)) * self.ffn_up(hidden))

    def _attention(self, x: Tensor) -> Tensor:
        shape, (batch, length, _) = self._shape, x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, shape.head_dim).transpose(1, 2)

        q, k = (rotate(heads(y), shape.rope_base) for y in (self.attn_q(x), self.attn_k(x)))
        repeats = shape.num_heads // shape.num_kv_heads
        k, v = (y.repeat_interleave(repeats, 1) for y in (k, heads(self.attn_v(x))))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_output(out.transpose(1, 2).reshape(batch, length, shape.width))


class Llama(nn.Module):
    """Token ids (batch, positions) → logits (batch, positions, num_tokens); the embedding is the output matrix too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.num_tokens, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.output_norm = Norm(shape)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x)
        return self.output_norm(x) @ self.token_embd.weight.T
