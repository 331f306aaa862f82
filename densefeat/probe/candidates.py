"""Heads on every block alone, on blocks added one by one, and on all; the best of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import TEST, VAL, Targets
from densefeat.probe.data import Columns
from densefeat.probe.fitting import validation_metric
from densefeat.probe.metrics import MAIN, Comparison, bootstrap, compare_predictions, compute_metrics
from densefeat.probe.protocols import GRIDS, SHOTS, Head, ProbeFit, draw_shots, fit_few_shot, fit_head

ALL = "all"  # the name of the candidate that has every column


@dataclass(frozen=True)
class Candidate:
    """A fitted head on some columns, side by side in their order; ``features``: their width together.

    ``test_scores``: of the test rows, float32 ``(n, K)``, of a regression ``(n,)``; None where there are no test rows.
    """

    name: str
    columns: tuple[str, ...]
    features: int
    fitted: ProbeFit
    test_scores: np.ndarray | None


@dataclass(frozen=True)
class CandidateReport:
    """What is told of a candidate. ``chosen``, ``tried``: settings, as of :class:`Fitted`.

    ``val``, ``test``: metrics; ``intervals``: of the test metrics, 95 %.
    """

    name: str
    columns: tuple[str, ...]
    features: int
    chosen: dict[str, float | int]
    tried: list[dict[str, float | int]]
    val: dict[str, float | None]
    test: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"columns": list(self.columns)}


@dataclass(frozen=True)
class Selection:
    """``best``, ``next``: positions in ``outcomes``, by the validation rows' main metric; ``next`` None if there is but one.

    ``head``, ``scores``: of the best, with its scores of the test rows; ``targets``: of the test rows.
    ``comparison``: of the best with the next on the test rows.
    """

    outcomes: tuple[CandidateReport, ...]
    best: int
    next: int | None
    head: Head
    scores: np.ndarray | None
    targets: Targets
    comparison: Comparison | None

    @property
    def main(self) -> str:
        """The metric that chooses."""
        return MAIN[self.targets.task]

    @property
    def winner(self) -> CandidateReport:
        return self.outcomes[self.best]


def select_candidate(candidates: Iterable[Candidate], val: Targets, test: Targets, seed: int = 0) -> Selection:
    """The candidate with the highest main metric on the validation rows, and how good each one is on the test rows.

    Of equals the one with fewer features, then the first. Candidates may come one by one: of all but the best two only the
    metrics are kept. ``val``: targets of the rows that ``fitted.val_scores`` are of; ``test``: of the test rows, may be none.
    Raises UsageError where there is no candidate.
    """
    outcomes: list[CandidateReport] = []
    kept: list[tuple[int, Candidate]] = []
    for candidate in candidates:
        outcomes.append(_report_candidate(candidate, val, test, seed))
        kept.append((len(outcomes) - 1, candidate))
        kept = sorted(kept, key=lambda held: _rank_key(outcomes[held[0]], MAIN[val.task]))[:2]
    if not kept:
        raise UsageError("no candidates to choose from")
    (best, first), *others = kept
    place, second = others[0] if others else (None, None)
    comparison = None
    if second is not None and first.test_scores is not None and second.test_scores is not None:
        comparison = _compare_best(test, first.test_scores, second.test_scores, seed)
    return Selection(tuple(outcomes), best, place, first.fitted.head, first.test_scores, test, comparison)


def _compare_best(test: Targets, first: np.ndarray, second: np.ndarray, seed: int) -> Comparison | None:
    """None where the main metric is undefined on these rows."""
    if any(compute_metrics(test, scores)[MAIN[test.task]] is None for scores in (first, second)):
        return None
    return compare_predictions(test, first, second, seed)


def _report_candidate(candidate: Candidate, val: Targets, test: Targets, seed: int) -> CandidateReport:
    fitted, scores = candidate.fitted, candidate.test_scores
    return CandidateReport(
        candidate.name,
        candidate.columns,
        candidate.features,
        fitted.chosen,
        fitted.tried,
        compute_metrics(val, fitted.val_scores),
        {} if scores is None else compute_metrics(test, scores),
        {} if scores is None else bootstrap(test, scores, seed=seed),
    )


def _rank_key(outcome: CandidateReport, main: str) -> tuple[float, int]:
    """To sort by, the best first; sorting keeps the order of equals."""
    value = outcome.val.get(main)
    return (-np.inf if value is None else value) * -1, outcome.features


_SEEDS = 3  # of few-shot fits
_LISTED = 2  # columns that a name lists


@dataclass(frozen=True)
class BlockFitter:
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

    def fit(self, names: tuple[str, ...]) -> ProbeFit:
        targets = self.targets.take(self.fitting)
        x, scaled = self.features(names), self.standardize
        return fit_head(self.protocol, x, targets, self.val, standardize=scaled, seed=self.seed, advance=self.advance)

    def rating(self, fitted: ProbeFit) -> float:
        """The main metric on the validation rows."""
        return validation_metric(self.targets.take(self.parts == VAL), fitted.val_scores)

    def test_scores(self, head: Head, names: tuple[str, ...]) -> np.ndarray:
        return np.concatenate([head.scores(x) for x in self.columns.pieces(names, self.rows[self.parts == TEST])])

    def candidate(self, name: str, names: tuple[str, ...], fitted: ProbeFit) -> Candidate:
        return Candidate(name, names, self.columns.width(names), fitted, self.test_scores(fitted.head, names))


def fit_candidates(fits: BlockFitter) -> Iterator[Candidate]:
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
        yield fits.candidate(_name_addition(added), columns, fitted)
        del fitted
    yield fits.candidate(ALL, names, fits.fit(names))


def _best_addition(fits: BlockFitter, added: list[str]) -> tuple[str, tuple[str, ...], ProbeFit]:
    """The column that raises the validation metric most; of equals the one with fewer features, then the first."""
    best: tuple[tuple[float, int], str, tuple[str, ...], ProbeFit] | None = None
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


def _name_addition(added: list[str]) -> str:
    if len(added) <= _LISTED:
        return " + ".join(added)
    return f"{len(added)} columns, + {added[-1]}"


def count_settings(protocol: str, columns: int) -> int:
    """That the fits for so many columns try."""
    greedy = sum(range(2, columns))
    return len(GRIDS[protocol]) * (columns + greedy + (columns > 1))


def fit_few_shots(fits: BlockFitter) -> list[dict[str, Any]]:
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
            drawn = len(draw_shots(targets, ~val, shots, fits.seed))
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
