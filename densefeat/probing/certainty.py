"""How sure the best head is: fitted on the validation rows after the selection, and measured on the test rows."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from densefeat.certainty import (
    CONFIDENCE,
    LEAST_ROWS,
    MAX_ROWS,
    Certainty,
    OutlierDetector,
    find_reliability,
    fit_certainty,
    fit_outliers,
    judge_answers,
    measure_calibration,
    measure_with_intervals,
)
from densefeat.errors import UsageError
from densefeat.labels import TEST, TRAIN, VAL, Targets
from densefeat.probing.candidates import BlockFitter, Selection
from densefeat.store import parse_columns

_LEVELS = (0.9, 0.95)  # of sets, in the report
_RISKS = (0.01, 0.02, 0.05, 0.1)


def add_certainty(selection: Selection, fitter: BlockFitter) -> Selection:
    """Fit the certainty of the best head on the validation rows, and compute the p-values of the test rows.

    The temperature and all promises rest on the scores of the head that did not see the validation rows. Outliers are told by
    the blocks up to the last one that the head reads, fitted on the training rows alone.
    """
    train = fitter.targets.take(fitter.parts == TRAIN)
    certainty = fit_certainty(selection.val, selection.val_scores, train, fitter.seed)
    detector = _fit_detector(selection.best.columns, fitter, train)
    if detector is None:
        return replace(selection, certainty=certainty)
    ood = np.concatenate([np.empty(0), *(detector.p_values(features) for features in _read_pieces(fitter, detector, TEST))])
    return replace(selection, certainty=replace(certainty, outliers=detector), ood=ood)


def _fit_detector(columns: Sequence[str], fitter: BlockFitter, train: Targets) -> OutlierDetector | None:
    """Fit on the training rows and compare with the validation rows; None where there are too few training rows."""
    if len(train) < LEAST_ROWS:
        return None
    names = _choose_columns(columns, list(fitter.columns.widths), fitter.columns.stores[0].provenance)
    rows = fitter.rows[fitter.parts == TRAIN]
    blocks = ((name, fitter.columns.read((name,), rows)) for name in names)
    detector = fit_outliers(blocks, train.values if train.task == "single" else None, fitter.seed)
    statistics = [detector.statistics(features) for features in _read_pieces(fitter, detector, VAL)]
    return replace(detector, validation=np.sort(np.concatenate(statistics)))


def _choose_columns(read: Sequence[str], names: Sequence[str], provenance: dict[str, Any]) -> list[str]:
    """Choose a column of every block up to the last one of ``read``: its mean, or else the first column that there is."""
    columns = parse_columns(names, provenance)
    blocks = list(dict.fromkeys(column.block for column in columns))
    last = max(blocks.index(column.block) for column in columns if column.name in read)
    chosen = []
    for block in blocks[: last + 1]:
        own = [column for column in columns if column.block == block]
        chosen.append(next((column.name for column in own if column.pool == "avg"), own[0].name))
    return chosen


def _read_pieces(fitter: BlockFitter, detector: OutlierDetector, part: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the detector's features of the rows of a part, some rows at a time; of the validation rows, 20,000 at most."""
    names, rows = tuple(detector.blocks), fitter.rows[fitter.parts == part]
    if part == VAL and len(rows) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(fitter.seed).permutation(rows)[:MAX_ROWS])
    ends = np.cumsum([fitter.columns.widths[name] for name in names])[:-1]
    for piece in fitter.columns.pieces(names, rows):
        yield dict(zip(names, np.split(piece, ends, axis=1), strict=True))


def summarize_certainty(selection: Selection, seed: int) -> dict[str, Any] | None:
    """Collect what results.json has about certainty; None where nothing was fitted.

    ``calibration``: of the validation and the test rows, before and after; ``reliability``: bins of the test rows; ``sets``,
    ``risk``: what is promised and what happens on the test rows, or why it cannot be promised; ``outliers``: the columns, and
    the share of test rows with p-values up to 0.05.
    """
    certainty = selection.certainty
    if certainty is None:
        return None
    detector, ood = certainty.outliers, selection.ood
    summary: dict[str, Any] = {
        "temperature": None if certainty.task == "regression" else certainty.temperature,
        "validation_rows": len(certainty.nonconformity),
        "sets": [_measure_sets(selection, certainty, level) for level in _LEVELS],
        "outliers": None if detector is None else {"columns": list(detector.blocks)},
    }
    if ood is not None and len(ood):
        summary["outliers"] |= {"unusual": float((ood <= 0.05).mean())}
    if certainty.task == "regression":
        return summary
    return summary | _summarize_calibration(selection, certainty, seed) | {
        "confidence": CONFIDENCE,
        "risk": [_measure_risk(selection, certainty, risk) for risk in _RISKS],
    }  # fmt: skip


def _summarize_calibration(selection: Selection, certainty: Certainty, seed: int) -> dict[str, Any]:
    temperatures = {"before": 1.0, "after": certainty.temperature}
    val = {name: measure_calibration(selection.val, selection.val_scores, t) for name, t in temperatures.items()}
    summary: dict[str, Any] = {"calibration": {"val": val}}
    if (scores := selection.scores) is not None:
        measured = {name: measure_with_intervals(selection.targets, scores, t, seed=seed) for name, t in temperatures.items()}
        summary["calibration"] |= {
            "test": {name: values for name, (values, _) in measured.items()},
            "intervals": {name: intervals for name, (_, intervals) in measured.items()},
        }
        bins = {name: find_reliability(selection.targets, scores, t) for name, t in temperatures.items()}
        summary["reliability"] = {name: asdict(each) for name, each in bins.items()}
    return summary


def _measure_sets(selection: Selection, certainty: Certainty, level: float) -> dict[str, Any]:
    """Measure how often sets or intervals hold the truth of the test rows, and how large they are."""
    scores, targets = selection.scores, selection.targets
    try:
        quantile = certainty.find_quantile(level)
    except UsageError as error:
        return {"level": level, "problem": str(error)}
    if targets.task == "regression":
        measured = {} if scores is None else {"coverage": float((np.abs(scores - targets.values) <= quantile).mean())}
        return {"level": level, "size": 2 * quantile} | measured
    if scores is None:
        return {"level": level}
    members = certainty.choose_sets(scores, level)
    held = (members | ~targets.values).all(1) if targets.task == "multi" else members[np.arange(len(members)), targets.values]
    return {"level": level, "coverage": float(held.mean()), "size": float(members.sum(1).mean())}


def _measure_risk(selection: Selection, certainty: Certainty, risk: float) -> dict[str, Any]:
    """Measure how many of the test rows are answered for a risk, and how many of the answers are wrong."""
    scores, targets = selection.scores, selection.targets
    try:
        found = certainty.find_threshold(risk)
    except UsageError as error:
        return {"risk": risk, "problem": str(error)}
    if scores is None:
        return {"risk": risk, "threshold": found.threshold}
    answered = certainty.confidences(scores) >= found.threshold
    wrong = float((~judge_answers(targets, scores)[answered]).mean()) if answered.any() else None
    return {"risk": risk, "threshold": found.threshold, "answered": float(answered.mean()), "wrong": wrong}
