"""How often each question occurs in a resample with replacement, drawn fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from caltune.allocator import keep_freed_memory
from caltune.errors import InputError
from caltune.types import FloatArray

_CHUNK = 100_000  # counts held at once: as many as a cache holds
_MANY = 5_000  # from so many questions on the second way of drawing is the faster one
_CELLS = 2**16
_KINDS = 7  # counts 0 to 6 have cells of their own


def resamples(size: int, draws: int, seed: int) -> Iterator[FloatArray]:
    """Counts (D, size), each row a draw of `size` of `size` with replacement, in chunks that add up to `draws` rows.

    Raises `InputError` for no questions or fewer than one draw.

    >>> [counts.sum(axis=1).tolist() for counts in resamples(4, 2, seed=0)]
    [[4.0, 4.0]]
    """
    if size < 1:
        raise InputError(f"the bootstrap needs at least one question, got {size}")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    many = size >= _MANY
    if many:
        keep_freed_memory()
    generator = np.random.Generator(np.random.SFC64(seed)) if many else np.random.default_rng(seed)
    draw = _by_count if many else _by_question
    chunk = max(1, _CHUNK // size)
    for start in range(0, draws, chunk):
        yield draw(size, min(chunk, draws - start), generator)


def _by_question(size: int, rows: int, generator: np.random.Generator) -> FloatArray:
    """Draw questions, and count them."""
    drawn = generator.integers(0, size, size=(rows, size))
    drawn += np.arange(0, rows * size, size)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _by_count(size: int, rows: int, generator: np.random.Generator) -> FloatArray:
    """Draw the counts at once, nearly all of them by 16 random bits each: the same distribution, in half the time.

    Independent Poisson counts whose total T is at most `size`, and `size` − T further questions drawn one by one, are
    multinomial whatever T is: given T, Poisson counts of one rate are (Devroye 1986, section XI.1.4). The rate is a
    little below 1, so that T is seldom above `size`; where it is, the row is drawn again.
    """
    rate = 1 - 2.5 / math.sqrt(size)
    counts = _poisson(rate, rows * size, generator).reshape(rows, size)
    missing = size - counts.sum(axis=1).astype(np.intp)
    for row in np.flatnonzero(missing < 0):
        while missing[row] < 0:
            counts[row] = _poisson(rate, size, generator)
            missing[row] = size - int(counts[row].sum())
    row_starts = np.repeat(np.arange(0, rows * size, size), missing)
    np.add.at(counts.reshape(-1), row_starts + generator.integers(0, size, len(row_starts)), 1.0)
    return counts


def _poisson(rate: float, count: int, generator: np.random.Generator) -> FloatArray:
    """So many Poisson numbers of a `rate` up to 1: by 16 bits each, and where these do not decide by a further draw."""
    ends, rest = _cells(rate)
    words = -(-count // 8)  # eight numbers in 128 random bits, and in one word of their bytes
    bits = generator.integers(0, 2**64, size=2 * words, dtype=np.uint64).view(np.uint16)
    found = np.zeros(8 * words, dtype=np.uint8)
    above: NDArray[np.bool_] = np.empty(8 * words, dtype=bool)
    for end in ends:
        np.greater_equal(bits, end, out=above)
        found += above.view(np.uint8)
    result = found.astype(np.float64)
    near = (np.flatnonzero(above.view(np.uint64))[:, None] * 8 + np.arange(8)).ravel()  # few words hold one
    left = near[above[near]]
    result[left] = np.searchsorted(rest, generator.random(len(left)), side="right")
    return result[:count]


@lru_cache(maxsize=16)
def _cells(rate: float) -> tuple[NDArray[np.uint16], FloatArray]:
    """Where the cells of each number end, and how the numbers are distributed in those that are left.

    Of 65,536 cells a number k under `_KINDS` has floor(65536 p(k)); the others hold what is left of all p(k).
    """
    numbers = np.arange(36)  # what is beyond has a probability under 1e-40
    exact = _CELLS * np.exp(numbers * math.log(rate) - rate - np.array([math.lgamma(k + 1) for k in numbers]))
    cells = np.where(numbers < _KINDS, np.floor(exact), 0.0)
    rest = np.cumsum(exact - cells)
    return np.cumsum(cells[:_KINDS]).astype(np.uint16), rest[:-1] / rest[-1]
