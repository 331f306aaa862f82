from .calibration import (
    TEMPERATURES,
    find_reliability,
    fit_temperature,
    judge_answers,
    measure_calibration,
    measure_with_intervals,
    to_probabilities,
)
from .certainty import MAX_ROWS, Certainty, fit_certainty
from .outliers import LEAST_ROWS, TINY, BlockDistances, OutlierDetector, fit_outliers
from .risk import CONFIDENCE, RiskThreshold

__all__ = [
    "CONFIDENCE",
    "LEAST_ROWS",
    "MAX_ROWS",
    "TEMPERATURES",
    "TINY",
    "BlockDistances",
    "Certainty",
    "OutlierDetector",
    "RiskThreshold",
    "find_reliability",
    "fit_certainty",
    "fit_outliers",
    "fit_temperature",
    "judge_answers",
    "measure_calibration",
    "measure_with_intervals",
    "to_probabilities",
]
