"""Jobs with rows for the pages of files: the page is part of a row's place, in the store and in all that reads it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import densefeat
from densefeat.errors import UsageError
from densefeat.search import find_neighbours
from densefeat.store import Failure, ImageEntry, make_thumbnails
from support.commands import run_command
from support.tiny_net import TINY, write_tiny_weights

PAGES = {"a.tif": 3, "b.gif": 2, "c.png": 1}


def make_page(name: str, page: int) -> np.ndarray:
    return np.random.default_rng([ord(name[0]), page]).integers(0, 256, (48, 64), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, count in PAGES.items():
        pages = [make_page(name, page + 1) for page in range(count)]
        if name.endswith("tif"):
            tifffile.imwrite(folder / name, np.stack(pages), photometric="minisblack", metadata=None)
        else:
            first, *others = [Image.fromarray(page) for page in pages]
            first.save(folder / name, **({"save_all": True, "append_images": others} if others else {}))
    return folder


def extract(folder: Path, out: str = "store", **options: Any) -> densefeat.Store:
    weights = write_tiny_weights(folder.parent)
    path = folder.parent / out
    densefeat.extract(folder, path, TINY, weights, device="cpu", decoder="pillow", image_size=32, batch_size=2, **options)
    return densefeat.open_store(path)


def embed(folder: Path, places: list[tuple[str, int]]) -> np.ndarray:
    """The embeddings of the pages by the network alone."""
    weights = write_tiny_weights(folder.parent)
    extractor = densefeat.FeatureExtractor(TINY, "all", "avg", weights=weights, device="cpu", image_size=32, decoder="pillow")
    pictures = [Image.fromarray(make_page(*place)).convert("RGB") for place in places]
    return np.concatenate([np.asarray(extractor([picture])["block3"]) for picture in pictures])


def list_places(store: densefeat.Store, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(store.column(name).to_pylist() for name in ("path", *names)), strict=True))


ALL = [(name, page + 1) for name, count in PAGES.items() for page in range(count)]


@pytest.mark.parametrize("out", ["store", "store.parquet"])
def test_all_pages_have_rows(out: str, folder: Path) -> None:
    store = extract(folder, out, pages="all")
    assert list_places(store, "page", "width", "height") == [(*place, 64, 48) for place in ALL]
    assert np.allclose(store["block3"], embed(folder, ALL), atol=1e-5)
    assert len(store.failures) == 0


def test_one_page_has_rows_or_failures(folder: Path) -> None:
    store = extract(folder, pages=2)
    assert list_places(store, "page") == [("a.tif", 2), ("b.gif", 2)]
    assert np.allclose(store["block3"], embed(folder, [("a.tif", 2), ("b.gif", 2)]), atol=1e-5)
    (failure,) = store.failures
    assert failure == Failure("c.png", "decode", "page 2: the file has 1", page=2)


def test_without_pages_stores_are_as_before(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = extract(folder)
    assert "page" not in store.schema.names
    assert list_places(store) == [(name,) for name in PAGES]
    assert "the first of several pages or frames was taken of 2 files: a.tif, b.gif" in caplog.text
    caplog.clear()
    extract(folder, "all", pages="all")
    assert "several pages" not in caplog.text


def test_tiles_of_all_pages(folder: Path) -> None:
    store = extract(folder, pages="all", tile=32)
    assert list_places(store, "page", "x", "y") == [(*place, x, y) for place in ALL for y in (0, 16) for x in (0, 32)]


def test_a_job_resumes_at_any_page(folder: Path) -> None:
    """The store of an interrupted job, and of the whole: the same rows, bit for bit."""
    whole = extract(folder, "whole", pages="all", part_rows=2)
    with pytest.raises(densefeat.DensefeatError, match="first failure"):
        (folder / "b.gif").rename(folder.parent / "b.gif")
        (folder / "b.gif").write_bytes(b"GIF89a")
        extract(folder, pages="all", part_rows=2, on_error="fail")
    (folder / "b.gif").unlink()
    (folder.parent / "b.gif").rename(folder / "b.gif")
    with pytest.raises(UsageError, match="have changed"):
        extract(folder, pages="all", part_rows=2)
    store = extract(folder, pages="all", part_rows=2, overwrite=True)
    assert store.column("page").equals(whole.column("page"))
    assert np.array_equal(store["block3"], whole["block3"])


@pytest.mark.parametrize(("before", "after"), [("first", "all"), ("all", "first"), ("all", 2), (1, "first"), (1, 2)])
def test_the_pages_of_a_store_stay_the_same(before: Any, after: Any, folder: Path) -> None:
    extract(folder, pages=before)
    with pytest.raises(UsageError, match="was made with other settings: pages is"):
        extract(folder, pages=after)


def test_a_store_from_before_pages_goes_on(folder: Path) -> None:
    """Its manifest says nothing of pages."""
    store = extract(folder)
    assert extract(folder).provenance["pages"] is None
    assert json.loads((store.path / "manifest.json").read_text())["settings"]["pages"] is None


def test_an_update_adds_the_pages_of_new_files(folder: Path) -> None:
    extract(folder, pages="all")
    tifffile.imwrite(
        folder / "d.tif", np.stack([make_page("d", 1), make_page("d", 2)]), photometric="minisblack", metadata=None
    )
    tifffile.imwrite(folder / "a.tif", np.stack([make_page("d", 3)] * 2), photometric="minisblack", metadata=None)
    store = extract(folder, pages="all", update=True)
    assert sorted(list_places(store, "page")) == sorted(
        [("a.tif", 1), ("a.tif", 2), *[place for place in ALL if place[0] != "a.tif"], ("d.tif", 1), ("d.tif", 2)]
    )


def test_rows_are_named_by_their_page(folder: Path) -> None:
    store = extract(folder, pages="all")
    found = run_command("search", store.path, "--key", "a.tif:p2", "-k", 5, "--format", "csv", check=True)
    head, *rows = csv.reader(io.StringIO(found.stdout))
    assert head == ["rank", "score", "path", "page"]
    assert sorted((name, int(page)) for _, _, name, page in rows) == sorted(place for place in ALL if place != ("a.tif", 2))
    with pytest.raises(UsageError, match=r"key 'a.tif' has 3 rows in .*: name one by its place, as in a.tif:p1"):
        find_neighbours(store, keys=["a.tif"])
    with pytest.raises(UsageError, match="key 'a.tif:p4' is not in"):
        find_neighbours(store, keys=["a.tif:p4"])
    tiled = extract(folder, "tiles", pages="all", tile=32)
    (query,) = find_neighbours(tiled, keys=["b.gif:p2:32,16"], k=1).queries
    assert query.entry == ImageEntry("b.gif", None, 32, 16, 2)
    assert query.entry.name == "b.gif:p2:32,16"


def test_failures_are_named_by_their_page(folder: Path) -> None:
    store = extract(folder, pages=2)
    assert "c.png page 2: decode: page 2: the file has 1" in run_command("info", store.path, check=True).stdout


def test_pages_have_thumbnails_of_their_own(folder: Path) -> None:
    store = extract(folder, pages="all")
    entries = [ImageEntry(name, page=page) for name, page in ALL]
    pictures, problem = make_thumbnails(store.provenance, entries, folder)
    assert problem is None
    assert len(set(pictures.values())) == len(pictures) == len(ALL)


def test_the_range_is_measured_over_all_pages(tmp_path: Path) -> None:
    """Percentiles of 16-bit pages, of which only the last is bright."""
    folder = tmp_path / "images"
    folder.mkdir()
    stack = np.stack([np.full((32, 32), value, np.uint16) for value in (100, 200, 4000)])
    tifffile.imwrite(folder / "a.tif", stack, photometric="minisblack", metadata=None)
    bounds = extract(folder, pages="all", pixels=densefeat.PixelRule(range="p0:p100")).provenance["preprocessing"]["pixels"][
        "bounds"
    ]
    assert np.allclose(bounds, [[100, 4000]], rtol=2e-3)
