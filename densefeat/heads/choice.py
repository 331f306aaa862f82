"""Which setting of a grid is the best one on the validation rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from densefeat.errors import UsageError
from densefeat.heads.metrics import MAIN, main_metric
from densefeat.heads.targets import Targets

Advance = Callable[[int], None]
Setting = dict[str, float | int]
Solution = TypeVar("Solution")


@dataclass(frozen=True)
class Choice:
    """``tried``: every setting with its main metric; ``chosen``: the best, of equals the first; ``val_scores``: its scores."""

    chosen: Setting
    tried: list[Setting]
    val_scores: np.ndarray


def choose(
    name: str,
    solutions: Iterable[tuple[float | int, Solution]],
    scores: Callable[[Solution], np.ndarray],
    targets: Targets,
    advance: Advance,
) -> tuple[Choice, Solution]:
    """Of pairs (value of the setting ``name``, what was fitted with it) the best by its ``scores`` on the validation rows.

    One solution is kept at a time.
    """
    metric, tried, best = MAIN[targets.task], list[Setting](), -np.inf
    for value, solution in solutions:
        found = scores(solution)
        rating = rated(targets, found)
        tried.append({name: value, metric: rating})
        if rating > best:
            best, chosen, kept, kept_scores = rating, value, solution, found
        advance(1)
    return Choice({name: chosen}, tried, kept_scores), kept


def rated(targets: Targets, scores: np.ndarray) -> float:
    """The main metric on the validation rows. Raises UsageError where it is undefined."""
    value = float(main_metric(targets, scores, np.ones((len(targets), 1), np.uint8))[0])
    if np.isnan(value):
        cause = "no class has a positive row" if targets.task == "multi" else "all have the same target"
        raise UsageError(f"{MAIN[targets.task]} is undefined on the {len(targets)} validation rows: {cause}; hold out others")
    return value
