"""The choice of pairs: always the same, different classes, no pair twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastxai.evaluation import choose_pairs, chunks


def by_third(numbers: Sequence[int]) -> list[int]:
    return [n % 3 for n in numbers]


@given(st.integers(4, 60), st.integers(1, 8), st.integers(0, 8), st.integers(0, 5))
def test_more_pairs_begin_with_fewer(images: int, count: int, more: int, seed: int) -> None:
    few = choose_pairs(images, count, seed, by_third)
    many = choose_pairs(images, min(count + more, 10), seed, by_third)
    assert many[:count] == few[: len(many)]
    assert len(set(many)) == len(many)
    assert all(a % 3 != b % 3 and 0 <= a < images and 0 <= b < images for a, b in many)


def test_seeds_differ_and_stay() -> None:
    assert choose_pairs(1000, 3, 0, by_third) == [(47, 595), (333, 842), (512, 688)]
    assert choose_pairs(1000, 3, 1, by_third) != choose_pairs(1000, 3, 0, by_third)


def test_every_image_is_classified_once_and_only_those_drawn() -> None:
    asked: list[int] = []

    def classify(numbers: Sequence[int]) -> list[int]:
        asked.extend(numbers)
        return by_third(numbers)

    choose_pairs(10_000, 10, 0, classify)
    assert len(asked) == len(set(asked)) <= 60


def test_all_pairs_of_a_small_set_are_found() -> None:
    found = choose_pairs(4, 8, 0, lambda numbers: [n % 2 for n in numbers])
    assert sorted(found) == [(a, b) for a in range(4) for b in range(4) if a % 2 != b % 2]


@pytest.mark.parametrize("images", [0, 1, 2, 40])
def test_too_few_pairs_are_refused(images: int) -> None:
    with pytest.raises(
        ValueError, match=f"images must hold 3 pairs of different predicted classes, got {images} images"
    ):
        choose_pairs(images, 3, 0, lambda numbers: [7] * len(numbers))


@given(st.sets(st.integers(0, 40)), st.integers(1, 7))
def test_chunks_hold_every_number_once_and_neighbours_only(numbers: set[int], size: int) -> None:
    made = chunks(sorted(numbers), size)
    assert [n for part in made for n in part] == sorted(numbers)
    assert all(part == list(range(part[0], part[-1] + 1)) and len(part) <= size for part in made)
    with pytest.raises(ValueError, match="size must be at least 1"):
        chunks([1], 0)
