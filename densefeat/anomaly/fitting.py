"""The job of ``densefeat anomaly fit``: from good images to a detector.

Read from top to bottom: :func:`fit_detector` extracts a grid of features of each image to a store, holds some images out,
learns from the others, scores the held-out ones, and writes the detector. Memory does not grow with the number of images.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from densefeat.anomaly.alarms import Alarms, check_rate, choose_held_out
from densefeat.anomaly.bank import MemoryBank, choose_coreset
from densefeat.anomaly.detector import DETECTOR_FILE, FILE, METHODS, Detector, GridNet, load_detector, save_detector
from densefeat.anomaly.gaussians import GaussianSums, PositionGaussians
from densefeat.base import check_output_name, output_errors, progress_bar, refuse_links, refuse_other_content, refuse_stranger
from densefeat.errors import UsageError
from densefeat.extraction import ColumnsNet, extract
from densefeat.features import FeatureExtractor, GridRule
from densefeat.images import PixelRule, Preprocessing, open_source
from densefeat.search import describe_extractor
from densefeat.store import Layout, Store, check_store_folder, open_store

_FEATURES = "features"  # the store in a detector's folder
_BLOCKS = (2, 3)  # of the paper
_COLUMN = "grid"
_POSITIONS = 28  # a side, about: the paper's, at 224 pixels
_DIMS = 256  # of a position: 400 kB an image
_PROJECTED = 128  # by which the coreset is chosen, as in the paper
_CANDIDATES = 100_000  # positions that the coreset is chosen from, an equal number of each image
_SHARE, _MAX_BANK = 0.1, 5_000  # of the candidates
_PIECE_BYTES = 64 * 2**20  # of grids in float32
_TIMED = 4  # images


@dataclass(frozen=True)
class Fitted:
    """A detector that :func:`fit_detector` wrote. ``seconds``: measured time of network and detector for one decoded image."""

    path: Path
    detector: Detector
    store: Path
    failures: int
    failures_path: Path
    seconds: float


def fit_detector(
    images: str | Path,
    out: str | Path,
    *,
    model: str = "densefeat_densenet121",
    weights: str | Path | None = None,
    method: str = "patchcore",
    false_alarms: float = 0.05,
    image_size: int | None = None,
    device: str = "auto",
    batch_size: int | str = 8,
    workers: int | None = None,
    overwrite: bool = False,
    pixels: PixelRule | None = None,
    follow_links: bool = False,
    base: str | Path | None = None,
) -> Fitted:
    """Learn what good images look like; the same call resumes after an interruption, and gives the same file.

    Args:
        images: Good images alone, as in :func:`densefeat.extract`; each is stretched to the network's square input, nothing is
            cut off. One that cannot be read is a failure in the store, and nothing is learnt from it.
        out: A folder: ``detector.safetensors``, and ``features/``, a store that can be deleted afterwards.
        method: ``"patchcore"``, a memory bank of features, or ``"padim"``, a Gaussian at each position, for images that show
            the same thing at the same place.
        false_alarms: The share of good images that may be called anomalous, above 0 and at most 0.5. A fifth of the images is
            held out to set the threshold, or more if the rate needs more; at least 38 images are needed for 0.05, 198 for 0.01.
        overwrite: Start over if ``out`` has a detector, or features, of other images or settings.
        base: The folder of a list's images.
        model, weights, image_size, device, pixels: As in :class:`densefeat.FeatureExtractor`.

    Raises as :func:`densefeat.extract` does; UsageError also where there are too few images for the rate.
    """
    out = _check_arguments(out, method, false_alarms, overwrite)
    count = open_source(images, base=base, follow_links=follow_links).length
    if count is not None:
        choose_held_out(count, false_alarms)  # too few are refused before the work
    extractor = FeatureExtractor(model, _BLOCKS, "none", weights=weights, device=device, image_size=image_size, pixels=pixels)
    extractor.preprocessing = extractor.preprocessing.see_whole()
    rule, channels = _choose_rule(extractor)
    name = str(extractor.provenance["model"])
    network = GridNet(extractor, rule)
    net = ColumnsNet(name, network, {_COLUMN: channels}, extractor.preprocessing)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    result = extract(
        images, out / _FEATURES, model=net, pool="none", dtype="float16", device=device, batch_size=batch_size, workers=workers,
        decoder=extractor.decoder, overwrite=overwrite, follow_links=follow_links, base=base,
    )  # fmt: skip
    store = open_store(result.path)
    held_out = choose_held_out(len(store), false_alarms)
    shape = rule.find_shape(extractor.preprocessing.size, extractor.preprocessing.size)
    normal = (_fit_bank if method == "patchcore" else _fit_gaussians)(store, ~held_out)
    scores = _score_rows(store, held_out, normal)
    provenance = describe_extractor(extractor, store)
    detector = Detector(normal, Alarms(scores, false_alarms), rule, shape, provenance, int((~held_out).sum()), out / FILE)
    save_detector(out / FILE, detector)
    seconds = _time_image(network, detector)
    return Fitted(out / FILE, detector, result.path, result.failures, result.failures_path, seconds)


def _check_arguments(out: str | Path, method: str, false_alarms: float, overwrite: bool) -> Path:
    if method not in METHODS:
        raise UsageError(f"method {method!r}: choose one of {', '.join(METHODS)}")
    check_rate(false_alarms)
    check_output_name(out)
    out = Path(out)
    refuse_other_content(out, (_FEATURES, FILE), "a detector")
    refuse_links([out / _FEATURES])
    check_store_folder(Layout(out / _FEATURES))
    refuse_stranger(out / FILE, DETECTOR_FILE.recognize)
    if not overwrite and (out / FILE).exists():
        found = load_detector(out / FILE)
        if (found.method, found.alarms.rate) != (method, false_alarms):
            raise UsageError(
                f"output {str(out)!r} has a detector by {found.method} for {100 * found.alarms.rate:g} % of false alarms: name"
                " another folder, or give --overwrite"
            )
    return out


def _choose_rule(extractor: FeatureExtractor) -> tuple[GridRule, int]:
    """Choose a grid of about 28 positions a side, but no finer than the finest map; return it, and its numbers a position."""
    size = extractor.preprocessing.size
    shapes = list(extractor.feature_shapes().values())
    reduction = -(-size // max(shape[1] for shape in shapes))
    stride = reduction * max(1, round(size / _POSITIONS / reduction))
    channels = sum(shape[0] for shape in shapes)
    dims = _DIMS if channels > _DIMS else None
    return GridRule(_BLOCKS, stride, average=True, dims=dims), dims or channels


def _read_grids(store: Store, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers and the grids, float32 ``(n, D, h, w)``, of the rows chosen, bool ``(rows,)``, some at a time."""
    shape = store.shapes[_COLUMN]
    rows = max(1, _PIECE_BYTES // (4 * int(np.prod(shape))))
    for start, values in store.batches(_COLUMN, rows):
        for first in range(0, len(values), rows):
            numbers = first + np.flatnonzero(chosen[start + first : start + min(first + rows, len(values))])
            if len(numbers):
                yield start + numbers, values[numbers].astype(np.float32).reshape(-1, *shape)


def _fit_bank(store: Store, chosen: np.ndarray) -> MemoryBank:
    """Choose a coreset of some positions of each image. All draws are by the number of the row, whatever the pieces."""
    dims, height, width = store.shapes[_COLUMN]
    if (images := np.flatnonzero(chosen)).size > _CANDIDATES:
        chosen = np.isin(np.arange(len(store)), np.random.default_rng(0).permutation(images)[:_CANDIDATES])
    each = min(height * width, _CANDIDATES // int(chosen.sum()))
    parts = []
    for rows, grids in _read_grids(store, chosen):
        flat = grids.reshape(len(grids), dims, height * width)
        for row, grid in zip(rows.tolist(), flat, strict=True):
            drawn = np.random.default_rng(row).permutation(height * width)[:each]
            parts.append(grid[:, np.sort(drawn)].T.astype(np.float16))
    candidates = np.concatenate(parts)
    count = min(max(1, round(_SHARE * len(candidates))), _MAX_BANK)
    # a grid of so many numbers is a projection by random signs, and so are its first 128
    points = candidates[:, : _PROJECTED if dims == _DIMS else dims].astype(np.float32)
    with progress_bar("choosing features", count, "features") as advance:
        return MemoryBank(candidates[choose_coreset(points, count, advance)])


def _fit_gaussians(store: Store, chosen: np.ndarray) -> PositionGaussians:
    sums = GaussianSums(*store.shapes[_COLUMN])
    with progress_bar("learning", int(chosen.sum())) as advance:
        for rows, grids in _read_grids(store, chosen):
            sums.add(torch.from_numpy(grids))
            advance(len(rows))
    return sums.finish()


def _score_rows(store: Store, chosen: np.ndarray, normal: MemoryBank | PositionGaussians) -> np.ndarray:
    """Return the scores of the rows chosen, float32, ascending."""
    scores = []
    with progress_bar("scoring held-out images", int(chosen.sum())) as advance:
        for rows, grids in _read_grids(store, chosen):
            scores.append(normal(torch.from_numpy(grids))[0].numpy())
            advance(len(rows))
    return np.sort(np.concatenate(scores))


def _time_image(network: GridNet, detector: Detector) -> float:
    """Measure the seconds an image of network and detector, on blank images, the better of two passes."""
    preprocessing = Preprocessing.from_json(detector.provenance["preprocessing"], "the detector")
    x = preprocessing.normalize(preprocessing.make_blank(_TIMED))
    times = []
    for _ in range(2):
        started = time.perf_counter()
        detector.measure(network(x))[0].cpu()
        times.append(time.perf_counter() - started)
    return min(times) / _TIMED
