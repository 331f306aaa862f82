"""The relevance of features: the norms of their rows in a linear fit that a group lasso (L2,1) makes sparse.

Source: Evci et al., Head2Toe (arXiv 2201.03529), section 3, who fit by SGD with cross entropy for a fixed number of steps. Here
the loss is the squared error of centred targets. The fit then needs nothing but second moments, is convex, and is solved until
a duality gap says how near the minimum is: the same features have the same relevance every time.
"""

from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError

TOLERANCE = 1e-5  # of the duality gap, as a share of the loss without features
_INNER_SHARE = 0.3  # of the allowed gap, on a working set
_CHECKED = 20  # steps from one computation of the gap to the next
_MAX_STEPS = 20_000  # on a working set
_MAX_ROUNDS = 100
_FEWEST_ADDED = 50  # features that a working set gains at a time
_LEAST_VARIANCE = 1e-10  # as a share of the largest; steps are no longer than for that
_PIECE_VALUES = 2**20  # features converted at a time
_POWER_STEPS = 50
_SLACK = 1.1  # on an eigenvalue that power iteration approaches from below; FISTA is stable up to a third more


@dataclass(frozen=True)
class Moments:
    """Sums over ``rows`` rows around their mean, float64.

    ``gram``: products of the features ``(D, D)``; ``cross``: of features and targets ``(D, K)``; ``square``: of the targets
    with themselves, all together.
    """

    rows: int
    gram: np.ndarray
    cross: np.ndarray
    square: float


def measure_moments(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> Moments:
    """Sum up some rows of float32 ``(n, D)`` features and float64 ``(n, K)`` targets, a few at a time.

    ``rows``: their positions, in which some may be repeated.
    """
    size = x.shape[1]
    total, gram, cross = np.zeros(size), np.zeros((size, size)), np.zeros((size, y.shape[1]))
    pieces = np.array_split(rows, -(-len(rows) * size // _PIECE_VALUES))
    for piece in pieces:
        total += x[piece].sum(0, dtype=np.float64)
    mean, targets = total / len(rows), y[rows] - y[rows].mean(0)
    done = 0
    for piece in pieces:
        values = x[piece] - mean
        gram += values.T @ values
        cross += values.T @ targets[done : done + len(piece)]
        done += len(piece)
    return Moments(len(rows), gram, cross, float(np.square(targets).sum()))


def find_largest_penalty(moments: Moments) -> float:
    """Return the smallest penalty at which no feature has any weight."""
    return float(_row_norms(moments.cross).max()) / moments.rows


def measure_relevance(weights: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of each feature's row in weights ``(D, K)``, float64 ``(D,)``."""
    return _row_norms(weights)


def fit_group_lasso(
    moments: Moments, penalty: float, start: np.ndarray | None = None, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Minimise ``|Y - X W|² / 2n + penalty * Σ_j |W_j|``, where W_j is the row of feature j; returns float64 ``(D, K)``.

    This is the objective of scikit-learn's MultiTaskLasso. Features that may have weight are a working set, which grows by
    those that violate the optimality conditions most; on it, FISTA (Beck and Teboulle 2009) with a step for each row, restarted
    where it overshoots (O'Donoghue and Candès 2015). It ends when the duality gap is less than 1e-5 of the loss without
    features.

    ``start``: weights to start from, such as those for a penalty or rows that differ little; they change the work alone.
    Raises UsageError for a penalty that is not positive, or so small that the minimum is not reached.
    """
    if not moments.cross.any():
        return np.zeros_like(moments.cross)
    if not penalty > 0:
        raise UsageError(f"penalty {penalty}: it must be positive")
    gram, cross, square, penalty = moments.gram, moments.cross, moments.square, penalty * moments.rows
    allowed = tolerance * square / 2
    weights = np.zeros_like(cross) if start is None else start.copy()
    working = np.flatnonzero(weights.any(1))
    for _ in range(_MAX_ROUNDS):
        slope = cross - gram[working].T @ weights[working]
        if _measure_gap(weights, slope, cross, square, penalty) <= allowed:
            return weights
        excess = _row_norms(slope) - penalty
        excess[working] = 0
        worst = np.argsort(-excess, kind="stable")[: max(_FEWEST_ADDED, len(working))]
        working = np.union1d(np.flatnonzero(weights.any(1)), worst[excess[worst] > 0])
        within = gram[np.ix_(working, working)]
        weights[working] = _fit_working_set(within, cross[working], square, penalty, weights[working], _INNER_SHARE * allowed)
    raise UsageError(f"penalty {penalty / moments.rows:.3g} is too small for these features: the fit has not converged")


def _fit_working_set(
    gram: np.ndarray, cross: np.ndarray, square: float, penalty: float, weights: np.ndarray, allowed: float
) -> np.ndarray:
    """Solve for all rows of ``weights``, by FISTA, until the gap is allowed."""
    steps = _choose_steps(gram)
    ahead, momentum = weights, 1.0
    for step in range(_MAX_STEPS):
        if step % _CHECKED == 0 and _measure_gap(weights, cross - gram @ weights, cross, square, penalty) <= allowed:
            break
        reached = _shrink(ahead + steps * (cross - gram @ ahead), penalty * steps)
        if np.vdot((ahead - reached) / steps, reached - weights) > 0:  # the step turned back
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = reached + (momentum - 1) / grown * (reached - weights)
        weights, momentum = reached, grown
    return weights


def _choose_steps(gram: np.ndarray) -> np.ndarray:
    """Choose a step for each row, ``(D, 1)``: the inverse of its curvature, over the largest eigenvalue of the scaled Gram."""
    diagonal = np.maximum(np.diag(gram), _LEAST_VARIANCE * np.diag(gram).max())
    diagonal = np.maximum(diagonal, np.finfo(np.float64).tiny)
    scale = 1 / np.sqrt(diagonal)
    vector = np.random.default_rng(0).standard_normal(len(gram))  # a regular one may be at right angles to what is sought
    for _ in range(_POWER_STEPS):
        vector = scale * (gram @ (scale * vector))
        largest = max(float(np.sqrt(vector @ vector)), np.finfo(np.float64).tiny)
        vector /= largest
    return (1 / (_SLACK * largest * diagonal))[:, None]


def _shrink(weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Shorten every row by its threshold, to zero where it is shorter."""
    norms = _row_norms(weights)[:, None]
    return weights * (1 - np.divide(thresholds, norms, out=np.ones_like(norms), where=norms > thresholds))


def _row_norms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("jk,jk->j", values, values))


def _measure_gap(weights: np.ndarray, slope: np.ndarray, cross: np.ndarray, square: float, penalty: float) -> float:
    """Compute the duality gap, times the rows. ``slope``: products of the features and the residual.

    The dual point is the residual, scaled until it meets the constraints.
    """
    explained = float(np.vdot(weights, cross))
    residual_square = square - explained - float(np.vdot(weights, slope))
    residual_target = square - explained
    primal = residual_square / 2 + penalty * float(_row_norms(weights).sum())
    longest = float(_row_norms(slope).max())
    scale = min(residual_target / residual_square, penalty / longest) if residual_square > 0 and longest > 0 else 1.0
    return primal - (scale * residual_target - scale**2 * residual_square / 2)
