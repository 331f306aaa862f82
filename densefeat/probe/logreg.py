"""Logistic regression for a whole grid of penalties."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh

from densefeat.labels import Targets
from densefeat.probe.fitting import Advance, Choice, Linear, choose
from densefeat.probe.matrices import centre_kernel, correlate, gram, invert_deviation, kernel, moments, rescale, row_pieces

_LEAST_VARIANCE = 1e-13  # of the largest; less is rounding


@dataclass(frozen=True)
class PrincipalAxes:
    """``x``: float32 ``(n, r)``, centred, on axes of ``variance`` ``(r,)``.

    ``vectors``: the axes ``(D, r)``; or, where ``rows`` ``(n, D)`` are given, what to multiply these by to have them.
    """

    x: np.ndarray
    variance: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray
    rows: np.ndarray | None = None

    def back(self, weight: np.ndarray) -> np.ndarray:
        """Weights ``(K, r)`` on the axes as weights ``(K, D)`` of the features, float64."""
        inner = self.vectors @ weight.T
        return inner.T if self.rows is None else correlate(self.rows, inner).T - np.outer(inner.sum(0), self.mean)


def rotate_to_axes(x: np.ndarray) -> PrincipalAxes:
    """Of float32 ``(n, D)`` features; with n > D their memory is that of the result."""
    mean = x.mean(0, dtype=np.float64)
    if len(x) > x.shape[1]:
        values, vectors = eigh(gram(x) - len(x) * np.outer(mean, mean), overwrite_a=True, check_finite=False)
        vectors[:, values <= _LEAST_VARIANCE * values[-1]] = 0
        for piece in row_pieces(x):
            x[piece] = (x[piece] - mean) @ vectors
        return PrincipalAxes(x, np.maximum(values, 0) / len(x), vectors, mean)
    values, vectors = eigh(centre_kernel(kernel(x)), overwrite_a=True, check_finite=False)
    kept = values > _LEAST_VARIANCE * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    turned = (vectors * np.sqrt(values)).astype(np.float32)
    return PrincipalAxes(turned, values / len(x), vectors / np.sqrt(values), mean, x)


_PAIRS = 10
_MAX_STEPS = 1000
_MAX_SHORTENED = 20

_Gradient = Callable[[np.ndarray], np.ndarray]


class Curvature:
    """What past steps tell about the Hessian. ``diagonal``: of the unpenalised function, roughly, in the weights' shape."""

    def __init__(self, diagonal: np.ndarray) -> None:
        self.diagonal = diagonal
        self.penalty = np.zeros(diagonal.shape[1])
        self.pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=_PAIRS)

    def penalise(self, penalty: np.ndarray) -> None:
        """Change the penalty, and what past gradients would have been with it."""
        for step, change in self.pairs:
            change += (penalty - self.penalty) * step
        self.penalty = penalty

    def add(self, step: np.ndarray, change: np.ndarray) -> bool:
        """A step and the change of the gradient. False: they show no curvature, the rest is rounding."""
        if _dot(step, change) <= 0:
            return False
        self.pairs.append((step, change))
        return True

    def newton(self, gradient: np.ndarray) -> np.ndarray:
        """About the step to the minimum."""
        direction, products = gradient.copy(), []
        for step, change in reversed(self.pairs):
            along = _dot(step, direction) / _dot(step, change)
            direction -= along * change
            products.append(along)
        direction /= self.diagonal + self.penalty
        if self.pairs:
            step, change = self.pairs[-1]
            direction *= _dot(step, change) / _dot(change, change / (self.diagonal + self.penalty))
        for (step, change), along in zip(self.pairs, reversed(products), strict=True):
            direction += (along - _dot(change, direction) / _dot(step, change)) * step
        return -direction


def minimize(
    gradient: _Gradient, penalty: np.ndarray, weights: np.ndarray, curvature: Curvature, scale: np.ndarray, tolerance: float
) -> np.ndarray:
    """Weights float64 ``(K, D)`` where the gradient, with ``penalty * weights`` added, vanishes.

    Done when the step ahead is less than ``tolerance`` of the weights, both weighed by ``scale``: with the mean square of what
    each is multiplied with (0 for intercepts) that is when predictions would change by less than that.
    """
    curvature.penalise(penalty)
    slope = gradient(weights) + penalty * weights
    for _ in range(_MAX_STEPS):
        direction = curvature.newton(slope)
        if _norm(direction, scale) <= tolerance * _norm(weights, scale):
            break
        reached, slope_there = _line_search(gradient, penalty, weights, direction, _dot(slope, direction))
        useful = curvature.add(reached - weights, slope_there - slope)
        weights, slope = reached, slope_there
        if not useful:
            break
    return weights


