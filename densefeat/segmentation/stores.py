"""Images with masks, and the stores of their blocks' maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import atomic_file, output_errors
from densefeat.extraction import ColumnsNet, extract
from densefeat.features import FeatureExtractor
from densefeat.images import Preprocessing, is_image_folder, open_source, printable_keys
from densefeat.labels import MaskFiles, find_masks
from densefeat.probing import FEATURES, TEST_FEATURES
from densefeat.segmentation.grid_net import BlockGrid, GridNet
from densefeat.store import Store, open_store

_LIST_KEY = b"densefeat_annotated"  # in the schema's metadata of a list of annotated images


@dataclass(frozen=True)
class AnnotatedImages:
    """An input of images, and their masks. ``base``: the folder that a list's paths are relative to; None: the list's own."""

    images: str | Path
    masks: MaskFiles
    base: str | Path | None

    @property
    def place(self) -> str | Path:
        """Where the keys of the images are paths."""
        return self.images if self.base is None else self.base


def find_annotated(images: str | Path, masks: str | Path, base: str | Path | None) -> AnnotatedImages:
    """Find the masks of images. Raises UsageError where these cannot be opened, or none has a mask."""
    keys = printable_keys(open_source(images, base=base).keys()).to_pylist()
    return AnnotatedImages(images, find_masks(keys, Path(masks)), base)


def extract_stores(
    inputs: Sequence[AnnotatedImages], out: Path, extractor: FeatureExtractor, grids: Sequence[BlockGrid], **settings: Any
) -> list[Store]:
    """Extract the blocks' maps to stores in ``out``, but for what is done already. Test images are converted as the first."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    network, channels = GridNet(extractor, grids), {grid.column: grid.channels for grid in grids}
    stores: list[Store] = []
    for each, name in zip(inputs, (FEATURES, TEST_FEATURES), strict=False):
        if stores:
            extractor.preprocessing = Preprocessing.from_json(stores[0].provenance["preprocessing"], str(stores[0].path))
        net = ColumnsNet(str(extractor.provenance["model"]), network, channels, extractor.preprocessing)
        images, base = _list_annotated(each, out / f".{name}.parquet")
        extract(
            images, out / name, net, pool="none", dtype="float16", decoder=extractor.decoder, base=base, update=True, **settings
        )
        stores.append(open_store(out / name))
    return stores


def _list_annotated(each: AnnotatedImages, path: Path) -> tuple[str | Path, str | Path | None]:
    """Return the images to extract, and their base: of a folder a list, written to ``path``, of those that have masks.

    Masks may be added later: the same command then extracts their images, too.
    """
    if each.masks.whole or not is_image_folder(each.images):
        return each.images, each.base
    table = pa.table({"path": pa.array(each.masks.by_key, pa.large_string())})  # Parquet, for names may have line breaks
    with atomic_file(path, _is_list) as beside, output_errors(path), open(beside, "wb") as file:
        pq.write_table(table.replace_schema_metadata({_LIST_KEY: b"1"}), file)
    return path, each.images


def _is_list(path: Path) -> bool:
    """Recognize a list of annotated images."""
    try:
        return _LIST_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False
