"""What the protocols share: the linear head, and the choice of a setting on validation rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import logsumexp

from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probe.metrics import MAIN, main_metric

_PIECE_VALUES = 2**22


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias`` of features as they are stored: any standardisation is in ``weight`` and ``bias`` already.

    ``weight``: float32 ``(K, D)``; ``bias``: float32 ``(K,)``. ``squeeze``: one score a row instead of K = 1 (regression).
    """

    weight: np.ndarray
    bias: np.ndarray
    squeeze: bool = False

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Float32 ``(n, K)``, or ``(n,)`` where it squeezes, of ``(n, D)`` features of any float type.

        In pieces of rows, in float32. Raises UsageError for another number of features.
        """
        check_features(x, self.weight.shape[1])
        out = np.empty((len(x), len(self.weight)), np.float32)
        step = max(1, _PIECE_VALUES // max(1, x.shape[1]))
        for start in range(0, len(x), step):
            piece = x[start : start + step].astype(np.float32, copy=False)
            np.matmul(piece, self.weight.T, out=out[start : start + step])
        out += self.bias
        return out[:, 0] if self.squeeze else out


def check_features(x: np.ndarray, size: int) -> None:
    if x.ndim != 2 or x.shape[1] != size:
        raise UsageError(f"features of shape {x.shape}: this head takes (rows, {size})")


Advance = Callable[[int], None]
_Setting = dict[str, float | int]
_Solution = TypeVar("_Solution")
SMOOTHING = 0.1  # of labels, where settings are chosen by log loss


@dataclass(frozen=True)
class Choice:
    """``tried``: every setting with its main metric; ``chosen``: the best; ``val_scores``: the scores by it."""

    chosen: _Setting
    tried: list[_Setting]
    val_scores: np.ndarray


def choose(
    name: str,
    solutions: Iterable[tuple[float | int, _Solution]],
    scores: Callable[[_Solution], np.ndarray],
    targets: Targets,
    advance: Advance,
    by_loss: bool = False,
    loss: str = "log_loss",
) -> tuple[Choice, _Solution]:
    """Of pairs (value of the setting ``name``, what was fitted with it) the best by its ``scores`` on the validation rows.

    Of equals the one with the lowest ``loss``, one of :data:`_LOSSES`: few rows give the same accuracy with many settings, the
    strongest penalties among them, which leave no score far from any other. ``by_loss``: that alone decides. One solution is
    kept at a time. Numbers have no loss beside the metric.
    """
    metric, tried, best = MAIN[targets.task], list[_Setting](), (-np.inf, -np.inf)
    for value, solution in solutions:
        found = scores(solution)
        main = validation_metric(targets, found)
        losses = {} if targets.task == "regression" else {loss: _LOSSES[loss](targets, found)}
        tried.append({name: value, metric: main} | losses)
        rating = (0.0 if by_loss else main, -losses.get(loss, 0.0))
        if rating > best:
            best, chosen, kept, kept_scores = rating, value, solution, found
        advance(1)
    return Choice({name: chosen}, tried, kept_scores), kept


def _log_loss(targets: Targets, scores: np.ndarray) -> float:
    """Mean over rows (of several labels, and labels) of the cross entropy of logits with smoothed targets.

    Without smoothing a few rows that are all told apart would ask for weights without bound.
    """
    logits = scores.astype(np.float64)
    if targets.task == "multi":
        losses = np.logaddexp(0, np.where(targets.values, -logits, logits)), np.logaddexp(0, logits) - logits / 2
    else:
        norm = logsumexp(logits, axis=1)
        losses = norm - logits[np.arange(len(logits)), targets.values], norm - logits.mean(1)
    return float((1 - SMOOTHING) * losses[0].mean() + SMOOTHING * losses[1].mean())


def _squared_error(targets: Targets, scores: np.ndarray) -> float:
    """Mean over rows and classes of the squared error of scores that are to be 1 for a row's classes, -1 for the others."""
    multi = targets.task == "multi"
    own = targets.values if multi else targets.values[:, None] == np.arange(len(targets.classes))
    return float(np.mean(np.square(scores - np.where(own, np.float32(1), np.float32(-1))), dtype=np.float64))


_LOSSES: dict[str, Callable[[Targets, np.ndarray], float]] = {"log_loss": _log_loss, "squared_error": _squared_error}


def validation_metric(targets: Targets, scores: np.ndarray) -> float:
    """The main metric on the validation rows. Raises UsageError where it is undefined."""
    value = float(main_metric(targets, scores, np.ones((len(targets), 1), np.uint8))[0])
    if np.isnan(value):
        cause = "no class has a positive row" if targets.task == "multi" else "all have the same target"
        raise UsageError(f"{MAIN[targets.task]} is undefined on the {len(targets)} validation rows: {cause}; hold out others")
    return value
