"""A promise on the share of wrong answers: which answers are sure enough to be given.

Selective classification with guaranteed risk (Geifman and El-Yaniv, NeurIPS 2017, arXiv 1705.08500), by the fixed-sequence
tests from several starts of Learn then Test (Angelopoulos et al., arXiv 2110.01052) with exact binomial tests (Clopper and
Pearson, 1934).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from densefeat.errors import UsageError

CONFIDENCE = 0.9  # of the promise, over draws of the validation rows
_STEPS = 20  # shares of the rows that are tried: a twentieth, two, …
_STARTS = (2, 6)  # steps at which a sequence of tests starts
_LEVEL = (1 - CONFIDENCE) / len(_STARTS)  # of each sequence


@dataclass(frozen=True)
class RiskThreshold:
    """The answers to give: those of at least this confidence.

    ``answered``: share of the validation rows that would be answered; ``wrong``: share of these answers that are wrong.
    """

    threshold: float
    answered: float
    wrong: float


def find_threshold(confidence: np.ndarray, right: np.ndarray, risk: float) -> RiskThreshold:
    """Find the lowest threshold at which, with a confidence of 90 %, at most a share ``risk`` of all answers is wrong.

    The confidence is over draws of the validation rows, which must be drawn as later rows are. It is assumed that surer
    answers are not more often wrong. From each of two starts (the surest 10 % and 30 % of the rows, or as many as a test needs
    to reject anything) 5 % more are answered as long as a test at a level of 5 % rejects that the risk is higher; the longer
    sequence counts. The numbers of rows that are tried depend on ``risk`` and the number of rows alone.

    Args:
        confidence: float64 ``(m,)``, of the answers to the validation rows, ascending. Rows of equal confidence are answered
            together.
        right: bool ``(m,)``, whether the answers are right.
        risk: Above 0 and below 1.

    Raises:
        UsageError: The validation rows cannot support the promise; the message has the smallest risk that they can.
    """
    if not 0 < risk < 1:
        raise UsageError(f"a risk of {risk:g}: give the share of answers that may be wrong, above 0 and below 1, such as 0.05")
    rows = len(confidence)
    if rows < (needed := _count_needed(risk)):
        raise UsageError(
            f"{rows} validation rows cannot promise that at most {100 * risk:g} % of the answers are wrong: that takes {needed}"
            " at least, all answered correctly; probe with more labelled images, or allow a higher risk"
        )
    errors = np.cumsum(~right[::-1])
    answered = _test_sequences(confidence, errors, risk)
    if not answered:
        tried = (step / 1000 for step in range(math.floor(1000 * risk) + 1, 1000))
        smallest = next(
            (each for each in tried if rows >= _count_needed(each) and _test_sequences(confidence, errors, each)), None
        )
        told = f"{rows} validation rows with these answers cannot promise that at most {100 * risk:g} % of any are wrong"
        instead = "they can promise no risk at all; probe with more labelled images"
        if smallest is not None:
            instead = f"the smallest risk that they can promise is {smallest:g}; probe with more labelled images, or allow that"
        raise UsageError(f"{told}: {instead}")
    return RiskThreshold(float(confidence[rows - answered]), answered / rows, float(errors[answered - 1] / answered))


def _count_needed(risk: float) -> int:
    """Count the answers, all of them right, by which a test can reject that the risk is higher."""
    return math.ceil(math.log(_LEVEL) / math.log1p(-risk))


def _test_sequences(confidence: np.ndarray, errors: np.ndarray, risk: float) -> int:
    """Return how many rows can be answered. ``errors``: int ``(m,)``, among as many of the surest rows."""
    rows, needed, most = len(confidence), _count_needed(risk), 0
    for start in _STARTS:
        for step in range(start, _STEPS + 1):
            count = max(-(-rows * step // _STEPS), needed)
            count = rows - int(np.searchsorted(confidence, confidence[rows - count], side="left"))  # with equal ones
            if bdtr(errors[count - 1], count, risk) > _LEVEL:
                break
            most = max(most, count)
    return most
