"""Logistic regression for a whole grid of penalties: the sweep of DINOv2, made cheap enough to be done in full.

Features are centred and turned into their principal axes first, where the Hessian is nearly diagonal; then the penalties are
gone through from the strongest to the weakest. L-BFGS starts at each where the last two solutions point to, and keeps the
curvature that it has seen: of the penalty's part of it the difference is known.
"""

from collections.abc import Iterator

import numpy as np
import torch

from densefeat.labels import Targets
from densefeat.probe.axes import Axes, principal
from densefeat.probe.choice import Advance, Choice, choose
from densefeat.probe.descent import Curvature, minimum
from densefeat.probe.linear import Linear
from densefeat.probe.rows import inverse, moments, rescale

C = tuple(float(c) for c in 10.0 ** np.linspace(-6, 5, 45))
_TOLERANCE = 1e-4
FEW = 500  # validation rows
_PIECE_VALUES = 2**21  # features and scores gone through at a time
NEVER = -1e4  # score of a class that has no training rows


class Loss:
    """Mean log loss of some rows, and its gradient with a penalty added.

    ``x``: float32 ``(n, D)`` on principal axes; ``variance``: along each. Weights: float64 ``(K, D + 1)``, the intercepts last;
    K counts the classes to be told apart: those that some rows have and others have not.
    """

    def __init__(self, x: np.ndarray, variance: np.ndarray, targets: Targets) -> None:
        self.x, self.task = torch.from_numpy(x), targets.task
        self.classes, labels, share = _compact(targets)
        self.labels, self.constants = torch.from_numpy(labels), _constants(targets)
        self.scale = np.append(variance, 0.0)
        self.curvature = (share * (1 - share))[:, None] * np.append(variance, 1.0)  # Hessian's diagonal at the start
        self.start = np.zeros((len(self.classes), x.shape[1] + 1))
        self.start[:, -1] = np.log(share) if self.task == "single" else np.log(share / (1 - share))

    def penalty(self, c: float) -> np.ndarray:
        """Factor of each weight in the gradient ``(D + 1,)``, where the mean loss has factor 1.

        Two classes share one vector of weights in scikit-learn; here each has half of it, and half of its penalty.
        """
        halves = 2 if self.task == "single" and len(self.classes) == 2 else 1
        return np.append(np.full(self.x.shape[1], halves / (c * len(self.x))), 0.0)

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """Of the mean loss alone. Products in float32, sums over pieces of rows in float64."""
        total = np.zeros_like(weights)
        slope, intercept = torch.from_numpy(weights.astype(np.float32)).tensor_split([weights.shape[1] - 1], dim=1)
        step = max(1, _PIECE_VALUES // (self.x.shape[1] + len(weights)))
        for start in range(0, len(self.x), step):
            piece = self.x[start : start + step]
            logits = torch.addmm(intercept, slope, piece.T)
            if self.task == "single":
                residual = _softmax_residual(logits, self.labels[None, start : start + step])
            else:
                residual = _sigmoid_residual(logits, self.labels[:, start : start + step])
            total[:, :-1] += (residual @ piece).numpy()
            total[:, -1] += residual.sum(1).numpy()
        return total / len(self.x)

    def minimum(self, c: float, start: np.ndarray, curvature: Curvature) -> np.ndarray:
        return minimum(self.gradient, self.penalty(c), start, curvature, self.scale, _TOLERANCE)

    def linear(self, weights: np.ndarray) -> Linear:
        """All classes' scores on the axes; those of classes that do not vary are constant."""
        weight = np.zeros((len(self.constants), self.x.shape[1]), np.float32)
        bias = self.constants.astype(np.float32)
        weight[self.classes], bias[self.classes] = weights[:, :-1], weights[:, -1]
        return Linear(weight, bias)


def _softmax_residual(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probabilities ``(K, n)`` less 1 at the label, in place; exact also where they are close, as in separable fits."""
    logits -= logits.amax(0)
    logits.exp_()
    own = logits.gather(0, labels)
    logits.scatter_(0, labels, 0.0)
    others = logits.sum(0, keepdim=True)
    own += others
    logits /= own
    return logits.scatter_(0, labels, -others / own)


def _sigmoid_residual(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probabilities ``(K, n)`` less the labels, in place; exact where these are close."""
    sign = 1 - 2 * labels.float()
    logits *= sign
    return logits.sigmoid_().mul_(sign)


def _compact(targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the classes that vary, ``(K,)``; the labels among these, int64 ``(n,)`` or bool ``(K, n)``; their shares."""
    if targets.task == "multi":
        share = targets.values.mean(0)
        classes = np.flatnonzero((share > 0) & (share < 1))
        return classes, np.ascontiguousarray(targets.values[:, classes].T), share[classes]
    classes, labels, counts = np.unique(targets.values, return_inverse=True, return_counts=True)
    return classes, labels, counts / len(labels)


def _constants(targets: Targets) -> np.ndarray:
    """Scores ``(K,)`` of classes that do not vary: never, or with several labels also always."""
    always = targets.values.all(0) if targets.task == "multi" else np.zeros(len(targets.classes), bool)
    return np.where(always, -NEVER, NEVER)


def fit(x: np.ndarray, targets: Targets, train: int, standardize: bool, advance: Advance) -> tuple[Linear, Choice]:
    """Choose C with the first ``train`` rows, the training rows, on the others; then fit on all.

    ``x``: float32 ``(n, D)``, overwritten. On fewer than ``FEW`` rows C is chosen by log loss alone: their accuracy takes few
    values, and its best ones stand where chance puts them.
    """
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardize:
        mean, deviation = moments(x[:train])
        scale = inverse(deviation)
        rescale(x, mean, scale)
    axes = principal(x)
    fitting, val = targets.take(np.arange(train)), targets.take(np.arange(train, len(x)))
    partial = Loss(axes.x[:train], axes.variance, fitting)

    def scores(weights: np.ndarray) -> np.ndarray:
        return partial.linear(weights).scores(axes.x[train:])

    choice, solution = choose("C", _sweep(partial), scores, val, advance, by_loss=len(val) < FEW)
    loss = Loss(axes.x, axes.variance, targets)
    start = loss.start.copy()
    start[np.isin(loss.classes, partial.classes)] = solution
    weights = loss.minimum(choice.chosen["C"], start, Curvature(loss.curvature))
    return _unturned(loss.linear(weights), axes, mean, scale), choice


def _sweep(loss: Loss) -> Iterator[tuple[float, np.ndarray]]:
    """(C, weights) from the smallest C to the largest."""
    curvature = Curvature(loss.curvature)
    before = weights = loss.start
    for c in C:
        ahead = 2 * weights - before
        before, weights = weights, loss.minimum(c, ahead, curvature)
        yield c, weights


def _unturned(head: Linear, axes: Axes, mean: np.ndarray, scale: np.ndarray) -> Linear:
    """Of features as they were before they were turned, and before ``(x - mean) * scale``."""
    weight = axes.back(head.weight.astype(np.float64))
    raw = weight * scale
    bias = head.bias - weight @ axes.mean - raw @ mean
    return Linear(raw.astype(np.float32), bias.astype(np.float32))
