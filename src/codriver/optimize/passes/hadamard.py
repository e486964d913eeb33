"""Orthogonal matrices that spread what stands in one column over all: randomised Hadamard matrices of any width.

Orders are made of Sylvester's (1867) and Paley's (1933) constructions and their Kronecker products. Of a width that
has none of these, the part that is left over gets a random orthogonal matrix of its own. The rule kept: the same width
and seed give the same matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..ggml import Floats

_Signs = NDArray[np.int8]


def random_rotation(width: int, seed: int) -> Floats:
    """(width, width), orthogonal: a Hadamard matrix, scaled, its rows with random signs (Ashkboos et al. 2024)."""
    random = np.random.default_rng(seed)
    even = next(size for size in _divisors(width) if hadamard(size) is not None)
    left, _ = np.linalg.qr(random.standard_normal((width // even, width // even)))
    signs = hadamard(even)
    assert signs is not None
    whole = np.kron(signs / math.sqrt(even), left if width > even else np.ones((1, 1)))
    found: Floats = (random.choice((-1.0, 1.0), width)[:, None] * whole).astype(np.float32)
    return found


def hadamard(order: int) -> _Signs | None:
    """Of +1 and -1, rows orthogonal; ``None`` where none of the constructions gives this order."""
    if order <= 2:
        return np.array([[1, 1], [1, -1]], np.int8)[:order, :order]
    if order % 4:
        return None
    if _is_prime(order - 1):
        return _paley_first(order - 1)
    if order % 8 == 4 and _is_prime(order // 2 - 1):
        return _paley_second(order // 2 - 1)
    for part in _divisors(order)[1:]:
        first, second = hadamard(part), hadamard(order // part) if part > 1 else None
        if first is not None and second is not None:
            return np.kron(first, second)
    return None


def _paley_first(prime: int) -> _Signs:
    """Order prime + 1, for a prime that leaves 3 when divided by 4."""
    found = np.ones((prime + 1, prime + 1), np.int8)
    found[1:, 1:] = _jacobsthal(prime) + np.eye(prime, dtype=np.int8)
    found[1:, 0] = -1
    return found


def _paley_second(prime: int) -> _Signs:
    """Order 2 × (prime + 1), for a prime that leaves 1 when divided by 4."""
    conference = np.ones((prime + 1, prime + 1), np.int8)
    conference[1:, 1:] = _jacobsthal(prime)
    conference[0, 0] = 0
    pair, zero = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    found: _Signs = np.kron(conference, pair) + np.kron(np.eye(prime + 1, dtype=np.int8), zero)
    return found


def _jacobsthal(prime: int) -> _Signs:
    squares = {value * value % prime for value in range(1, prime)}
    symbol = np.array([0] + [1 if value in squares else -1 for value in range(1, prime)], np.int8)
    at = np.arange(prime)
    found: _Signs = symbol[(at[:, None] - at[None, :]) % prime]
    return found


def _divisors(number: int) -> list[int]:
    """Largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % size for size in range(2, math.isqrt(number) + 1))
