"""Which blocks' features serve the labels: each alone, added one by one, and all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from densefeat.labels import TEST, VAL, Targets
from densefeat.probe.candidates import ALL, Candidate
from densefeat.probe.choice import rated
from densefeat.probe.columns import Columns
from densefeat.probe.metrics import MAIN, compute_metrics
from densefeat.probe.protocols import GRIDS, SHOTS, Fitted, Head, few_shot_rows, fit, fit_few_shot

_SEEDS = 3  # of few-shot fits
_LISTED = 2  # columns that a name lists


@dataclass(frozen=True)
class BlockFits:
    """What all fits share. ``rows``: positions in the columns; ``parts``: as in :mod:`densefeat.labels.splits`."""

    protocol: str
    columns: Columns
    targets: Targets
    rows: np.ndarray
    parts: np.ndarray
    seed: int
    advance: Callable[[int], None]
    standardize: bool = False

    @property
    def fitting(self) -> np.ndarray:
        """bool ``(n,)``: the rows that are not for testing."""
        return self.parts != TEST

    @property
    def val(self) -> np.ndarray:
        """bool: of those, the validation rows."""
        return self.parts[self.fitting] == VAL

    def features(self, names: tuple[str, ...]) -> np.ndarray:
        return self.columns.read(names, self.rows[self.fitting])

    def fit(self, names: tuple[str, ...]) -> Fitted:
        targets = self.targets.take(self.fitting)
        x, scaled = self.features(names), self.standardize
        return fit(self.protocol, x, targets, self.val, standardize=scaled, seed=self.seed, advance=self.advance)

    def rating(self, fitted: Fitted) -> float:
        """The main metric on the validation rows."""
        return rated(self.targets.take(self.parts == VAL), fitted.val_scores)

    def test_scores(self, head: Head, names: tuple[str, ...]) -> np.ndarray:
        return np.concatenate([head.scores(x) for x in self.columns.pieces(names, self.rows[self.parts == TEST])])

    def candidate(self, name: str, names: tuple[str, ...], fitted: Fitted) -> Candidate:
        return Candidate(name, names, self.columns.width(names), fitted, self.test_scores(fitted.head, names))


def candidates(fits: BlockFits) -> Iterator[Candidate]:
    """Every column alone; the best of them with those added that raise the validation metric most, one by one; all.

    Of a candidate that was left behind nothing is kept. Decisions look at the validation rows alone: the test rows are scored
    as candidates come, and what their labels say of the scores goes nowhere but into the report.
    """
    names = tuple(fits.columns.widths)
    ratings = {}
    for name in names:
        fitted = fits.fit((name,))
        ratings[name] = fits.rating(fitted)
        yield fits.candidate(name, (name,), fitted)
        del fitted
    if len(names) == 1:
        return
    added = [max(names, key=lambda name: (ratings[name], -fits.columns.widths[name]))]
    while len(added) < len(names) - 1:
        name, columns, fitted = _best_addition(fits, added)
        added.append(name)
        yield fits.candidate(_name_of(added), columns, fitted)
        del fitted
    yield fits.candidate(ALL, names, fits.fit(names))


def _best_addition(fits: BlockFits, added: list[str]) -> tuple[str, tuple[str, ...], Fitted]:
    """The column that raises the validation metric most; of equals the one with fewer features, then the first."""
    best: tuple[tuple[float, int], str, tuple[str, ...], Fitted] | None = None
    for name, width in fits.columns.widths.items():
        if name in added:
            continue
        columns = tuple(known for known in fits.columns.widths if known in added or known == name)
        fitted = fits.fit(columns)
        rating = (fits.rating(fitted), -width)
        if best is None or rating > best[0]:
            best = rating, name, columns, fitted
    assert best is not None
    return best[1:]


def _name_of(added: list[str]) -> str:
    if len(added) <= _LISTED:
        return " + ".join(added)
    return f"{len(added)} columns, + {added[-1]}"


def number_of_settings(protocol: str, columns: int) -> int:
    """That the fits for so many columns try."""
    greedy = sum(range(2, columns))
    return len(GRIDS[protocol]) * (columns + greedy + (columns > 1))


def few_shot(fits: BlockFits) -> list[dict[str, Any]]:
    """Ridge from a few images a class, for each column and all: test main metric, mean and deviation over seeds."""
    targets, val = fits.targets.take(fits.fitting), fits.val
    test = fits.targets.take(fits.parts == TEST)
    most = np.bincount(targets.values[~val]).max()
    names = tuple(fits.columns.widths)
    found = []
    for name, columns in [*((name, (name,)) for name in names), *([(ALL, names)] if len(names) > 1 else [])]:
        x = fits.features(columns)
        for shots in (count for count in SHOTS if count <= most):
            values = []
            for seed in range(fits.seed, fits.seed + _SEEDS):
                head = fit_few_shot(x, targets, val, shots, seed).head
                values.append(compute_metrics(test, fits.test_scores(head, columns))[MAIN["single"]])
            known = [value for value in values if value is not None]
            drawn = len(few_shot_rows(targets, ~val, shots, fits.seed))
            found.append(
                {
                    "name": name,
                    "shots": shots,
                    "rows": drawn,
                    "values": values,
                    "mean": mean(known) if known else None,
                    "deviation": stdev(known) if len(known) > 1 else None,
                }
            )
    return found
