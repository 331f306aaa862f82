from .detector import Detector, find_detector_file, load_detector
from .fitting import Fitted, fit_detector
from .pixel_metrics import PixelMetrics, match_masks, shrink_mask
from .scoring import Scored, score_images

__all__ = [
    "Detector",
    "Fitted",
    "PixelMetrics",
    "Scored",
    "find_detector_file",
    "fit_detector",
    "load_detector",
    "match_masks",
    "score_images",
    "shrink_mask",
]