def _line_search(
    gradient: _Gradient, penalty: np.ndarray, weights: np.ndarray, direction: np.ndarray, descent: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights on the way, and the slope there; shorter than a whole step where that would climb again."""
    length = 1.0
    for _ in range(_MAX_SHORTENED):
        reached = weights + length * direction
        slope = gradient(reached) + penalty * reached
        climb = _dot(slope, direction)
        if climb <= 0.5 * abs(descent):
            break
        length *= min(0.7, max(0.1, descent / (descent - climb)))  # where a straight line between the slopes is zero
    return reached, slope


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))


def _norm(weights: np.ndarray, scale: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("kd,kd,d->", weights, weights, scale)))


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
        self.classes, labels, share = _select_varying(targets)
        self.labels, self.constants = torch.from_numpy(labels), _constant_scores(targets)
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
        return minimize(self.gradient, self.penalty(c), start, curvature, self.scale, _TOLERANCE)

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


def _select_varying(targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the classes that vary, ``(K,)``; the labels among these, int64 ``(n,)`` or bool ``(K, n)``; their shares."""
    if targets.task == "multi":
        share = targets.values.mean(0)
        classes = np.flatnonzero((share > 0) & (share < 1))
        return classes, np.ascontiguousarray(targets.values[:, classes].T), share[classes]
    classes, labels, counts = np.unique(targets.values, return_inverse=True, return_counts=True)
    return classes, labels, counts / len(labels)


def _constant_scores(targets: Targets) -> np.ndarray:
    """Scores ``(K,)`` of classes that do not vary: never, or with several labels also always."""
    always = targets.values.all(0) if targets.task == "multi" else np.zeros(len(targets.classes), bool)
    return np.where(always, -NEVER, NEVER)


def fit_logreg(x: np.ndarray, targets: Targets, train: int, standardize: bool, advance: Advance) -> tuple[Linear, Choice]:
    """Choose C with the first ``train`` rows, the training rows, on the others; then fit on all.

    ``x``: float32 ``(n, D)``, overwritten. On fewer than ``FEW`` rows C is chosen by log loss alone: their accuracy takes few
    values, and its best ones stand where chance puts them.
    """
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardize:
        mean, deviation = moments(x[:train])
        scale = invert_deviation(deviation)
        rescale(x, mean, scale)
    axes = rotate_to_axes(x)
    fitting, val = targets.take(np.arange(train)), targets.take(np.arange(train, len(x)))
    partial = Loss(axes.x[:train], axes.variance, fitting)

    def scores(weights: np.ndarray) -> np.ndarray:
        return partial.linear(weights).scores(axes.x[train:])

    choice, solution = choose("C", _sweep(partial), scores, val, advance, by_loss=len(val) < FEW)
    loss = Loss(axes.x, axes.variance, targets)
    start = loss.start.copy()
    start[np.isin(loss.classes, partial.classes)] = solution
    weights = loss.minimum(choice.chosen["C"], start, Curvature(loss.curvature))
    return _to_features(loss.linear(weights), axes, mean, scale), choice


def _sweep(loss: Loss) -> Iterator[tuple[float, np.ndarray]]:
    """(C, weights) from the smallest C to the largest."""
    curvature = Curvature(loss.curvature)
    before = weights = loss.start
    for c in C:
        ahead = 2 * weights - before
        before, weights = weights, loss.minimum(c, ahead, curvature)
        yield c, weights


def _to_features(head: Linear, axes: PrincipalAxes, mean: np.ndarray, scale: np.ndarray) -> Linear:
    """Of features as they were before they were turned, and before ``(x - mean) * scale``."""
    weight = axes.back(head.weight.astype(np.float64))
    raw = weight * scale
    bias = head.bias - weight @ axes.mean - raw @ mean
    return Linear(raw.astype(np.float32), bias.astype(np.float32))
