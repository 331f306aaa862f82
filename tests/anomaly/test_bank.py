"""The coreset against a plain greedy choice, and distances and weights against the paper's formula, in float64."""

import numpy as np
import pytest
import torch

from densefeat.anomaly.bank import MemoryBank, choose_coreset


def choose_plainly(points: np.ndarray, count: int) -> list[int]:
    """Greedy k-centre as it is written down, from the point that is the farthest from the mean."""
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(chosen) < count:
        distances = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(1)
        chosen.append(int(distances.argmax()))
    return chosen


@pytest.mark.parametrize(("count", "dims", "chosen"), [(300, 8, 300), (2500, 3, 120), (40, 2, 7)])
def test_a_coreset_is_the_greedy_one(count: int, dims: int, chosen: int) -> None:
    points = np.random.default_rng(count).normal(5, 1, (count, dims)).astype(np.float32)
    seen: list[int] = []
    rows = choose_coreset(points, chosen, seen.append)
    assert rows.tolist() == choose_plainly(points.astype(np.float64), chosen)
    assert sum(seen) == chosen


def test_copies_are_chosen_once() -> None:
    points = np.repeat(np.arange(7, dtype=np.float32), 300)[:, None] * np.ones(4, np.float32)
    rows = choose_coreset(points, 100)
    assert sorted(points[rows, 0].tolist()) == list(range(7))
    assert choose_coreset(np.ones((5, 3), np.float32), 5).size == 1


def measure_plainly(bank: np.ndarray, grid: np.ndarray) -> tuple[float, np.ndarray]:
    """One image ``(D, h, w)``, by equations 6 and 7 of the paper, in float64."""
    positions = grid.reshape(len(grid), -1).T
    apart = np.linalg.norm(positions[:, None] - bank, axis=2)
    worst = apart.min(1).argmax()
    nearest = apart[worst].argmin()
    around = np.linalg.norm(bank - bank[nearest], axis=1).argsort(kind="stable")[:9]
    weight = 1 - np.exp(apart[worst, nearest]) / np.exp(apart[worst, around]).sum()
    return weight * apart[worst, nearest], apart.min(1).reshape(grid.shape[1:])


@pytest.mark.parametrize("offset", [0, 200])
def test_scores_and_distances(offset: int) -> None:
    """Also far from the origin, where squares in float32 have no digits left for small distances."""
    generator = np.random.default_rng(0)
    bank = (generator.normal(size=(700, 12)) + offset).astype(np.float16)
    grid = (generator.normal(size=(3, 12, 20, 20)) + offset).astype(np.float32)
    grid[0, :, 3, 5] = bank[17]
    scores, distances = MemoryBank(bank)(torch.from_numpy(grid))
    for i in range(3):
        score, apart = measure_plainly(bank.astype(np.float64), grid[i].astype(np.float64))
        assert float(scores[i]) == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(distances[i], apart, rtol=1e-5, atol=1e-4)
    assert distances[0, 3, 5] < 1e-4
    alone, _ = MemoryBank(bank)(torch.from_numpy(grid[1:2]))
    assert float(alone[0]) == pytest.approx(float(scores[1]), rel=1e-6)


def test_large_distances_have_weights() -> None:
    """The exponentials of the formula would be infinite."""
    bank = np.array([[0.0], [1.0], [2.0]], np.float16)
    scores, _ = MemoryBank(bank)(torch.full((1, 1, 2, 2), 5000.0))
    shares = np.exp(np.array([0.0, 1.0, 2.0]))  # of distances 4998, 4999, 5000
    assert float(scores[0]) == pytest.approx(4998 * (1 - shares[0] / shares.sum()), rel=1e-5)


def test_a_bank_of_one() -> None:
    scores, distances = MemoryBank(np.zeros((1, 2), np.float16))(torch.ones(1, 2, 2, 2))
    assert float(scores[0]) == 0  # it is its own only neighbour: the weight of the paper is 0
    assert float(distances.max()) == pytest.approx(2**0.5)
