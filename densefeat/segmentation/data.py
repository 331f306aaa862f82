"""Annotated images: their masks, their parts of the split, the classes of their positions, and their features in stores."""

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

    ``source``: the number of the store with its features, ``row``: its row there; ``part``: as in ``densefeat.labels.PARTS``.
    """

    key: str
    mask: Path
    size: tuple[int, int]
    labels: np.ndarray
    source: int = 0
    row: int = -1
    part: int = TRAIN

    def read(self, table: ClassTable) -> np.ndarray:
        """Read the mask as classes, uint8 ``(H, W)``. Raises UsageError if the file has changed."""
        try:
            return table.encode(read_mask(self.mask, self.size), self.mask)
        except DecodeError as error:
            raise UsageError(f"mask {str(self.mask)!r} cannot be read any more: {error}") from error


def read_annotations(
    masks: Sequence[dict[str, Path]], names: dict[int, str] | None, ignored: int | None, shape: tuple[int, int]
) -> tuple[ClassTable, list[Annotation], str, list[str]]:
    """Read masks: ``masks`` has the files by image key, of the images to learn from and, if given, of separate test images.

    ``names``: of classes, by number; ``ignored``: the number to leave out; ``shape``: of the grid of positions. Returns the
    classes, the annotations, a SHA-256 of all masks, and notes, such as on damaged masks, which are left out.
    """
    files = [(source, key, path) for source, group in enumerate(masks) for key, path in group.items()]
    digest, found, readable, damaged = hashlib.sha256(), set[int](), [], []
    with progress_bar("reading masks", len(files)) as advance:
        for source, key, path in files:
            advance(1)
            try:
                values = read_mask(path)
            except DecodeError as error:
                damaged.append(f"{str(path)!r}: {error}")
                continue
            readable.append((source, key, path))
            found |= set(np.unique(values).tolist())
            digest.update(f"{source}\0{key}\0{values.shape}\n".encode("utf-8", "surrogatepass") + values.tobytes())
    notes = [f"{len(damaged):,} of {len(files):,} masks cannot be read and are left out: {damaged[0]}"] if damaged else []
    table, more = make_table(names, sorted(found), ignored)
    annotations = []
    with progress_bar("labelling positions", len(readable)) as advance:
        for source, key, path in readable:
            codes = table.encode(read_mask(path), path)
            labels = label_positions(codes, shape, len(table.names))
            annotations.append(Annotation(key, path, (codes.shape[1], codes.shape[0]), labels, source))
            advance(1)
    return table, annotations, digest.hexdigest(), notes + more


def join_stores(annotations: Sequence[Annotation], stores: Sequence[Store]) -> list[Annotation]:
    """Find the row of each annotated image in the stores. Images that could not be read have none, and are left out.

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
    """Assign each image to a part: by separate test images, by folders called train, val and test, or at random.

    At random, 20 % of the images are for testing and a quarter of the others for validation, so that each class is in all
    parts if enough images have it; the draw depends on keys, masks and seed alone. Returns the images in the order of sources
    and rows, and notes. Raises UsageError for fewer than 3 images, or fewer than 2 to learn from.
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
    """Annotated images and their features. ``widths``: channels by column of the stores; ``shape``: of the grid."""

    stores: Sequence[Store]
    annotations: Sequence[Annotation]
    table: ClassTable
    widths: dict[str, int]
    shape: tuple[int, int]
    seed: int

    def select(self, part: int) -> list[Annotation]:
        """Return the images of a part."""
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
        """Draw positions of a part's images, balanced by class: for each image, in order, indices in its flattened grid."""
        return draw_positions([each.labels for each in self.select(part)], len(self.table.names), most, self.seed)
