"""Small model arithmetic that is computed once per forward pass, not once per layer."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from runner.model.spec import RopeSpec

Float32Array = npt.NDArray[np.float32]


class RotaryTable:
    """Cosines and sines of rotary position embedding (Su et al. 2021), with linear or YaRN scaling.

    ``frequency_factors`` (``rope_freqs.weight``; Llama 3) divide the frequencies one by one.
    """

    def __init__(self, spec: RopeSpec, frequency_factors: Float32Array | None = None) -> None:
        self._frequencies, self._magnitude = frequencies(spec, frequency_factors)

    def __call__(self, positions: npt.NDArray[np.int32]) -> Float32Array:
        """(T, num_dims): for each position, all cosines, then all sines."""
        angles = positions[:, None].astype(np.float64) * self._frequencies
        half = self._frequencies.size
        table = np.empty((positions.size, 2 * half), np.float32)
        table[:, :half] = np.cos(angles) * self._magnitude
        table[:, half:] = np.sin(angles) * self._magnitude
        return table

    def turn(self, distance: int) -> Float32Array:
        """(num_dims,): the rotation from one position to the one ``distance`` after it. It changes no magnitude."""
        angles = distance * self._frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)


def frequencies(spec: RopeSpec, factors: Float32Array | None) -> tuple[npt.NDArray[np.float64], float]:
    """Radians per position for each rotated pair, and the magnitude of the rotation.

    YaRN (Peng et al. 2023): pairs that turn more than ``beta_fast`` times within the original context keep their
    frequency, pairs that turn less than ``beta_slow`` times are interpolated, and a ramp lies between.
    """
    num_pairs = spec.num_dims // 2
    original = spec.base ** (-2.0 * np.arange(num_pairs, dtype=np.float64) / max(spec.num_dims, 1))
    if factors is not None:
        if factors.size != num_pairs:
            raise ValueError(f"rope_freqs.weight has {factors.size} factors; {num_pairs} are needed")
        original = original / factors.astype(np.float64)
    interpolated = original / spec.factor
    if spec.scaling != "yarn":
        return interpolated, spec.attention_factor
    low = max(0, math.floor(_turning_pair(spec, spec.beta_fast)))
    high = min(spec.num_dims - 1, math.ceil(_turning_pair(spec, spec.beta_slow)))
    keep = 1.0 - np.clip((np.arange(num_pairs) - low) / max(0.001, high - low), 0.0, 1.0)
    magnitude = spec.attention_factor * (1.0 + 0.1 * math.log(spec.factor))
    return interpolated * (1.0 - keep) + original * keep, magnitude


def _turning_pair(spec: RopeSpec, turns: float) -> float:
    """Index of the pair that turns ``turns`` times within the original context."""
    return spec.num_dims * math.log(spec.original_context / (turns * 2 * math.pi)) / (2 * math.log(spec.base))
