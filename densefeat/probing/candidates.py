"""Heads on features of every block alone, of blocks added one by one, and of all; and the choice of the best."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Protocol, TypeVar

import numpy as np

from densefeat.certainty import Certainty
from densefeat.errors import UsageError
from densefeat.labels import TEST, VAL, Targets
from densefeat.probing.data import FeatureColumns
from densefeat.probing.fitting import validation_metric
from densefeat.probing.metrics import MAIN, PairedComparison, bootstrap, compare_predictions, compute_metrics
from densefeat.probing.protocols import GRIDS, SHOTS, Head, ProbeFit, draw_shots, fit_few_shot, fit_head

ALL = "all"  # the candidate that has every column
ATTENTIVE = " attentive"  # ends the names of candidates that pool maps by attention
_SEEDS = 3  # of few-shot fits
_LISTED = 2  # columns that the name of a candidate lists


@dataclass(frozen=True)
class Candidate:
    """A head fitted on columns side by side; ``features``: their width together, or as many of them as the head reads.

    ``test_scores``: float32 ``(n, K)`` of the test rows, for a regression ``(n,)``; None if there are no test rows.
    """

    name: str
    columns: tuple[str, ...]
    features: int
    fit: ProbeFit
    test_scores: np.ndarray | None


@dataclass(frozen=True)
class CandidateReport:
    """The entry of a candidate in results.json. ``chosen``, ``tried``: settings, see :class:`ProbeFit`.

    ``val``, ``test``: metrics; ``intervals``: 95 %, of the test metrics.
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


_Fit = TypeVar("_Fit")
_Fitted = TypeVar("_Fitted", covariant=True)


class Fitter(Protocol[_Fit, _Fitted]):
    """A way to fit heads on columns, to rate a fit on validation rows, and to make a candidate of it."""

    @property
    def widths(self) -> dict[str, int]: ...

    def fit(self, names: tuple[str, ...]) -> _Fit: ...

    def rate(self, fit: _Fit) -> float: ...

    def candidate(self, name: str, names: tuple[str, ...], fit: _Fit) -> _Fitted: ...


@dataclass(frozen=True)
class BlockFitter:
    """The data and the protocol that all fits share, whatever their columns.

    ``rows``: positions of the labelled rows in the columns; ``parts``: as in :mod:`densefeat.labels.splits`; ``advance``:
    called with the number of settings that have been tried.
    """

    protocol: str
    columns: FeatureColumns
    targets: Targets
    rows: np.ndarray
    parts: np.ndarray
    seed: int
    advance: Callable[[int], None]
    standardize: bool = False

    @property
    def widths(self) -> dict[str, int]:
        """The number of features in each column."""
        return self.columns.widths

    @property
    def fitting(self) -> np.ndarray:
        """The rows that are not for testing, bool ``(n,)``."""
        return self.parts != TEST

    @property
    def val(self) -> np.ndarray:
        """The validation rows among those, bool."""
        return self.parts[self.fitting] == VAL

    def features(self, names: tuple[str, ...]) -> np.ndarray:
        """Read the features to fit on, float32 ``(rows that are not for testing, D)``."""
        return self.columns.read(names, self.rows[self.fitting])

    def fit(self, names: tuple[str, ...]) -> ProbeFit:
        targets, x = self.targets.take(self.fitting), self.features(names)
        return fit_head(self.protocol, x, targets, self.val, standardize=self.standardize, advance=self.advance)

    def rate(self, fit: ProbeFit) -> float:
        """Compute the main metric on the validation rows."""
        return validation_metric(self.targets.take(self.parts == VAL), fit.val_scores)

    def test_scores(self, head: Head, names: tuple[str, ...]) -> np.ndarray:
        return np.concatenate([head.scores(x) for x in self.columns.pieces(names, self.rows[self.parts == TEST])])

    def candidate(self, name: str, names: tuple[str, ...], fit: ProbeFit) -> Candidate:
        return Candidate(name, names, self.columns.width(names), fit, self.test_scores(fit.head, names))


