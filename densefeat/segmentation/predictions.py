"""Masks of new images by a segmenter: a store of scores, PNG files of class numbers, overlays, and a table."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densefeat.base import progress_bar, write_csv
from densefeat.evaluation import ResultFolder, Results
from densefeat.extraction import ColumnsNet
from densefeat.labels import read_mask
from densefeat.overlay import lay_classes, make_palette, name_files, save_overlays, view_whole
from densefeat.segmentation.grid_net import choose_classes
from densefeat.segmentation.masks import colour_classes
from densefeat.segmentation.segmenter import Segmenter, load_segmenter
from densefeat.store import Store, open_store, read_entries

_COLUMN = "logits"
_KIND = "densefeat table of masks"
_STORE, _MASKS, _OVERLAYS, _TABLE = "logits", "masks", "overlays", "shares.csv"
_COLOURS = 256  # of a PNG's palette


@dataclass(frozen=True, kw_only=True)
class Painted(Results):
    """The files that :func:`predict_masks` wrote. ``shares``: each class's share of all pixels, by name."""

    masks: Path
    overlays: Path
    shares: dict[str, float]


def predict_masks(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int | str = 32,
    workers: int | None = None,
    overwrite: bool = False,
    base: str | Path | None = None,
    **reading: Any,
) -> Painted:
    """Predict a mask of every image, as large as the image; the same call resumes.

    Args:
        model: The folder of a segment probe, or the file segmenter.safetensors in it.
        images, batch_size, workers, base, reading: As in :func:`densefeat.extract`; images that cannot be read are failures in
            the store.
        out: A folder: ``logits/`` is a store of scores ``(rows, K·h·w)``, float16; ``masks/`` and ``overlays/`` have a PNG for
            each image, see :func:`densefeat.overlay.name_files`; ``shares.csv`` has each class's share of an image's pixels.
        weights: The file of the network's weights, if it has been moved.
        overwrite: Start over if ``out`` has masks by another segmenter, or of other images.

    Masks hold the class numbers of the masks learnt from, with a palette or, if numbers go beyond 255, as 16-bit grey. Raises
    as :func:`densefeat.extract` does; WeightsError if the segmenter's file cannot be used, or does not fit its network.
    """
    segmenter = load_segmenter(model)
    folder = _open_folder(Path(out), segmenter)
    network = segmenter.network(weights, device)
    extractor = network.extractor
    net = ColumnsNet(str(Path(model).resolve()), network, {_COLUMN: len(segmenter.names)}, extractor.preprocessing)
    result = folder.extract(
        model, net, images, pool="none", dtype="float16", device=device, batch_size=batch_size, workers=workers,
        decoder=extractor.decoder, overwrite=overwrite, base=base, **reading,
    )  # fmt: skip
    store, masks, overlays = open_store(result.path), folder.root / _MASKS, folder.root / _OVERLAYS
    not_drawn = _draw(store, images if base is None else base, masks, overlays, segmenter)
    shares = _write_table(folder, store, masks, segmenter)
    return Painted(**folder.describe(result), not_drawn=not_drawn, masks=masks, overlays=overlays, shares=shares)


def _open_folder(out: Path, segmenter: Segmenter) -> ResultFolder:
    header = io.StringIO()
    write_csv(header, ["path", *segmenter.names], [], "the header")
    line = re.compile(re.escape(header.getvalue().rstrip("\r\n").encode("utf-8", "backslashreplace")) + rb"\r?\n")
    return ResultFolder(out, "masks", _STORE, _TABLE, line, _KIND, pictures=(_MASKS, _OVERLAYS))


def _draw(store: Store, images: str | Path, masks: Path, overlays: Path, segmenter: Segmenter) -> dict[str, str]:
    """Draw the masks and the overlays that are missing; return those that could not be drawn, with the reasons."""
    values = np.array(segmenter.values, np.uint16)
    colours = colour_classes(segmenter.values)
    palette = make_palette(_COLOURS)

    def choose(image: Image.Image, row: dict[str, np.ndarray]) -> np.ndarray:
        return choose_classes(row[_COLUMN].reshape(store.shapes[_COLUMN]), image.height, image.width)

    def draw_mask(image: Image.Image, row: dict[str, np.ndarray]) -> Image.Image:
        numbers = values[choose(image, row)]
        if values.max() >= _COLOURS:
            return Image.fromarray(numbers)
        mask = Image.fromarray(numbers.astype(np.uint8))
        mask.putpalette(palette.tobytes())
        return mask

    def draw_overlay(image: Image.Image, row: dict[str, np.ndarray]) -> Image.Image:
        return lay_classes(image, choose(image, row), colours)

    not_drawn = save_overlays(store, images, masks, [_COLUMN], view_whole, draw_mask)
    return not_drawn | save_overlays(store, images, overlays, [_COLUMN], view_whole, draw_overlay)


def _write_table(folder: ResultFolder, store: Store, masks: Path, segmenter: Segmenter) -> dict[str, float]:
    """Write the share of each class in the pixels of each mask; return their shares in the pixels of all masks."""
    entries = list(read_entries(store).values())
    values, total = list(segmenter.values), np.zeros(len(segmenter.values), np.int64)

    def list_rows(advance: Any) -> Iterator[tuple[str, ...]]:
        for entry, name in zip(entries, name_files(entries), strict=True):
            advance(1)
            shares = [""] * len(values)
            if (masks / name).exists():
                counts = np.bincount(read_mask(masks / name).ravel(), minlength=max(values) + 1)[values]
                total[:] += counts
                shares = [f"{share:.6g}" for share in counts / counts.sum()]
            yield entry.name, *shares

    with progress_bar("counting pixels", len(entries)) as advance:
        folder.write_table(["path", *segmenter.names], list_rows(advance))
    return dict(zip(segmenter.names, (total / max(1, total.sum())).tolist(), strict=True))
