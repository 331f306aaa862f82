from .detector import Detector, load_detector
from .fitting import Fitted, fit_detector
from .pixel_metrics import PixelMetrics, match_masks, read_mask, shrink_mask
from .scoring import Scored, score_images

__all__ = [
    "Detector",
    "Fitted",
    "PixelMetrics",
    "Scored",
    "fit_detector",
    "load_detector",
    "match_masks",
    "read_mask",
    "score_images",
    "shrink_mask",
]
