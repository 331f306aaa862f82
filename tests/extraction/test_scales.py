"""Jobs with tiles of a physical scale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import densefeat
from densefeat.errors import UsageError
from densefeat.store import ImageEntry, make_thumbnails
from support.commands import run_command
from support.helpers import BUNDLED
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture
def folder(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """Two scans of the same thing, the second twice as fine, with a smaller copy that has half of its pixels."""
    (tmp_path / "images").mkdir()
    scan = np.asarray(photographs[0].crop((0, 0, 128, 96)))
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "resolutionunit": "centimeter"}
    tifffile.imwrite(tmp_path / "images/coarse.tif", scan, resolution=(20_000, 20_000), **options)
    with tifffile.TiffWriter(tmp_path / "images/fine.tif") as writer:
        writer.write(scan.repeat(2, 0).repeat(2, 1), resolution=(40_000, 40_000), tile=(64, 64), **options)
        writer.write(scan, subfiletype=1, tile=(64, 64), **options)
    return tmp_path / "images"


def extract(folder: Path, out: str = "store", **options: Any) -> densefeat.Store:
    weights = write_tiny_weights(folder.parent)
    densefeat.extract(folder, folder.parent / out, TINY, weights, device="cpu", image_size=32, tile=32, **options)
    return densefeat.open_store(folder.parent / out)


def test_the_same_thing_has_the_same_embedding_at_any_resolution(folder: Path) -> None:
    store = extract(folder, mpp=0.5)
    coarse, fine = np.split(store["block3"], 2)
    assert len(coarse) == len(fine) == 12
    assert np.allclose(coarse, fine, atol=1e-5)
    for names, factor in ((range(12), 1), (range(12, 24), 2)):
        for row, (x, y) in zip(names, [(x, y) for y in (0, 32, 64) for x in (0, 32, 64, 96)], strict=True):
            assert [store.column(name)[row].as_py() for name in ("x", "y", "width")] == [factor * x, factor * y, factor * 128]
    assert store.provenance["tiles"]["mpp"] == 0.5


def test_the_scale_of_a_store_stays_the_same(folder: Path) -> None:
    extract(folder)
    with pytest.raises(UsageError, match="was made with other settings: tiles mpp is None there, not 0.5"):
        extract(folder, mpp=0.5)
    extract(folder, "scaled", mpp=0.5)
    assert len(extract(folder, "scaled", mpp=0.5)) == 24


def test_thumbnails_show_the_tiles_of_the_store(folder: Path) -> None:
    store = extract(folder, mpp=0.5)
    coarse, fine = ImageEntry("coarse.tif", None, 32, 64), ImageEntry("fine.tif", None, 64, 128)
    pictures, problem = make_thumbnails(store.provenance, [coarse, fine], folder)
    assert problem is None
    assert pictures[coarse] == pictures[fine]


def test_an_input_without_a_scale(photo_folder: Path, tmp_path: Path) -> None:
    command = ["extract", "--images", photo_folder, "--out", tmp_path / "out", "--model", BUNDLED, "--mpp", 0.5]
    finished = run_command(*command, "--tile", 64)
    assert finished.exit_code == 2
    assert "--mpp 0.5: none of the images says how many microns a pixel is" in finished.stderr
    finished = run_command(*command)
    assert finished.exit_code == 2
    assert "--stride, --min-content and --mpp are for tiles: give --tile too" in finished.stderr
