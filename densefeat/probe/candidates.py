"""Heads on features of this block or that, judged: chosen on the validation rows, told of by the test rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probe.intervals import Comparison, bootstrap, compare
from densefeat.probe.metrics import MAIN, compute_metrics
from densefeat.probe.protocols import Fitted, Head

ALL = "all"  # the name of the candidate that has every column


@dataclass(frozen=True)
class Candidate:
    """A fitted head on some columns, side by side in their order; ``features``: their width together.

    ``test_scores``: of the test rows, float32 ``(n, K)``, of a regression ``(n,)``; None where there are no test rows.
    """

    name: str
    columns: tuple[str, ...]
    features: int
    fitted: Fitted
    test_scores: np.ndarray | None


@dataclass(frozen=True)
class Outcome:
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
class Concluded:
    """``best``, ``next``: positions in ``outcomes``, by the validation rows' main metric; ``next`` None if there is but one.

    ``head``, ``scores``: of the best, with its scores of the test rows; ``targets``: of the test rows.
    ``comparison``: of the best with the next on the test rows.
    """

    outcomes: tuple[Outcome, ...]
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
    def winner(self) -> Outcome:
        return self.outcomes[self.best]


def conclude(candidates: Iterable[Candidate], val: Targets, test: Targets, seed: int = 0) -> Concluded:
    """The candidate with the highest main metric on the validation rows, and how good each one is on the test rows.

    Of equals the one with fewer features, then the first. Candidates may come one by one: of all but the best two only the
    metrics are kept. ``val``: targets of the rows that ``fitted.val_scores`` are of; ``test``: of the test rows, may be none.
    Raises UsageError where there is no candidate.
    """
    outcomes: list[Outcome] = []
    kept: list[tuple[int, Candidate]] = []
    for candidate in candidates:
        outcomes.append(_outcome_of(candidate, val, test, seed))
        kept.append((len(outcomes) - 1, candidate))
        kept = sorted(kept, key=lambda held: _rank(outcomes[held[0]], MAIN[val.task]))[:2]
    if not kept:
        raise UsageError("no candidates to choose from")
    (best, first), *others = kept
    place, second = others[0] if others else (None, None)
    comparison = None
    if second is not None and first.test_scores is not None and second.test_scores is not None:
        comparison = _compared(test, first.test_scores, second.test_scores, seed)
    return Concluded(tuple(outcomes), best, place, first.fitted.head, first.test_scores, test, comparison)


def _compared(test: Targets, first: np.ndarray, second: np.ndarray, seed: int) -> Comparison | None:
    """None where the main metric is undefined on these rows."""
    if any(compute_metrics(test, scores)[MAIN[test.task]] is None for scores in (first, second)):
        return None
    return compare(test, first, second, seed)


def _outcome_of(candidate: Candidate, val: Targets, test: Targets, seed: int) -> Outcome:
    fitted, scores = candidate.fitted, candidate.test_scores
    return Outcome(
        candidate.name,
        candidate.columns,
        candidate.features,
        fitted.chosen,
        fitted.tried,
        compute_metrics(val, fitted.val_scores),
        {} if scores is None else compute_metrics(test, scores),
        {} if scores is None else bootstrap(test, scores, seed=seed),
    )


def _rank(outcome: Outcome, main: str) -> tuple[float, int]:
    """To sort by, the best first; sorting keeps the order of equals."""
    value = outcome.val.get(main)
    return (-np.inf if value is None else value) * -1, outcome.features