def fit_candidates(fitter: Fitter[_Fit, _Fitted]) -> Iterator[_Fitted]:
    """Fit every column alone, then the best with those added one by one that raise the validation metric most, then all.

    Candidates that the caller drops are not kept in memory. Decisions use the validation rows alone: test rows are scored
    here, but how the scores compare with their labels is only reported.
    """
    names = tuple(fitter.widths)
    ratings = {}
    for name in names:
        fit = fitter.fit((name,))
        ratings[name] = fitter.rate(fit)
        yield fitter.candidate(name, (name,), fit)
        del fit
    if len(names) == 1:
        return
    added = [max(names, key=lambda name: (ratings[name], -fitter.widths[name]))]
    while len(added) < len(names) - 1:
        name, columns, fit = _fit_best_addition(fitter, added)
        added.append(name)
        yield fitter.candidate(_name_addition(added), columns, fit)
        del fit
    yield fitter.candidate(ALL, names, fitter.fit(names))


def _fit_best_addition(fitter: Fitter[_Fit, Any], added: list[str]) -> tuple[str, tuple[str, ...], _Fit]:
    """Find the column that raises the validation metric most; a tie goes to fewer features, then to the first."""
    best: tuple[tuple[float, int], str, tuple[str, ...], _Fit] | None = None
    for name, width in fitter.widths.items():
        if name in added:
            continue
        columns = tuple(column for column in fitter.widths if column in added or column == name)
        fit = fitter.fit(columns)
        rating = (fitter.rate(fit), -width)
        if best is None or rating > best[0]:
            best = rating, name, columns, fit
    assert best is not None
    return best[1:]


def _name_addition(added: list[str]) -> str:
    if len(added) <= _LISTED:
        return " + ".join(added)
    return f"{len(added)} columns, + {added[-1]}"


def count_settings(protocol: str, columns: int) -> int:
    """Count the settings tried for this many columns."""
    additions = sum(range(2, columns))
    return len(GRIDS[protocol]) * (columns + additions + (columns > 1))


def fit_few_shots(fitter: BlockFitter) -> list[dict[str, Any]]:
    """Fit ridge on a few images a class, for each column and all together.

    Returns for each candidate and number of images the main metric on the test rows, with mean and deviation over seeds.
    """
    targets, val = fitter.targets.take(fitter.fitting), fitter.val
    test = fitter.targets.take(fitter.parts == TEST)
    most = np.bincount(targets.values[~val]).max()
    names = tuple(fitter.columns.widths)
    results = []
    for name, columns in [*((name, (name,)) for name in names), *([(ALL, names)] if len(names) > 1 else [])]:
        x = fitter.features(columns)
        for shots in (count for count in SHOTS if count <= most):
            values = []
            for seed in range(fitter.seed, fitter.seed + _SEEDS):
                head = fit_few_shot(x, targets, val, shots, seed).head
                values.append(compute_metrics(test, fitter.test_scores(head, columns))[MAIN["single"]])
            defined = [value for value in values if value is not None]
            results.append(
                {
                    "name": name,
                    "shots": shots,
                    "rows": len(draw_shots(targets, ~val, shots, fitter.seed)),
                    "values": values,
                    "mean": mean(defined) if defined else None,
                    "deviation": stdev(defined) if len(defined) > 1 else None,
                }
            )
    return results


@dataclass(frozen=True)
class Selection:
    """The reports on all candidates, the best one, and the next by the main metric on the validation rows, if any.

    ``head``, ``scores``: of the best candidate, and its scores of the test rows; ``targets``: of the test rows;
    ``comparison``: of the best with the next on the test rows. ``val``, ``val_scores``: targets of the validation rows, and
    their scores by the best candidate's head that did not see them. ``certainty``: fitted on these; ``ood``: the p-values of
    the test rows, float64 ``(n,)``; both None until :func:`densefeat.probing.certainty.add_certainty`. ``layers``: the
    entry of that name in results.json, of the protocol ``layers`` alone.
    """

    reports: tuple[CandidateReport, ...]
    best: CandidateReport
    runner_up: CandidateReport | None
    head: Head
    scores: np.ndarray | None
    targets: Targets
    comparison: PairedComparison | None
    val: Targets
    val_scores: np.ndarray
    certainty: Certainty | None = None
    ood: np.ndarray | None = None
    layers: dict[str, Any] | None = None

    @property
    def main_metric(self) -> str:
        """The metric by which candidates are chosen."""
        return MAIN[self.targets.task]

    @property
    def calibrated(self) -> np.ndarray | None:
        """The scores of the test rows whose softmax or sigmoid is a calibrated probability, where there is a certainty."""
        return self.scores if self.scores is None or self.certainty is None else self.certainty.calibrate(self.scores)


