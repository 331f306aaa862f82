"""The job of ``densefeat segment probe``: from images and masks to heads on every block's positions, and the report on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import (
    add_checksum,
    atomic_file,
    check_checksum,
    check_output_name,
    has_kind,
    output_errors,
    parse_json,
    recognize_none,
    refuse_links,
    refuse_stranger,
)
from densefeat.errors import UsageError, WeightsError
from densefeat.extraction import ColumnsNet, extract
from densefeat.features import FeatureExtractor
from densefeat.images import PixelRule, Preprocessing, is_image_folder, open_source, printable_keys
from densefeat.labels import PARTS, TEST, TRAIN, VAL, MaskFiles, find_masks, split_sha256
from densefeat.probing import to_json
from densefeat.segmentation.data import Annotation, DenseData, assign_parts, join_stores, read_annotations
from densefeat.segmentation.fitting import PROTOCOLS, DenseCandidate, PositionSample, fit_all
from densefeat.segmentation.grid_net import BlockGrid, GridNet, find_shape, plan_grids
from densefeat.segmentation.masks import read_names
from densefeat.segmentation.page import PAGE, write_page
from densefeat.segmentation.segmenter import FILE, SEGMENTER_FILE, Segmenter, load_segmenter, save_segmenter
from densefeat.store import Store, open_store
from densefeat.version import __version__

_RESULTS, _FEATURES, _TEST_FEATURES = "results.json", "features", "test-features"
_KIND = "densefeat segment probe"
_FILES = (_RESULTS, PAGE, FILE)
_LIST_KEY = b"densefeat_annotated"  # in the schema's metadata of a list of annotated images
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
    places = [(images, masks)] + ([] if test_images is None else [(test_images, str(test_masks))])
    bases = [base if number == 0 or not is_image_folder(place) else None for number, (place, _) in enumerate(places)]
    found = [_find_masks(*place, base) for place, base in zip(places, bases, strict=True)]
    table, annotations, masks_sha256, notes = read_annotations([each.by_key for each in found], names, ignore, shape)
    notes = [note for each in found for note in each.notes] + notes

    settings = {"device": device, "batch_size": batch_size, "workers": workers}
    stores = _extract_stores([place for place, _ in places], bases, found, out, extractor, grids, settings)
    unread = sum(len(store.failures) for store in stores)
    annotations, more = assign_parts(join_stores(annotations, stores), len(table.names), seed)
    notes += more + _note_few(annotations) + _note_absent(annotations, table.names)
    data = DenseData(stores, annotations, table, {grid.column: grid.channels for grid in grids}, shape, seed)
    request = {
        "kind": _KIND,
        "protocol": protocol,
        "stride": stride,
        "seed": seed,
        "classes": {str(value): name for value, name in zip(table.values, table.names, strict=True)},
        "ignored": ignore,
        "masks_sha256": masks_sha256,
        "split_sha256": split_sha256([each.key for each in annotations], _list_parts(annotations)),
        "provenance": _describe_features(extractor, stores[0]),
    }
    if (results := _read_finished(out, to_json(request))) is not None:
        return Segmented(out, results, unread, done_before=True)
    best, reports, sample = fit_all(protocol, data)
    shown = [place if base is None else base for (place, _), base in zip(places, bases, strict=True)]
    results = to_json(request | _summarize(data, best, reports, sample, notes))
    return Segmented(out, _write(out, data, best, grids, results, shown), unread)


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
    _check_folder(out)


def _check_folder(out: Path) -> None:
    """Raise UsageError if a folder holds anything but a segment probe, finished or not; OutputError if it cannot be made."""
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"output {str(out)!r} is a file: choose a folder")
        entries = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") if out.exists() else []
    if others := [name for name in entries if name not in (*_FILES, _FEATURES, _TEST_FEATURES)]:
        raise UsageError(
            f"output {str(out)!r} holds something other than a segment probe ({others[0]!r}): choose another --out"
        )
    refuse_links([out / _FEATURES, out / _TEST_FEATURES])
    begun = SEGMENTER_FILE.recognize(out / FILE) or has_kind(_KIND)(out / _RESULTS)
    for name in _FILES:
        refuse_stranger(out / name, None if begun else recognize_none)


def _find_masks(images: str | Path, masks: str | Path, base: str | Path | None) -> MaskFiles:
    return find_masks(printable_keys(open_source(images, base=base).keys()).to_pylist(), Path(masks))


def _extract_stores(
    images: Sequence[str | Path],
    bases: Sequence[str | Path | None],
    masks: Sequence[MaskFiles],
    out: Path,
    extractor: FeatureExtractor,
    grids: Sequence[BlockGrid],
    settings: dict[str, Any],
) -> list[Store]:
    """Extract the blocks' maps to stores in ``out``, but for what is done already. Test images are converted as the first."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    network, channels = GridNet(extractor, grids), {grid.column: grid.channels for grid in grids}
    stores: list[Store] = []
    for place, base, found, name in zip(images, bases, masks, (_FEATURES, _TEST_FEATURES), strict=False):
        if stores:
            extractor.preprocessing = Preprocessing.from_json(stores[0].provenance["preprocessing"], str(stores[0].path))
        net = ColumnsNet(str(extractor.provenance["model"]), network, channels, extractor.preprocessing)
        source, folder = _list_annotated(place, found, out / f".{name}.parquet") or (place, base)
        decoder = extractor.decoder
        extract(source, out / name, net, pool="none", dtype="float16", decoder=decoder, base=folder, update=True, **settings)
        stores.append(open_store(out / name))
    return stores


