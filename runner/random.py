"""One random stream per request: a pure function of (seed, position).

The draw for the token at a position depends on nothing else: not on the other requests of a batch, not on how many
draws came before, not on the process. So the same request gives the same answer, and a stream can be resumed anywhere.

The generator is Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. Its published known answers are in the tests.
"""

from __future__ import annotations

import secrets

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four 32-bit words for a 128-bit counter and a 64-bit key, least significant word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left = c0 * _MULTIPLIERS[0]
        right = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & _MASK32, (left >> 32) ^ c3 ^ k1, left & _MASK32
        k0 = (k0 + _WEYL[0]) & _MASK32
        k1 = (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits for the token at ``position``. Seeds count modulo 2**64."""
    key, count = seed & _MASK64, position & _MASK64
    low, high, _, _ = philox4x32((count & _MASK32, count >> 32, 0, 0), (key & _MASK32, key >> 32))
    return float(((high << 32) | low) >> 11) * 2.0**-53


def fresh_seed() -> int:
    """A seed for a request that names none: 63 bits from the operating system, so it also fits a JSON integer."""
    return secrets.randbits(63)
