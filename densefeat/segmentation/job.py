"""The job of ``densefeat segment probe``: from images and masks to heads on every block's positions, and the report on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import add_checksum, check_output_name
from densefeat.errors import UsageError, WeightsError
from densefeat.features import FeatureExtractor
from densefeat.images import PixelRule, is_image_folder
from densefeat.labels import PARTS, TEST, TRAIN, VAL, split_sha256
from densefeat.probing import RESULTS, check_folder, read_results, save_results, to_json
from densefeat.search import describe_extractor
from densefeat.segmentation.data import DenseData, assign_parts, join_stores, read_annotations
from densefeat.segmentation.fitting import PROTOCOLS, DenseCandidate, fit_all
from densefeat.segmentation.grid_net import BlockGrid, find_shape, plan_grids
from densefeat.segmentation.masks import read_names
from densefeat.segmentation.page import PAGE, write_page
from densefeat.segmentation.positions import count_classes
from densefeat.segmentation.segmenter import FILE, SEGMENTER_FILE, Segmenter, load_segmenter, save_segmenter
from densefeat.segmentation.stores import extract_stores, find_annotated

_WHAT = "segment probe"  # in messages, and in the kind of results
_STRIDE = 4
_FEW = 10  # images: with fewer, results are rough


@dataclass(frozen=True)
class Segmented:
    """A finished segment probe. ``results``: the content of ``path / "results.json"``; ``failures``: images not read."""

    path: Path
    results: dict[str, Any]
    failures: int
    done_before: bool = False


def probe_masks(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    *,
    classes: str | Path | None = None,
    ignore: int | None = None,
    test_images: str | Path | None = None,
    test_masks: str | Path | None = None,
    base: str | Path | None = None,
    protocol: str = "logreg",
    stride: int = _STRIDE,
    seed: int = 0,
    model: str = "densefeat_densenet121",
    weights: str | Path | None = None,
    image_size: int | None = None,
    pixels: PixelRule | None = None,
    device: str = "auto",
    batch_size: int | str = 32,
    workers: int | None = None,
) -> Segmented:
    """Fit heads that predict the class of each position, on every block alone and together, and measure the predicted masks.

    The same call resumes after an interruption. Heads and settings are selected on validation images, and reported on test
    images. At least 3 images need masks.

    Args:
        images: As in :func:`densefeat.extract`; each is stretched to a square as a whole.
        masks: A folder with a PNG of class numbers for each annotated image, by the image's relative path or name.
        out: The folder to write. If it holds the finished results of the same call, nothing is done.
        classes: A file of names: a line each from number 0, a JSON list, or a JSON object ``{"0": "name"}``; None: the numbers
            that occur are the classes.
        ignore: The class number of pixels to leave out, such as 255.
        test_images, test_masks: Images to test on, with their masks; None: 20 % of ``images``.
        base: The folder that paths are relative to where ``images`` or ``test_images`` are a list.
        protocol: ``"logreg"``, a linear map of each position's features; or ``"knn"``, votes of the nearest positions.
        stride: Pixels of the network's input between neighbouring positions.
        seed: For the split, the sample of positions, and the intervals.
        model, weights, image_size, pixels, device, batch_size, workers: As in :func:`densefeat.extract`.

    Raises:
        UsageError: No masks for the images; masks in colours, of another size than their image or with numbers that are no
            class; or ``out`` holds something else. Errors of :func:`densefeat.extract`.
    """
    out = Path(out)
    _check_arguments(out, protocol, ignore, test_images, test_masks)
    extractor = FeatureExtractor(
        model, pool="none", weights=weights, device=device, image_size=image_size, pixels=pixels, decoder="torchvision"
    )
    extractor.preprocessing = extractor.preprocessing.see_whole()
    grids = plan_grids(extractor, stride)
    shape = find_shape(grids, extractor.preprocessing.size)
    names = None if classes is None else read_names(Path(classes))
    inputs = [find_annotated(images, masks, base)]
    if test_images is not None:
        inputs.append(find_annotated(test_images, str(test_masks), None if is_image_folder(test_images) else base))
    files = [each.masks.by_key for each in inputs]
    table, annotations, masks_sha256, notes = read_annotations(files, names, ignore, shape)
    stores = extract_stores(inputs, out, extractor, grids, device=device, batch_size=batch_size, workers=workers)
    annotations, split_notes = assign_parts(join_stores(annotations, stores), len(table.names), seed)
    data = DenseData(stores, annotations, table, {grid.column: grid.channels for grid in grids}, shape, seed)
    notes = [*(note for each in inputs for note in each.masks.notes), *notes, *split_notes, *_note_gaps(data)]
    made_by = {name: stores[0].provenance[name] for name in ("densefeat", "images")}
    request = {
        "kind": f"densefeat {_WHAT}",
        "protocol": protocol,
        "stride": stride,
        "seed": seed,
        "classes": {str(value): name for value, name in zip(table.values, table.names, strict=True)},
        "ignored": ignore,
        "masks_sha256": masks_sha256,
        "split_sha256": split_sha256([each.key for each in annotations], np.array([each.part for each in annotations])),
        "provenance": made_by | describe_extractor(extractor, stores[0]),
    }
    failures = sum(len(store.failures) for store in stores)
    if (finished := _read_finished(out, request)) is not None:
        return Segmented(out, finished, failures, done_before=True)
    best, reports, sample = fit_all(protocol, data)
    results = request | {
        "images": {name: len(data.select(part)) for part, name in enumerate(PARTS)},
        "parts": {name: [each.key for each in data.select(part)] for part, name in enumerate(PARTS)},
        "positions": {"train": sample.train, "val": len(sample.targets) - sample.train, "grid": shape},
        "notes": notes,
        "candidates": reports,
        "best": best.name,
    }
    own = tuple(grid for grid in grids if grid.column in best.columns)
    return Segmented(out, _write(out, data, best, own, to_json(results), [each.place for each in inputs]), failures)


def _check_arguments(
    out: Path, protocol: str, ignore: int | None, test_images: str | Path | None, test_masks: str | Path | None
) -> None:
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if (test_images is None) != (test_masks is None):
        raise UsageError("test images and test masks: give both, or none")
    if ignore is not None and not 0 <= ignore < 2**16:
        raise UsageError(f"number {ignore} to ignore: masks have 0 to 65535")
    check_output_name(out)
    check_folder(out, _WHAT, (RESULTS, PAGE, FILE), SEGMENTER_FILE)


def _note_gaps(data: DenseData) -> list[str]:
    """Say where there are few images, and which classes no position to learn from has: heads are fitted on no others."""
    counts = {name: len(data.select(part)) for name, part in (("validation", VAL), ("test", TEST))}
    few = " and ".join(f"{count} {name}" for name, count in counts.items() if count < _FEW)
    learnt = count_classes([each.labels for each in data.select(TRAIN)], len(data.table.names))
    absent = ", ".join(repr(name) for name, count in zip(data.table.names, learnt, strict=True) if not count)
    return [
        *([f"only {few} images: figures and choices are rough"] if few else []),
        *([f"no position to learn from has the class {absent}"] if absent else []),
    ]


def _write(
    out: Path,
    data: DenseData,
    best: DenseCandidate,
    grids: tuple[BlockGrid, ...],
    results: dict[str, Any],
    images: Sequence[str | Path],
) -> dict[str, Any]:
    """Write all files, each atomically and ``results.json`` last; return the content of that.

    ``grids``: those of the best candidate; ``images``: where those of each store are.
    """
    results = add_checksum(results)
    report = next(report for report in results["candidates"] if report["name"] == best.name)
    told = {name: results[name] for name in ("protocol", "seed", "split_sha256", "images")} | report
    segmenter = Segmenter(
        data.table.values, data.table.names, grids, best.fit.head, best.fit.log_prior, results["provenance"], told
    )
    save_segmenter(out / FILE, segmenter)
    write_page(out / PAGE, data, best, results, images)
    save_results(out, results)
    return results


def _read_finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results in ``out`` if it holds all files of the same request; None if some are missing or damaged.

    Raises errors as :func:`densefeat.probing.read_results`.
    """
    results = read_results(out, _WHAT, request)
    if results is None or not (out / PAGE).exists():
        return None
    try:
        load_segmenter(out / FILE)
    except WeightsError:
        return None
    return results
