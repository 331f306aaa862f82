"""Classes of positions by hand, and samples that are balanced."""

import numpy as np
import pytest

from densefeat.segmentation.masks import IGNORED
from densefeat.segmentation.positions import _share_out, draw_positions, label_positions

I = IGNORED  # noqa: E741  as in the tables below


def test_the_class_of_most_pixels() -> None:
    codes = np.array(
        [
            [0, 0, 1, 1, 2, 2, 2, 2],
            [0, 1, 1, 1, 2, 2, 0, 0],
        ],
        np.uint8,
    )
    assert label_positions(codes, (1, 4), 3).tolist() == [[0, 1, 2, 0]]  # of the last, two and two: the first class
    assert label_positions(codes, (1, 2), 3).tolist() == [[1, 2]]
    assert label_positions(codes, (2, 8), 3).tolist() == codes.tolist()


def test_parts_that_share_pixels() -> None:
    codes = np.array([[0, 1, 2]], np.uint8)  # two positions of one and a half pixels
    assert label_positions(codes, (1, 2), 3).tolist() == [[0, 2]]
    assert label_positions(codes, (1, 6), 3).tolist() == [[0, 0, 1, 1, 2, 2]]  # smaller than the grid
    assert label_positions(codes, (2, 3), 3).tolist() == codes.tolist() * 2


def test_ignored_pixels() -> None:
    codes = np.array([[I, I, I, 0, I, I, 1, 0, I, I, I, I]], np.uint8)
    assert label_positions(codes, (1, 3), 2).tolist() == [[I, 0, I]]  # half is not most; of the rest two classes are equal
    assert label_positions(np.full((5, 5), I, np.uint8), (2, 2), 2).tolist() == [[I, I], [I, I]]


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [([100, 100], 50, [25, 25]), ([100, 5], 50, [45, 5]), ([100, 5, 0, 40], 90, [45, 5, 0, 40]), ([3, 2], 50, [3, 2]),
     ([100, 100, 100], 50, [16, 17, 17])],
)  # fmt: skip
def test_shares(counts: list[int], most: int, expected: list[int]) -> None:
    assert _share_out(np.array(counts), most).tolist() == expected


def test_draws_are_balanced_and_repeatable() -> None:
    labels = [
        np.array([[0] * 90 + [1] * 6 + [I] * 4], np.uint8),
        np.array([[0] * 100], np.uint8),
        np.array([[1] * 4], np.uint8),
    ]
    drawn = draw_positions(labels, 2, 40, seed=1)
    found = np.concatenate([each.ravel()[rows] for each, rows in zip(labels, drawn, strict=True)])
    assert np.bincount(found).tolist() == [30, 10]
    assert all((np.diff(rows) > 0).all() for rows in drawn)
    again = draw_positions(labels, 2, 40, seed=1)
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))
    other = draw_positions(labels, 2, 40, seed=2)
    assert any(one.tolist() != two.tolist() for one, two in zip(drawn, other, strict=True))
