"""Fits by published protocols: the setting is chosen on validation rows, then the head is fitted on all rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import Targets, Task
from densefeat.probing import knn, logreg, ridge
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.fitting import SMOOTHING, Choice, LinearHead
from densefeat.probing.knn import KnnHead
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.matrices import check_finite, move_validation_last
from densefeat.probing.metrics import MAIN

_PROTOCOLS = ("logreg", "knn", "ridge")
GRIDS: dict[str, tuple[float | int, ...]] = {"logreg": logreg.C, "knn": knn.NEIGHBOURS, "ridge": ridge.L2}
SHOTS = (1, 5, 10, 25)
LOWEST_LOSS = f"the lowest log loss (labels smoothed by {SMOOTHING})"
_LOWEST_ERROR = "the lowest mean squared error"

Head = LinearHead | KnnHead | LayersHead | AttentiveHead


@dataclass(frozen=True)
class ProbeFit:
    """A head fitted on all rows, and how its setting was chosen.

    ``chosen``: the setting, such as ``{"C": 0.1}``. ``tried``: every setting, with its main metric on the validation rows.
    ``val_scores``: scores of the validation rows, in their order, by a head of the chosen setting that did not see them.
    """

    head: Head
    chosen: dict[str, float | int]
    tried: list[dict[str, float | int]]
    val_scores: np.ndarray


def _ignore_progress(_: int) -> None:
    pass


def fit_head(
    protocol: str,
    x: np.ndarray,
    targets: Targets,
    val: np.ndarray,
    *,
    standardize: bool = False,
    advance: Callable[[int], None] = _ignore_progress,
) -> ProbeFit:
    """Choose the setting on the validation rows, among equally good ones by their loss; then fit on all rows.

    Args:
        protocol: One of :data:`_PROTOCOLS`; see :func:`describe_protocol`.
        x: Float32 ``(n, D)``, C-contiguous. It is overwritten, and may become part of the head: no copy is made.
        val: Bool ``(n,)``, the validation rows.
        standardize: For logreg: divide each feature by its standard deviation over the training rows, after subtracting its
            mean. ridge always does so, knn never.
        advance: Called with the number of settings done since the last call: ``len(GRIDS[protocol])`` in all.

    Raises:
        UsageError: An unknown protocol, or one that does not fit the task; features of another type or shape, or with NaN or
            infinite values; no validation or no training rows; training rows of one class, or of equal numbers.
    """
    _check_protocol(protocol, targets.task, standardize)
    check_rows(x, targets, val)
    order = move_validation_last(x, val)
    ordered, train = targets.take(order), int(np.count_nonzero(~val))
    done = 0

    def count(settings: int) -> None:
        nonlocal done
        done += settings
        advance(settings)

    head, choice = _fit_ordered(protocol, x, ordered, train, standardize, count)
    advance(len(GRIDS[protocol]) - done)
    positions = order[train:]  # of the validation rows, before rows were moved
    return ProbeFit(head, choice.chosen, choice.tried, choice.val_scores[np.argsort(positions)])


def _fit_ordered(
    protocol: str, x: np.ndarray, targets: Targets, train: int, standardize: bool, advance: Callable[[int], None]
) -> tuple[Head, Choice]:
    if protocol == "logreg":
        return logreg.fit_logreg(x, targets, train, standardize, advance)
    if protocol == "knn":
        return knn.fit_knn(x, targets, train, advance)
    return ridge.fit_ridge(x, targets, train, advance)


def draw_shots(targets: Targets, candidates: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draw ``shots`` candidate rows of each class, or all of a class that has fewer; returns their positions, ascending.

    ``candidates``: bool ``(n,)``. Raises UsageError unless targets are single-label, and for less than 1 shot.
    """
    if targets.task != "single":
        raise UsageError(f"few-shot fits of {targets.task} targets: only single-label classes have shots")
    if shots < 1:
        raise UsageError(f"{shots} shots: give at least 1")
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(candidates & (targets.values == k)) for k in range(len(targets.classes))]
    return np.sort(np.concatenate([generator.permutation(some)[:shots] for some in rows]))