def select_candidate(
    candidates: Iterable[Candidate], val: Targets, test: Targets, seed: int = 0, saved: str | None = None
) -> Selection:
    """Choose the candidate with the highest main metric on the validation rows, and measure every one on the test rows.

    A tie goes to the candidate with fewer features, then to the first. Memory holds the metrics of all candidates, and the
    heads and scores of the best two. ``val``: targets of the rows of ``fit.val_scores``; ``test``: targets of the test rows,
    may be empty. ``saved``: the name of a candidate that is chosen in any case. Raises UsageError if there is no candidate.
    """
    reports: list[CandidateReport] = []
    ranking: list[tuple[CandidateReport, Candidate]] = []
    for candidate in candidates:
        reports.append(_measure(candidate, val, test, seed))
        ranking.append((reports[-1], candidate))
        ranking = sorted(ranking, key=lambda pair: (pair[0].name != saved, *_sorting_key(pair[0], MAIN[val.task])))[:2]
    if not ranking:
        raise UsageError("no candidates to choose from")
    (best, first), *others = ranking
    runner_up, second = others[0] if others else (None, None)
    comparison = None
    if second is not None and first.test_scores is not None and second.test_scores is not None:
        comparison = compare_if_defined(test, first.test_scores, second.test_scores, seed)
    return Selection(
        tuple(reports), best, runner_up, first.fit.head, first.test_scores, test, comparison, val, first.fit.val_scores
    )


def compare_candidates(first: Candidate, second: Candidate, test: Targets, seed: int) -> str:
    """Put the difference of two candidates on the test rows into words; return "" where it is undefined there."""
    if first.test_scores is None or second.test_scores is None:
        return ""
    comparison = compare_if_defined(test, first.test_scores, second.test_scores, seed)
    return "" if comparison is None else describe_comparison(first.name, second.name, comparison)


def describe_comparison(first: str, second: str, comparison: PairedComparison) -> str:
    """Put a comparison into words. ``first``, ``second``: names of what is compared."""
    low, high = comparison.interval
    verdict = "a difference" if comparison.p_value < 0.05 else "no difference that these rows can show"
    return (
        f"{first} minus {second}:"
        f" {comparison.metric} {comparison.difference:+.4g} ({low:+.4g} to {high:+.4g}),"
        f" p = {comparison.p_value:.3g} ({comparison.test}): {verdict}"
    )


def _measure(candidate: Candidate, val: Targets, test: Targets, seed: int) -> CandidateReport:
    fit, scores = candidate.fit, candidate.test_scores
    return CandidateReport(
        candidate.name,
        candidate.columns,
        candidate.features,
        fit.chosen,
        fit.tried,
        compute_metrics(val, fit.val_scores),
        {} if scores is None else compute_metrics(test, scores),
        {} if scores is None else bootstrap(test, scores, seed=seed),
    )


def _sorting_key(report: CandidateReport, main: str) -> tuple[float, int]:
    """Sort the best first; a stable sort keeps the order of equals."""
    value = report.val.get(main)
    return (np.inf if value is None else -value), report.features


def compare_if_defined(test: Targets, first: np.ndarray, second: np.ndarray, seed: int) -> PairedComparison | None:
    """Compare two candidates; return None where the main metric is undefined on these rows."""
    if any(compute_metrics(test, scores)[MAIN[test.task]] is None for scores in (first, second)):
        return None
    return compare_predictions(test, first, second, seed)
