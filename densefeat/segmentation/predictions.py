"""Masks of new images by a segmenter: a store of scores, PNG files of class numbers, overlays, and a table."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densefeat.base import (
    atomic_file,
    check_output_name,
    has_header,
    output_errors,
    progress_bar,
    refuse_links,
    refuse_stranger,
    write_csv,
)
from densefeat.errors import UsageError
from densefeat.extraction import ColumnsNet, extract
from densefeat.labels import read_mask
from densefeat.overlay import is_picture_folder, lay_classes, make_palette, name_files, save_overlays, view_whole
from densefeat.segmentation.grid_net import choose_classes
from densefeat.segmentation.segmenter import Segmenter, load_segmenter
from densefeat.store import Layout, Store, check_store_folder, open_store, read_entries

_COLUMN = "logits"
_STORE, _MASKS, _OVERLAYS, _TABLE = "logits", "masks", "overlays", "shares.csv"
_COLOURS = 256  # of a PNG's palette


@dataclass(frozen=True)
class Painted:
    """The files that :func:`predict_masks` wrote. ``shares``: of each class in all pixels, by name; ``undrawn``: reasons."""

    path: Path
    table: Path
    rows: int
    failures: int
    failures_path: Path
    shares: dict[str, float]
    undrawn: dict[str, str]


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
    **reading: Any,
) -> Painted:
    """Predict a mask of every image, as large as the image; the same call resumes.

    Args:
        model: The folder of a segment probe, or the segmenter in it.
        images, batch_size, workers, reading: As in :func:`densefeat.extract`; one row an image, failures beside them.
        out: A folder: ``logits/`` is a store of scores ``(rows, K·h·w)``, float16; ``masks/`` and ``overlays/`` have a PNG for
            each image, see :func:`densefeat.overlay.name_files`; ``shares.csv`` the share of each class in an image's pixels.
        weights: The new place of the network's weights.
        overwrite: Start over if ``out`` has masks by another segmenter, or of other images.

    Masks hold the numbers that classes have in the masks learnt from: with a palette, or, of numbers beyond 255, grey of 16
    bits. Raises as :func:`densefeat.extract` does; WeightsError where the segmenter's file or its network do not fit.
    """
    check_output_name(out)
    out = Path(out)
    segmenter = load_segmenter(model)
    _check_folder(out, segmenter)
    network = segmenter.network(weights, device)
    extractor = network.extractor
    net = ColumnsNet(str(Path(model).resolve()), network, {_COLUMN: len(segmenter.names)}, extractor.preprocessing)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    result = extract(
        images, out / _STORE, net, pool="none", dtype="float16", device=device, batch_size=batch_size, workers=workers,
        decoder=extractor.decoder, overwrite=overwrite, **reading,
    )  # fmt: skip
    store = open_store(result.path)
    undrawn = _draw(store, images, out, segmenter)
    shares = _write_table(out / _TABLE, store, out / _MASKS, segmenter)
    return Painted(out, out / _TABLE, result.rows, result.failures, result.failures_path, shares, undrawn)


def _check_folder(out: Path, segmenter: Segmenter) -> None:
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"output {str(out)!r} is a file: choose a folder")
        entries = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") if out.exists() else []
    if others := [name for name in entries if name not in (_STORE, _MASKS, _OVERLAYS, _TABLE)]:
        raise UsageError(f"output {str(out)!r} holds other files than masks ({others[0]!r}): name another folder")
    refuse_links([out / name for name in (_STORE, _MASKS, _OVERLAYS)])
    check_store_folder(Layout(out / _STORE))
    for name in (_MASKS, _OVERLAYS):
        if (out / name).exists() and not (out / name).is_dir():
            raise UsageError(f"output {str(out / name)!r} is a file, where a folder of pictures is to be: move it away")
        if not is_picture_folder(out / name):
            first = next(path for path in sorted((out / name).rglob("*")) if path.is_symlink() or not path.is_dir())
            raise UsageError(f"output {str(first)!r} was not written by this command: move it away, or name another folder")
    refuse_stranger(out / _TABLE, has_header([_format_header(segmenter)]))


def _format_header(segmenter: Segmenter) -> str:
    text = io.StringIO()
    write_csv(text, ["path", *segmenter.names], [], "the header")
    return text.getvalue().rstrip("\n")


def _draw(store: Store, images: str | Path, out: Path, segmenter: Segmenter) -> dict[str, str]:
    """Draw the masks and the overlays that are missing; return those that could not be drawn, with the reasons."""
    shape = store.shapes[_COLUMN] if len(store) else (1, 1, 1)
    values = np.array(segmenter.values, np.uint16)
    colours = make_palette(len(values))
    palette = np.zeros((_COLOURS, 3), np.uint8)
    if values.max() < _COLOURS:
        palette[values] = colours

    def choose(image: Image.Image, row: dict[str, np.ndarray]) -> np.ndarray:
        return choose_classes(row[_COLUMN].reshape(shape), image.height, image.width)

    def draw_mask(image: Image.Image, row: dict[str, np.ndarray]) -> Image.Image:
        numbers = values[choose(image, row)]
        if values.max() >= _COLOURS:
            return Image.fromarray(numbers)
        mask = Image.fromarray(numbers.astype(np.uint8))
        mask.putpalette(palette.tobytes())
        return mask

    def draw_overlay(image: Image.Image, row: dict[str, np.ndarray]) -> Image.Image:
        return lay_classes(image, choose(image, row), colours)

    undrawn = save_overlays(store, images, out / _MASKS, [_COLUMN], view_whole, draw_mask)
    return undrawn | save_overlays(store, images, out / _OVERLAYS, [_COLUMN], view_whole, draw_overlay)


def _write_table(path: Path, store: Store, masks: Path, segmenter: Segmenter) -> dict[str, float]:
    """Write the share of each class in the pixels of each mask; return their shares in the pixels of all masks."""
    header = _format_header(segmenter)
    entries = list(read_entries(store, np.arange(len(store))).values())
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

    with (
        atomic_file(path, has_header([header])) as beside,
        output_errors(path),
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        progress_bar("counting pixels", len(entries)) as advance,
    ):
        write_csv(file, ["path", *segmenter.names], list_rows(advance), repr(str(path)))
    return dict(zip(segmenter.names, (total / max(1, total.sum())).tolist(), strict=True))
