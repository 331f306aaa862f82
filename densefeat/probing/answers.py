"""What a head answers for some images, and how sure that is: as arrays, and as columns of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from densefeat.certainty import Certainty
from densefeat.errors import UsageError
from densefeat.labels import Task, join_labels
from densefeat.probing.predictions import format_probabilities, predict_labels


@dataclass(frozen=True)
class Predictions:
    """The answers for n images, in their order.

    Attributes:
        labels: The class, several as ``a|b``, or the number, as text.
        probability: float64, calibrated. single ``(n,)``: of the class; multi ``(n, K)``: of every class; None for numbers.
        ood: float64 ``(n,)``: the p-value of a test whether an image is like those that were learnt from; small is unusual.
        answered: bool ``(n,)``: which answers to give for the ``risk`` that was asked for.
        sets: For the ``level`` that was asked for, the classes of each image that may be right.
        low, high: float64 ``(n,)``: for numbers, the ends of intervals of that ``level``.
    """

    labels: list[str]
    probability: np.ndarray | None
    ood: np.ndarray | None = None
    answered: np.ndarray | None = None
    sets: list[list[str]] | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def make_predictions(
    task: Task,
    classes: Sequence[str],
    scores: np.ndarray,
    certainty: Certainty | None = None,
    ood: np.ndarray | None = None,
    risk: float | None = None,
    level: float | None = None,
) -> Predictions:
    """Turn scores, ``(n, K)`` or for numbers ``(n,)``, into answers.

    ``certainty``: None: probabilities are not calibrated. ``ood``: p-values. ``risk``: the share of the answers given that may
    be wrong, 0 to 1; ``level``: the share of sets or intervals that hold the truth. Raises UsageError where these cannot be
    promised, see :func:`check_promises`.
    """
    check_promises(certainty, risk, level)
    calibrated = scores if certainty is None else certainty.calibrate(scores)
    labels, sure = predict_labels(task, classes, calibrated)
    probability = None if task == "regression" else expit(calibrated.astype(np.float64)) if task == "multi" else sure
    answered = None if risk is None or certainty is None else certainty.choose_answers(scores, risk)
    if level is None or certainty is None:
        return Predictions(labels, probability, ood, answered)
    if task == "regression":
        width, values = certainty.find_quantile(level), scores.astype(np.float64)
        return Predictions(labels, probability, ood, answered, low=values - width, high=values + width)
    sets = [[classes[code] for code in np.flatnonzero(row).tolist()] for row in certainty.choose_sets(scores, level)]
    return Predictions(labels, probability, ood, answered, sets)


def check_promises(certainty: Certainty | None, risk: float | None, level: float | None) -> None:
    """Raise UsageError where a risk or a level is asked for that cannot be promised."""
    if certainty is None:
        if risk is not None or level is not None:
            promised = f"a risk of {risk:g}" if risk is not None else f"sets of level {level:g}"
            raise UsageError(
                f"{promised} cannot be promised: this model keeps no validation rows; give a probe that this version fitted"
                " (instead of an older probe: with another --out; of a fine-tuned run: on a store of densefeat extract --model"
                " RUN)"
            )
        return
    if risk is not None:
        certainty.find_threshold(risk)
    if level is not None:
        certainty.find_quantile(level)


def tabulate_answers(made: Predictions, scores: np.ndarray) -> dict[str, list[str]]:
    """Write answers as columns of text: ``predicted``, ``probability`` and what else was asked for.

    ``ood`` where it is known; ``answered``, yes or no, with a risk; ``set``, as ``a|b``, or ``low`` and ``high``, with a level.
    ``scores``: what the answers were made of.
    """
    columns = {"predicted": made.labels, "probability": format_probabilities(scores, made.probability)}
    if made.ood is not None:
        columns["ood"] = [f"{value:.4g}" for value in made.ood.tolist()]
    if made.answered is not None:
        columns["answered"] = ["yes" if given else "no" for given in made.answered.tolist()]
    if made.sets is not None:
        columns["set"] = [join_labels(np.ones(len(names), bool), names) for names in made.sets]
    if made.low is not None and made.high is not None:
        columns |= {name: [f"{value:.7g}" for value in ends] for name, ends in (("low", made.low), ("high", made.high))}
    return columns
