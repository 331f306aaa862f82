"""Sets of classes and intervals of numbers that hold the truth as often as promised: split conformal prediction.

Vovk et al., Algorithmic Learning in a Random World, 2005; Lei et al., arXiv 1604.04173, for intervals. The score of a class is
1 less its probability (least ambiguous sets: Sadinle, Lei and Wasserman, JASA 2019, arXiv 1609.00451), which gives the smallest
sets on average; it does not promise the coverage in every class, or for hard and easy images alike.
"""

import math

import numpy as np

from densefeat.errors import UsageError


def measure_nonconformity(task: str, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how badly each row's truth fits, float64 ``(n,)``: a set or an interval of this size just holds it.

    single: 1 less the probability of the class (``values``: probabilities ``(n, K)``, ``wanted``: codes); multi: the largest of
    1 less the probability over the classes of a row, 0 where it has none (``wanted``: bool ``(n, K)``); regression: the
    absolute error (``values``, ``wanted``: ``(n,)``).
    """
    if task == "regression":
        return np.abs(values.astype(np.float64) - wanted)
    if task == "multi":
        return np.where(wanted, 1 - values, 0.0).max(1)
    return 1 - values[np.arange(len(values)), wanted]


def find_quantile(nonconformity: np.ndarray, level: float) -> float:
    """Return the size at which sets hold the truth of new rows with a probability of at least ``level``.

    This holds on average over draws of the validation rows and one new row, if these are exchangeable.
    ``nonconformity``: float64 ``(m,)``, ascending. Raises UsageError for a level that is no share, or that needs more rows.
    """
    if not 0 < level < 1:
        raise UsageError(f"a level of {level:g}: give the share of sets that should hold the truth, such as 0.95")
    rank = math.ceil((len(nonconformity) + 1) * level - 1e-9)
    if rank > len(nonconformity):
        needed = math.ceil(level / (1 - level) - 1e-9)
        raise UsageError(
            f"{len(nonconformity)} validation rows cannot promise a coverage of {100 * level:g} %: that takes {needed} at"
            " least; probe with more labelled images, or ask for a lower level"
        )
    return float(nonconformity[rank - 1])


def select_classes(task: str, probabilities: np.ndarray, quantile: float) -> np.ndarray:
    """Return the set of each row, bool ``(n, K)``. single: it always has the most probable class, so that none is empty."""
    members = 1 - probabilities <= quantile
    if task == "single":
        members[np.arange(len(members)), probabilities.argmax(1)] = True
    return members
