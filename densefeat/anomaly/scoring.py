"""The job of ``densefeat anomaly score``: how unlike good images new ones are, and where.

Scores and maps are the columns of a store, which an extraction writes and resumes; all other files are made from the store.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import nn

from densefeat.anomaly.alarms import ANOMALOUS, GOOD
from densefeat.anomaly.detector import DETECTOR_FILE, Detector, load_detector
from densefeat.anomaly.page import write_page
from densefeat.anomaly.pixel_metrics import PixelMetrics, is_in_good_folder, match_masks, shrink_mask
from densefeat.base import has_kind, is_page, progress_bar, save_json
from densefeat.errors import DecodeError, UsageError
from densefeat.evaluation import ResultFolder, Results
from densefeat.extraction import ColumnsNet, identify
from densefeat.images import open_source, printable_keys
from densefeat.labels import find_masks, read_mask
from densefeat.nets import file_sha256
from densefeat.overlay import enlarge_maps, lay_heat, save_overlays, view_whole
from densefeat.store import Store, open_store

_SCORES, _TABLE, _HEAT, _PAGE, _RESULTS = "scores", "anomalies.csv", "heat", "index.html", "results.json"
_COLUMNS = ("path", "score", "p_value", "verdict")
_HEADER = re.compile(",".join(_COLUMNS).encode() + rb"\r?\n")
_KIND, _TABLE_KIND = "densefeat anomaly scores", "densefeat table of anomalies"
_SCORE, _MAP = "score", "map"  # in the store
_ROWS = 64  # maps read at a time
_EDGE = 1024  # pixels of a picture's longer side, at most


@dataclass(frozen=True, kw_only=True)
class Scored(Results):
    """The files that :func:`score_images` wrote, and what they say.

    ``table``: a CSV with ``path``, ``score``, ``p_value`` and ``verdict``, in the order of the input. ``store``: scores and
    maps. ``metrics``: ``image_auroc`` (if there are good images and others), ``pixel_auroc`` and ``pro``, from 0 to 1; empty
    without masks. ``black_masks``: the number of images outside of folders ``good`` that count as good, for their masks show no
    defect.
    """

    page: Path
    anomalous: int
    metrics: dict[str, float]
    black_masks: int


class _DetectorNet(nn.Module):
    """A detector behind its network: images ``(N, C, H, W)`` to ``score`` ``(N, 1)`` and ``map`` ``(N, 1, h, w)``."""

    def __init__(self, detector: Detector, file: Path, weights: str | Path | None, device: str) -> None:
        super().__init__()
        self.extractor, self.detector = detector.extractor(weights, device), detector
        self.model = self.extractor.model
        identify(self, bytes.fromhex(file_sha256(file)))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores, maps = self.detector.measure(self.extractor.forward_grid(x, self.detector.rule))
        return {_SCORE: scores[:, None], _MAP: maps[:, None]}


def score_images(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int | str = 8,
    workers: int | None = None,
    overwrite: bool = False,
    follow_links: bool = False,
    base: str | Path | None = None,
) -> Scored:
    """Score every image, in the order of the input, and draw where it is unlike good images; the same call resumes.

    Args:
        model: The folder of a detector, or its file.
        images: As in :func:`densefeat.extract`; one that cannot be read is a failure beside the rows.
        out: A folder: ``scores/`` is a store with the columns ``score`` and ``map``; ``anomalies.csv``, ``results.json``,
            ``heat/`` with a PNG an image and ``index.html``, highest score first, are made at the end.
        masks: A folder of masks of defects, as :func:`match_masks` finds them, for the metrics. Pixels are those of the
            network's square input, to which masks are resized by the nearest pixel.
        weights: The file of the network's weights, if it has been moved.
        overwrite: Start over if ``out`` has scores by another detector, or of other images.
        base: The folder of a list's images.

    Raises as :func:`densefeat.extract` does; UsageError also for masks that do not fit the images, WeightsError for a file that
    is no detector.
    """
    files = {_PAGE: is_page, _RESULTS: has_kind(_KIND)}
    folder = ResultFolder(Path(out), "scores", _SCORES, _TABLE, _HEADER, _TABLE_KIND, files, (_HEAT,))
    detector = load_detector(model)
    file = DETECTOR_FILE.find(model)
    if masks is not None and (source := open_source(images, base=base, follow_links=follow_links)).length is not None:
        find_masks(printable_keys(source.keys()).to_pylist(), Path(masks))  # if none fits, it is said before the work
    behind = _DetectorNet(detector, file, weights, device)
    net = ColumnsNet(str(file.resolve()), behind, {_SCORE: 1, _MAP: 1}, behind.extractor.preprocessing)
    result = folder.extract(
        model, net, images, pool="none", device=device, batch_size=batch_size, workers=workers,
        decoder=behind.extractor.decoder, overwrite=overwrite, follow_links=follow_links, base=base,
    )  # fmt: skip
    store = open_store(result.path)
    scores = store[_SCORE][:, 0] if len(store) else np.empty(0, np.float32)
    bad = detector.alarms.judge(scores)
    shown = images if base is None else base  # where keys are paths
    _write_table(folder, store, scores, bad, detector)
    draw, page = partial(_draw, detector), folder.root / _PAGE
    view = partial(view_whole, edge=_EDGE)
    not_drawn = save_overlays(store, shown, folder.root / _HEAT, [_MAP], view, draw)
    metrics, black_masks = ({}, 0) if masks is None or not len(store) else _measure(store, scores, detector, masks)
    write_page(page, store, shown, scores, detector, metrics, draw)
    facts = {"rows": len(store), "failures": result.failures, "anomalous": int(bad.sum()), **metrics}
    alarms = detector.alarms
    told = {"threshold": alarms.threshold, "rate": alarms.rate, "rate_interval": list(alarms.interval)}
    save_json(folder.root / _RESULTS, _KIND, facts | told)
    return Scored(
        **folder.describe(result), not_drawn=not_drawn, page=page, anomalous=int(bad.sum()), metrics=metrics,
        black_masks=black_masks,
    )  # fmt: skip


def _measure(
    store: Store, scores: np.ndarray, detector: Detector, folder: str | Path
) -> tuple[dict[str, float], int]:  # fmt: skip
    """Compute AUROC of images, if some are good and some are not, AUROC of pixels, and PRO; count black masks of defects."""
    keys = store.keys.tolist()
    files = match_masks(keys, folder)
    size = detector.image_size
    widths, heights = store["width"], store["height"]
    bad, black_masks = np.zeros(len(store), bool), 0
    low, high = np.inf, -np.inf
    for _, values in store.batches(_MAP):
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    pixels = PixelMetrics(low, high)
    with progress_bar("comparing with masks", len(store)) as advance:
        for row, values in _read_maps(store):
            mask = np.zeros((size, size), bool)
            if (file := files[row]) is not None:
                whole = _read_mask(file, int(widths[row]), int(heights[row]))
                bad[row] = whole.any()
                black_masks += not bad[row] and not is_in_good_folder(keys[row])
                mask = shrink_mask(whole, size)
            pixels.add(_smooth(detector, values), mask)
            advance(1)
    of_images = {} if bad.all() or not bad.any() else {"image_auroc": float(roc_auc_score(bad, scores))}
    return of_images | {"pixel_auroc": pixels.auroc(), "pro": pixels.pro()}, black_masks


def _read_mask(file: Path, width: int, height: int) -> np.ndarray:
    """Read a mask as bool ``(height, width)``, True where it is not 0. Raises UsageError for one that does not fit."""
    try:
        return read_mask(file, (width, height)) != 0
    except DecodeError as error:
        raise UsageError(f"mask {str(file)!r} cannot be read: {error}") from error


def _read_maps(store: Store) -> Iterator[tuple[int, np.ndarray]]:
    shape = store.shapes[_MAP][1:]
    for start, values in store.batches(_MAP, _ROWS):
        for number, flat in enumerate(values):
            yield start + number, flat.reshape(shape)


def _smooth(detector: Detector, values: np.ndarray) -> np.ndarray:
    """Bring a map ``(h, w)`` to the network's pixels and blur it: by half of the stride, as the paper's 4 pixels at 8."""
    size = detector.image_size
    return gaussian_filter(enlarge_maps(values[None], size, size)[0], detector.rule.stride / 2)


def _draw(detector: Detector, image: Image.Image, values: dict[str, np.ndarray]) -> Image.Image:
    """Lay a map over its image.

    The scale is the same for all: black up to half of the median score of good images, yellow from the threshold on.
    """
    usual, threshold = float(np.median(detector.alarms.held_out)), detector.alarms.threshold
    smooth = _smooth(detector, values[_MAP].reshape(detector.shape))
    return lay_heat(image, smooth, usual / 2, threshold)


def _write_table(folder: ResultFolder, store: Store, scores: np.ndarray, bad: np.ndarray, detector: Detector) -> None:
    verdicts = np.where(bad, ANOMALOUS, GOOD).tolist()
    cells = zip(store["path"], scores.tolist(), detector.alarms.p_values(scores).tolist(), verdicts, strict=True)
    rows = ((path, f"{score:.6g}", f"{p_value:.6g}", verdict) for path, score, p_value, verdict in cells)
    folder.write_table(_COLUMNS, rows)
