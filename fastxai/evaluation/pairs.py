"""Which two images make a pair: the same ones for every method, at every run, however many are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from fastxai._check import require

__all__ = ["choose_pairs", "chunks"]

# Rounds of draws, each twice as long as the last, before the images count as too few or too alike.
_ROUNDS = 13


def choose_pairs(
    images: int, count: int, seed: int, classify: Callable[[Sequence[int]], Sequence[int]]
) -> list[tuple[int, int]]:
    """Draw ordered pairs of images with different predicted classes, no pair twice.

    Pair i depends on the seed, the number of images and the predictions alone: the first 10 of 100 pairs are the 10
    pairs that one gets if one asks for 10.

    Args:
        images: how many images there are.
        count: how many pairs are wanted.
        seed: of the draw.
        classify: numbers of images -> their predicted classes; called with those that are drawn, each once.

    Returns:
        (the image that is manipulated, the image whose map is the target), ``count`` times.

    Raises:
        ValueError: there are not so many pairs.

    [M] section 2.3 (100 random pairs, the same for each method).

    >>> fastxai.evaluation.choose_pairs(4, 3, 0, lambda numbers: [n % 2 for n in numbers])
    [(3, 0), (1, 2), (0, 1)]
    """
    classes: dict[int, int] = {}
    found: dict[tuple[int, int], None] = {}
    draws = _draws(seed, images) if images > 1 else iter(())
    tried: set[tuple[int, int]] = set()
    for number in range(_ROUNDS):
        if len(found) >= count or len(tried) == images * (images - 1):
            break
        drawn = list(islice(draws, count * 2**number))
        tried.update(drawn)
        new = sorted({image for pair in drawn for image in pair} - classes.keys())
        if new:
            classes.update(zip(new, classify(new), strict=True))
        found.update({pair: None for pair in drawn if classes[pair[0]] != classes[pair[1]]})
    contract = f"hold {count} pairs of different predicted classes"
    require(len(found) >= count, "images", contract, f"{images} images with {len(found)} such pairs")
    return list(found)[:count]


def _draws(seed: int, images: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of different numbers below ``images``, each from a hash of the seed and how many came before."""
    number = 0
    while True:
        bits = hashlib.sha256(f"pair {seed} {number}".encode()).digest()
        first = int.from_bytes(bits[:16]) % images
        second = int.from_bytes(bits[16:]) % (images - 1)
        yield first, second + (second >= first)
        number += 1


def chunks(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Split numbers into runs of neighbours, of ``size`` at most.

    >>> fastxai.evaluation.chunks([0, 1, 2, 5, 6], 2)
    [[0, 1], [2], [5, 6]]
    """
    require(size >= 1, "size", "be at least 1", size)
    made: list[list[int]] = []
    for number in sorted(numbers):
        if made and len(made[-1]) < size and made[-1][-1] == number - 1:
            made[-1].append(number)
        else:
            made.append([number])
    return made
