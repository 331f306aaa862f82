"""The code that all protocols share: linear heads, and the choice of a setting on validation rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import logsumexp

from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probing.metrics import MAIN, main_metric

_PIECE_VALUES = 2**22  # features converted at a time


@dataclass(frozen=True)
class LinearHead:
    """A linear head, ``x @ weight.T + bias``, for unscaled features: ``weight`` and ``bias`` include any standardisation.

    ``weight``: float32 ``(K, D)``; ``bias``: float32 ``(K,)``. ``squeeze``: scores are ``(n,)`` (regression, K = 1).
    """

    weight: np.ndarray
    bias: np.ndarray
    squeeze: bool = False

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Score ``(n, D)`` features of any float type: float32 ``(n, K)``, or ``(n,)`` with ``squeeze``.

        Computes in float32, in pieces of rows. Raises UsageError for another number of features.
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
        raise UsageError(f"features of shape {x.shape}: this head takes shape (rows, {size})")


def encode_targets(targets: Targets) -> np.ndarray:
    """Encode targets as float64 ``(n, K)``: 1 for the classes of a row, -1 for the others; numbers ``(n, 1)`` as they are."""
    if targets.task == "regression":
        return targets.values[:, None]
    if targets.task == "multi":
        return 2.0 * targets.values - 1
    return 2.0 * (targets.values[:, None] == np.arange(len(targets.classes))) - 1


Advance = Callable[[int], None]
_Setting = dict[str, float | int]
_Solution = TypeVar("_Solution")
SMOOTHING = 0.1  # of labels, where settings are chosen by log loss


@dataclass(frozen=True)
class Choice:
    """The best setting. ``tried``: every setting with its main metric; ``val_scores``: scores with the best one."""

    chosen: _Setting
    tried: list[_Setting]
    val_scores: np.ndarray


def choose_setting(
    name: str,
    solutions: Iterable[tuple[float | int, _Solution]],
    scores: Callable[[_Solution], np.ndarray],
    targets: Targets,
    advance: Advance,
    by_loss: bool = False,
    loss: str = "log_loss",
) -> tuple[Choice, _Solution]:
    """Choose the best of several values of the setting ``name`` by the main metric on the validation rows.

    Among equals the lowest ``loss``, one of :data:`_LOSSES`, decides: with few rows many settings have the same accuracy, even
    penalties so strong that all scores are nearly equal.

    Args:
        solutions: Pairs of a value and the solution fitted with it; only the best solution so far is kept in memory.
        scores: Computes the scores of the validation rows from a solution.
        targets: Targets of the validation rows. For a regression the metric alone decides.
        by_loss: Let the loss alone decide.
    """
    metric, tried, best = MAIN[targets.task], list[_Setting](), (-np.inf, -np.inf)
    for value, solution in solutions:
        val_scores = scores(solution)
        main = validation_metric(targets, val_scores)
        losses = {} if targets.task == "regression" else {loss: _LOSSES[loss](targets, val_scores)}
        tried.append({name: value, metric: main} | losses)
        rating = (0.0 if by_loss else main, -losses.get(loss, 0.0))
        if rating > best:
            best, chosen, best_solution, best_scores = rating, value, solution, val_scores
        advance(1)
    return Choice({name: chosen}, tried, best_scores), best_solution


def _log_loss(targets: Targets, scores: np.ndarray) -> float:
    """Average the cross entropy of logits with smoothed targets over rows, and over classes for multi-label targets.

    Without smoothing, a few rows that are all classified correctly would favour weights without bound.
    """
    logits = scores.astype(np.float64)
    if targets.task == "multi":
        losses = np.logaddexp(0, np.where(targets.values, -logits, logits)), np.logaddexp(0, logits) - logits / 2
    else:
        norm = logsumexp(logits, axis=1)
        losses = norm - logits[np.arange(len(logits)), targets.values], norm - logits.mean(1)
    return float((1 - SMOOTHING) * losses[0].mean() + SMOOTHING * losses[1].mean())


def _squared_error(targets: Targets, scores: np.ndarray) -> float:
    """Average the squared error over rows and classes; scores should be 1 for the classes of a row, and -1 for the others."""
    multi = targets.task == "multi"
    own = targets.values if multi else targets.values[:, None] == np.arange(len(targets.classes))
    return float(np.mean(np.square(scores - np.where(own, np.float32(1), np.float32(-1))), dtype=np.float64))


_LOSSES: dict[str, Callable[[Targets, np.ndarray], float]] = {"log_loss": _log_loss, "squared_error": _squared_error}


def validation_metric(targets: Targets, scores: np.ndarray) -> float:
    """Compute the main metric on the validation rows. Raises UsageError where it is undefined."""
    value = float(main_metric(targets, scores, np.ones((len(targets), 1), np.uint8))[0])
    if np.isnan(value):
        cause = "no class has a positive row" if targets.task == "multi" else "all have the same target"
        raise UsageError(
            f"{MAIN[targets.task]} is undefined on the {len(targets)} validation rows: {cause}; hold out other rows"
        )
    return value
