"""Ridge regression: a grid of L2 penalties from one eigendecomposition."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, solve

from densefeat.labels import Targets, Task
from densefeat.probing.fitting import Advance, Choice, LinearHead, choose_setting, encode_targets
from densefeat.probing.matrices import centre_kernel, correlate, gram, invert_deviation, kernel, moments, rescale

L2 = tuple(2.0**i for i in range(-10, 20))


@dataclass(frozen=True)
class _RidgePath:
    """The solutions for every penalty, float64. ``rows``: the features ``(n, D)`` if the vectors are those of ``x @ x.T``."""

    vectors: np.ndarray
    spectrum: np.ndarray
    projected: np.ndarray
    mean: np.ndarray
    target: np.ndarray
    rows: np.ndarray | None = None

    def weight(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute weights ``(D, K)`` and bias ``(K,)`` for one penalty."""
        inner = self.vectors @ (self.projected / (self.spectrum + l2)[:, None])
        weight = inner if self.rows is None else correlate(self.rows, inner)
        return weight, self.target - self.mean @ weight


@dataclass(frozen=True)
class _Scale:
    """Mean and deviation of features, and of the targets of a regression."""

    mean: np.ndarray
    inverse: np.ndarray
    target_mean: float
    target_deviation: float

    def fold(self, weight: np.ndarray, bias: np.ndarray, squeeze: bool) -> LinearHead:
        """Turn ``(D, K)`` weights for standardised features into a head for features that are not."""
        raw = (weight * self.inverse[:, None]).T * self.target_deviation
        shift = bias * self.target_deviation + self.target_mean - raw @ self.mean
        return LinearHead(raw.astype(np.float32), shift.astype(np.float32), squeeze)


def _measure_scale(x: np.ndarray, targets: Targets) -> _Scale:
    mean, deviation = moments(x)
    if targets.task != "regression":
        return _Scale(mean, invert_deviation(deviation), 0.0, 1.0)
    return _Scale(mean, invert_deviation(deviation), float(targets.values.mean()), float(targets.values.std()))


def _regression_targets(targets: Targets, scale: _Scale) -> np.ndarray:
    """Encode targets as float64 ``(n, K)``; numbers are standardised."""
    return (encode_targets(targets) - scale.target_mean) / scale.target_deviation


def fit_ridge(x: np.ndarray, targets: Targets, train: int, advance: Advance, refit: bool = True) -> tuple[LinearHead, Choice]:
    """Fit the first ``train`` rows, choose the penalty on the others, the validation rows; then fit all rows if ``refit``.

    ``x``: float32 ``(n, D)``, standardised in place by mean and deviation of the training rows.
    """
    fitting, val = targets.take(np.arange(train)), targets.take(np.arange(train, len(x)))
    scale = _measure_scale(x[:train], fitting)
    rescale(x, scale.mean, scale.inverse)
    grid = _solve_path(x[:train], _regression_targets(fitting, scale))
    fits = ((l2, grid.weight(l2)) for l2 in L2)

    def score_fit(fit: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return _score(x[train:], *fit, scale, val.task)

    choice, solution = choose_setting("l2", fits, score_fit, val, advance, loss="squared_error")
    if refit:
        solution = _solve(x, _regression_targets(targets, scale), choice.chosen["l2"])
    return scale.fold(*solution, targets.task == "regression"), choice


def _score(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: _Scale, task: Task) -> np.ndarray:
    values = x @ weight.astype(np.float32) + bias
    values = (values * scale.target_deviation + scale.target_mean).astype(np.float32)
    return values[:, 0] if task == "regression" else values


def _solve_path(x: np.ndarray, y: np.ndarray) -> _RidgePath:
    """Solve for all penalties from the smaller of ``x.T @ x`` and ``x @ x.T``; the bias is not penalised.

    ``x``: standardised features ``(n, D)``; ``y``: ``(n, K)``.
    """
    mean, target = x.mean(0, dtype=np.float64), y.mean(0)
    small = len(x) > x.shape[1]
    square = gram(x) - len(x) * np.outer(mean, mean) if small else centre_kernel(kernel(x))
    spectrum, vectors = eigh(square, overwrite_a=True, check_finite=False, driver="evd")
    spectrum = np.maximum(spectrum, 0)
    if small:
        return _RidgePath(vectors, spectrum, vectors.T @ correlate(x, y - target), mean, target)
    projected = vectors.T @ (y - target)
    return _RidgePath(vectors - vectors.mean(0), spectrum, projected, mean, target, x)


def _solve(x: np.ndarray, y: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve for one penalty: weights ``(D, K)`` and bias ``(K,)``, float64."""
    mean, target = x.mean(0, dtype=np.float64), y.mean(0)
    if len(x) > x.shape[1]:
        left = gram(x) - len(x) * np.outer(mean, mean)
        left[np.diag_indices_from(left)] += l2
        weight = solve(left, correlate(x, y - target), overwrite_a=True, assume_a="pos")
    else:
        left = centre_kernel(kernel(x))
        left[np.diag_indices_from(left)] += l2
        dual = solve(left, y - target, overwrite_a=True, assume_a="pos")
        weight = correlate(x, dual - dual.mean(0))
    return weight, target - mean @ weight