def fit_few_shot(x: np.ndarray, targets: Targets, val: np.ndarray, shots: int, seed: int, standardize: bool = True) -> ProbeFit:
    """Fit ridge on ``shots`` training rows of each class.

    The penalty is chosen on all validation rows; the head is fitted on the drawn rows alone. ``x`` is not changed. Arguments
    and errors as :func:`fit_head`.
    """
    _check_protocol("ridge", targets.task, standardize)
    check_rows(x, targets, val)
    drawn = draw_shots(targets, ~val, shots, seed)
    rows = np.concatenate([drawn, np.flatnonzero(val)])
    head, choice = ridge.fit_ridge(x[rows], targets.take(rows), len(drawn), _ignore_progress, refit=False)
    return ProbeFit(head, choice.chosen, choice.tried, choice.val_scores)


def _check_protocol(protocol: str, task: Task, standardize: bool) -> None:
    if protocol not in _PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: one of {', '.join(_PROTOCOLS)}")
    if protocol == "logreg" and task == "regression":
        raise UsageError("protocol 'logreg' predicts classes, but these labels are numbers: use ridge or knn")
    if protocol == "knn" and standardize:
        raise UsageError("protocol 'knn' uses the cosine of unscaled features: leave out standardize")


def check_rows(x: np.ndarray, targets: Targets, val: np.ndarray) -> None:
    """Raise UsageError for features, targets or parts that nothing can be learnt from."""
    if x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous or not x.shape[1]:
        raise UsageError(f"features of type {x.dtype} and shape {x.shape}: they must be float32 (rows, features), C-contiguous")
    if not len(x) == len(targets) == len(val) or val.dtype != bool:
        raise UsageError(
            f"{len(x)} rows of features, {len(targets)} targets and a mask of {len(val)} {val.dtype}: give as many, a bool mask"
        )
    held_out = int(np.count_nonzero(val))
    if not 0 < held_out < len(x):
        raise UsageError(f"{held_out} of {len(x)} rows are for validation: there must be training and validation rows")
    check_finite(x)
    values = targets.values[~val]
    if not (values != values[0]).any():
        alike = "labels" if targets.task == "multi" else "class" if targets.task == "single" else "number"
        raise UsageError(f"all {len(values)} training rows have the same {alike}: there is nothing to learn")


def describe_protocol(protocol: str, task: Task) -> dict[str, Any]:
    """Describe a protocol as results.json has it: name, grid, criterion, solver, sources.

    The texts identify finished probes: with another wording these would count as other probes, so a test fixes them.
    """
    _check_protocol(protocol, task, standardize=False)
    setting = {"logreg": "C", "knn": "k", "ridge": "l2"}[protocol]
    of_equals = "the first" if task == "regression" else _LOWEST_ERROR if protocol == "ridge" else LOWEST_LOSS
    of_few = f"; by that alone on fewer than {logreg.FEW} rows" if protocol == "logreg" else ""
    return {
        "name": protocol,
        "grid": {setting: list(GRIDS[protocol])},
        "criterion": f"{MAIN[task]} on the validation rows; of equals {of_equals}{of_few}",
        **_METHODS[protocol],
    }


_METHODS: dict[str, dict[str, Any]] = {
    "logreg": {
        "objective": "C * sum of log losses + half the squared weights; the intercept is not penalised",
        "solver": "L-BFGS",
        "refit": "on all rows",
        "sources": ["arXiv 2304.07193 (DINOv2), linear evaluation by logistic regression: the grid of C"],
    },
    "knn": {
        "objective": f"cosine, votes weighted by exp(cosine / {knn.TEMPERATURE})",
        "solver": "exact",
        "refit": "all rows vote",
        "sources": ["arXiv 2104.14294 (DINO), appendix F.1"],
    },
    "ridge": {
        "objective": "squared errors of targets 1 and -1 (numbers: standardised) + l2 * squared weights; features standardised",
        "solver": "eigendecomposition",
        "refit": "on all rows; few-shot fits: on the drawn rows alone",
        "sources": ["google-research/big_vision, evaluators/fewshot_lsr.py"],
    },
}
