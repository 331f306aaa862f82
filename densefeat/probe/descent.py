"""L-BFGS for a penalised convex function whose penalty is lowered step by step.

Nocedal and Wright, Numerical Optimization (2nd edition), algorithms 7.4 and 7.5, with a diagonal for the scaled
identity. Steps are judged by slopes alone: differences of float32 losses say nothing near the minimum.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

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


def minimum(
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
        if _size(direction, scale) <= tolerance * _size(weights, scale):
            break
        reached, slope_there = _search(gradient, penalty, weights, direction, _dot(slope, direction))
        useful = curvature.add(reached - weights, slope_there - slope)
        weights, slope = reached, slope_there
        if not useful:
            break
    return weights


def _search(
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


def _size(weights: np.ndarray, scale: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("kd,kd,d->", weights, weights, scale)))
