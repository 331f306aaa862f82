"""What can be had without an image: the figures of guessing, which predictions have to exceed."""

from collections.abc import Mapping

import numpy as np

from densefeat.labels.targets import Targets

_LITTLE = 0.05  # of the way from chance to perfect


def count_classes(targets: Targets) -> np.ndarray:
    """Count the rows of each class, int64 ``(K,)``; none for a regression."""
    if targets.task == "single":
        return np.bincount(targets.values, minlength=len(targets.classes))
    return targets.values.sum(0) if targets.task == "multi" else np.empty(0, np.int64)


def describe_chance(metrics: Mapping[str, float | None], counts: np.ndarray, rows: int) -> str | None:
    """Say in a sentence that predictions are no better than guessing; None where they are, or where this cannot be told.

    ``metrics``: as :func:`densefeat.probing.compute_metrics` names them; ``counts``: rows of each class, ``(K,)``, of ``rows``.
    """
    r2, mean_precision = metrics.get("r2"), metrics.get("map")
    if r2 is not None:
        return None if r2 > 0 else f"no better than always answering the mean: r2 {r2:.3g}"
    present = counts[counts > 0]
    if mean_precision is not None:
        chance = 100 * float(present.mean()) / rows
        if (mean_precision - chance) / (100 - chance or 1) > _LITTLE or chance == 100:
            return None
        return f"no better than guessing: mAP {mean_precision:.2f} %, without any image {chance:.2f} %"
    top1, balanced = metrics.get("top1"), metrics.get("balanced_accuracy")
    if top1 is None or balanced is None or len(counts) < 2 or not len(present):
        return None
    if len(present) < 2:
        return f"all {rows:,} rows that were judged are of one class: the figures say nothing of telling classes apart"
    choices = len(present) if 2 * len(present) >= len(counts) else len(counts)  # of many classes a few rows are only a sample
    majority, chance = 100 * float(present.max()) / rows, 100 / choices
    if top1 > majority or (balanced - chance) / (100 - chance) > _LITTLE:
        return None
    return (
        f"no better than always answering the most frequent class, which is right for {majority:.2f} %:"
        f" top-1 {top1:.2f} %, balanced accuracy {balanced:.2f} % of {chance:.2f} % by chance"
    )
