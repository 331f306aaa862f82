"""Annotated images: their masks, parts, the classes of their positions, and their features in stores."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densefeat.base import progress_bar
from densefeat.errors import DecodeError, UsageError
from densefeat.images import SPLIT_NAMES
from densefeat.labels import PARTS, TEST, TRAIN, VAL, Targets, hold_out, read_mask
from densefeat.segmentation.masks import ClassTable, make_table
from densefeat.segmentation.positions import count_classes, draw_positions, label_positions
from densefeat.store import Store

_TEST_SHARE = 0.2  # of all images
_VAL_SHARE = 0.25  # of the images that are not for testing


@dataclass(frozen=True)
class Annotation:
    """An image with a mask. ``size``: its width and height; ``labels``: the classes of its positions, uint8 ``(h, w)``.

    ``source``, ``row``: the store with its features, by number, and its row there; ``part``: as in ``densefeat.labels.PARTS``.
    """

    key: str
    mask: Path
    size: tuple[int, int]
    labels: np.ndarray
    source: int = 0
    row: int = -1
    part: int = TRAIN

    def read(self, table: ClassTable) -> np.ndarray:
        """Read the mask as classes, uint8 ``(H, W)``. Raises UsageError where it is not what it was."""
        try:
            return table.encode(read_mask(self.mask, self.size), self.mask)
        except DecodeError as error:
            raise UsageError(f"mask {str(self.mask)!r} cannot be read any more: {error}") from error


def read_annotations(
    masks: Sequence[dict[str, Path]], names: dict[int, str] | None, ignored: int | None, shape: tuple[int, int]
) -> tuple[ClassTable, list[Annotation], str, list[str]]:
    """Read the masks of images to learn from and, if there are any, of test images, by the images' keys.

    Returns the classes, the annotations, a SHA-256 of all masks, and notes: on masks that are damaged and left out.
    """
    files = [(source, key, path) for source, group in enumerate(masks) for key, path in group.items()]
    damaged: dict[str, str] = {}
    digest, found, notes = hashlib.sha256(), set[int](), []
    with progress_bar("reading masks", len(files)) as advance:
        for source, key, path in files:
            advance(1)
            try:
                values = read_mask(path)
            except DecodeError as error:
                damaged[str(path)] = str(error)
                continue
            found |= set(np.unique(values).tolist())
            digest.update(f"{source}\0{key}\0{values.shape}\n".encode("utf-8", "surrogatepass") + values.tobytes())
    if damaged:
        (first, reason), *_ = damaged.items()
        notes.append(f"{len(damaged):,} of {len(files):,} masks cannot be read and are left out: {first!r}: {reason}")
    table, more = make_table(names, sorted(found), ignored)
    annotations = []
    with progress_bar("labelling positions", len(files)) as advance:
        for source, key, path in files:
            advance(1)
            if str(path) not in damaged:
                codes = table.encode(read_mask(path), path)
                labels = label_positions(codes, shape, len(table.names))
                annotations.append(Annotation(key, path, (codes.shape[1], codes.shape[0]), labels, source))
    return table, annotations, digest.hexdigest(), notes + more


def join_stores(annotations: Sequence[Annotation], stores: Sequence[Store]) -> list[Annotation]:
    """Find the rows of annotated images; one that could not be read has none, and is left out.

    Raises UsageError for a mask that is not as large as its image.
    """
    places: dict[tuple[int, str], tuple[int, int, int]] = {}
    for source, store in enumerate(stores):
        sizes = zip(store.keys.tolist(), store["width"].tolist(), store["height"].tolist(), strict=True)
        places |= {(source, key): (row, width, height) for row, (key, width, height) in enumerate(sizes)}
    joined = []
    for each in annotations:
        if (place := places.get((each.source, each.key))) is None:
            continue
        row, *size = place
        if tuple(size) != each.size:
            raise UsageError(
                f"mask {str(each.mask)!r} has {each.size[0]}×{each.size[1]} pixels, its image {each.key!r} has"
                f" {size[0]}×{size[1]} (upright): they must be of one size"
            )
        joined.append(replace(each, row=row))
    return joined


def assign_parts(annotations: Sequence[Annotation], classes: int, seed: int) -> tuple[list[Annotation], list[str]]:
    """Assign each image to a part: by the second source, by folders called train, val and test, or drawn.

    Returns them in the order of sources and rows; what is drawn depends on keys and masks alone.
    Drawn: 20 % of the images are for testing and a quarter of the others for validation, so that each class is on all sides
    where enough images have it. Raises UsageError for too few images.
    """
    if len(annotations) < 3:
        raise UsageError(f"{len(annotations)} annotated images cannot be split into {', '.join(PARTS)}: give at least 3")
    annotations = sorted(annotations, key=lambda each: (each.source, each.key))
    presence = np.stack([count_classes([each.labels], classes) > 0 for each in annotations])
    targets = Targets("multi", tuple(map(str, range(classes))), presence)
    parts = np.where([each.source == 1 for each in annotations], TEST, TRAIN).astype(np.int8)
    notes = []
    if not (parts == TEST).any():
        folders = [each.key.split("/")[0].lower() if "/" in each.key else "" for each in annotations]
        named = [SPLIT_NAMES.get(folder) for folder in folders]
        if None not in named and len(set(named)) > 1 and "train" in named:
            parts = np.array([PARTS.index(str(name)) for name in named], np.int8)
            parts = parts if (parts == TEST).any() else np.where(parts == VAL, TEST, parts)
            notes.append(f"the folders {', '.join(sorted(set(folders)))} are splits")
        else:
            parts[hold_out(targets, _TEST_SHARE, seed)] = TEST
    if not (parts == VAL).any():
        rest = np.flatnonzero(parts == TRAIN)
        if len(rest) < 2:
            raise UsageError(f"{len(rest)} annotated images to learn from: give at least 2")
        parts[rest[hold_out(targets.take(rest), _VAL_SHARE, seed + 1)]] = VAL
    assigned = [replace(each, part=int(part)) for each, part in zip(annotations, parts, strict=True)]
    return sorted(assigned, key=lambda each: (each.source, each.row)), notes


@dataclass(frozen=True)
class DenseData:
    """Annotated images and their features. ``columns``: of the stores, with channels; ``shape``: of the grid of positions."""

    stores: Sequence[Store]
    annotations: Sequence[Annotation]
    table: ClassTable
    widths: dict[str, int]
    shape: tuple[int, int]
    seed: int

    def select(self, part: int) -> list[Annotation]:
        return [each for each in self.annotations if each.part == part]

    def read_maps(self, part: int, names: Sequence[str]) -> Iterator[tuple[Annotation, list[np.ndarray]]]:
        """Yield the images of a part, in the order of :meth:`select`, with their blocks' maps, float16 ``(C, h, w)`` each."""
        for source, store in enumerate(self.stores):
            wanted = {each.row: each for each in self.select(part) if each.source == source}
            first = 0
            for batch in store.record_batches(names) if wanted else ():
                rows = [row for row in range(first, first + len(batch)) if row in wanted]
                if rows:
                    columns = [
                        batch.column(name).flatten().to_numpy().reshape(len(batch), *store.shapes[name]) for name in names
                    ]
                    for row in rows:
                        yield wanted[row], [column[row - first] for column in columns]
                first += len(batch)

    def draw(self, part: int, most: int) -> list[np.ndarray]:
        """Draw positions of a part's images, balanced by class: for each image, in order, positions in its flat grid."""
        return draw_positions([each.labels for each in self.select(part)], len(self.table.names), most, self.seed)