def _list_annotated(images: str | Path, masks: MaskFiles, path: Path) -> tuple[Path, str | Path] | None:
    """Write a list of those images in a folder that have masks; return it and its base, or None for all images, or no folder.

    Masks may be added later: the same command then extracts their images, too.
    """
    if masks.whole or not is_image_folder(images):
        return None
    table = pa.table({"path": pa.array(masks.by_key, pa.large_string())})  # Parquet, for names may have line breaks
    with atomic_file(path, _is_list) as beside, output_errors(path), open(beside, "wb") as file:
        pq.write_table(table.replace_schema_metadata({_LIST_KEY: b"1"}), file)
    return path, images


def _is_list(path: Path) -> bool:
    """Recognize a list of annotated images."""
    try:
        return _LIST_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _describe_features(extractor: FeatureExtractor, store: Store) -> dict[str, Any]:
    """Return what :func:`densefeat.search.rebuild_extractor` needs to make the same maps, before they become grids."""
    weights = extractor.provenance["weights"] | {"sha256": extractor.weights_sha256}
    return {
        "densefeat": __version__,
        **extractor.provenance,
        "weights": weights,
        "images": store.provenance["images"],
        "preprocessing": store.provenance["preprocessing"],
        "decoder": extractor.decoder,
        "blocks": [tap.name for tap in extractor.taps],
        "tap": extractor.tap,
        "pool": ["none"],
        "precision": extractor.precision,
    }


def _note_few(annotations: Sequence[Annotation]) -> list[str]:
    parts = _list_parts(annotations)
    counts = {name: int(np.count_nonzero(parts == part)) for name, part in (("validation", VAL), ("test", TEST))}
    few = " and ".join(f"{count} {name}" for name, count in counts.items() if count < _FEW)
    return [f"only {few} images: figures and choices are rough"] if few else []


def _note_absent(annotations: Sequence[Annotation], names: Sequence[str]) -> list[str]:
    """Say which classes no position of the training images has: heads are fitted on no others."""
    present = {int(code) for each in annotations if each.part == TRAIN for code in set(each.labels.ravel().tolist())}
    absent = [name for code, name in enumerate(names) if code not in present]
    return [f"no position to learn from has the class {', '.join(map(repr, absent))}"] if absent else []


def _list_parts(annotations: Sequence[Annotation]) -> np.ndarray:
    return np.array([each.part for each in annotations], np.int8)


def _summarize(
    data: DenseData, best: DenseCandidate, reports: list[dict[str, Any]], sample: PositionSample, notes: list[str]
) -> dict[str, Any]:
    return {
        "images": {name: len(data.select(part)) for part, name in enumerate(PARTS)},
        "parts": {name: [each.key for each in data.select(part)] for part, name in enumerate(PARTS)},
        "positions": {"train": sample.train, "val": len(sample.targets) - sample.train, "grid": data.shape},
        "notes": notes,
        "candidates": reports,
        "best": best.name,
    }


def _write(
    out: Path,
    data: DenseData,
    best: DenseCandidate,
    grids: Sequence[BlockGrid],
    results: dict[str, Any],
    images: Sequence[str | Path],
) -> dict[str, Any]:
    """Write all files, each atomically and ``results.json`` last; return the content of that."""
    results = add_checksum(results)
    report = next(report for report in results["candidates"] if report["name"] == best.name)
    told = {name: results[name] for name in ("protocol", "seed", "split_sha256", "images")} | report
    own = tuple(grid for grid in grids if grid.column in best.columns)
    segmenter = Segmenter(
        data.table.values, data.table.names, own, best.fit.head, best.fit.log_prior, results["provenance"], told
    )
    save_segmenter(out / FILE, segmenter)
    write_page(out / PAGE, data, best, results, images)
    with atomic_file(out / _RESULTS) as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
    return results


def _read_finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results in ``out`` if it holds all files of the same request; None if some are missing or damaged.

    Raises UsageError for those of another request, WeightsError for damaged results.
    """
    if not (out / _RESULTS).exists():
        return None
    results = parse_json((out / _RESULTS).read_text(encoding="utf-8"))
    check_checksum(results, f"results {str(out / _RESULTS)!r}")
    if differing := [name for name, value in request.items() if results.get(name) != value]:
        raise UsageError(
            f"output {str(out)!r} holds another segment probe ({', '.join(differing)} differ): choose another --out"
        )
    try:
        load_segmenter(out / FILE)
    except WeightsError:
        return None
    return results if (out / PAGE).exists() else None
