"""Pages of files as images of their own: in order, at any position, by any thread."""

import io
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images.pages import PagedSource, parse_pages
from densefeat.images.sources import open_source
from densefeat.images.stream import ImageItem, hash_columns
from densefeat.images.tiles import TiledSource


def make_pages(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def write_tiff(path: Path, pages: np.ndarray, **options: Any) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", metadata=None, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A TIFF of three pages, one of two with its smaller copies and a mask, an animation, a photograph, and a broken file."""
    write_tiff(tmp_path / "a.tif", make_pages(3), tile=(32, 32))
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        one, two = make_pages(2)
        for page, kind in (
            (one[::4, ::4], 1),
            (one, 0),
            (one[::2, ::2], 1),
            (one[..., 0] > 99, 4),
            (two, 2),
            (two[::2, ::2], 0),
        ):
            writer.write(page, subfiletype=kind, metadata=None)
    frames = [Image.fromarray(page) for page in make_pages(4)]
    frames[0].save(tmp_path / "c.webp", save_all=True, append_images=frames[1:], lossless=True)
    Image.fromarray(make_pages(1)[0]).save(tmp_path / "d.png")
    (tmp_path / "e.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:5])
    return tmp_path


EXPECTED = {"a.tif": make_pages(3), "b.tif": make_pages(2), "c.webp": make_pages(4), "d.png": make_pages(1)}
PLACES = [(key, page) for key, pages in EXPECTED.items() for page in range(1, len(pages) + 1)]


def read(item: ImageItem) -> np.ndarray:
    decoded = item.decode("pillow")
    assert decoded.page == item.page
    assert not decoded.several
    pixels = np.asarray(decoded.pixels)
    assert (decoded.height, decoded.width) == pixels.shape[:2]
    return pixels


def test_all_pages_in_order(folder: Path) -> None:
    source = PagedSource(open_source(folder), "all")
    *items, broken = source.items(0, 99)
    assert source.length == len(PLACES) + 1
    assert [(item.key, item.page) for item in items] == PLACES
    for item in items:
        assert np.array_equal(read(item), EXPECTED[item.key][item.page - 1])
    assert (broken.key, broken.page) == ("e.tif", None)
    with pytest.raises(DecodeError, match="a TIFF without a page"):
        broken.decode()
    assert source.keys().to_pylist() == [*(key.encode() for key, _ in PLACES), b"e.tif"]


def test_any_range_of_positions_in_any_order(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(PagedSource(open_source(folder), "all")))
    places = [*PLACES, ("e.tif", None)]
    for start in range(len(places)):
        for stop in range(start, len(places) + 1):
            assert [(item.key, item.page) for item in source.items(start, stop)] == places[start:stop]
    items = list(source.items(0, len(PLACES)))
    with ThreadPoolExecutor(8) as pool:
        for item, pixels in zip(items[::-1], pool.map(read, items[::-1]), strict=True):
            assert np.array_equal(pixels, EXPECTED[item.key][item.page - 1])


@pytest.mark.parametrize("page", [1, 2, 4])
def test_one_page_of_each_file(page: int, folder: Path) -> None:
    source = PagedSource(open_source(folder), page)
    items = list(source.items(0, 99))
    assert source.length == len(items) == 5
    assert source.keys().equals(open_source(folder).keys())
    for item in items[:-1]:
        pages = EXPECTED[item.key]
        if page <= len(pages):
            assert np.array_equal(read(item), pages[page - 1])
        else:
            with pytest.raises(DecodeError, match=f"page {page}: the file has {len(pages)}"):
                item.decode()
    with pytest.raises(DecodeError):
        items[-1].decode()


def test_pages_of_files_in_a_table(folder: Path, tmp_path: Path) -> None:
    """They are no files of their own: each is read once for all its pages."""
    names = ["a.tif", "c.webp", "d.png"]
    images = pa.array([{"bytes": (folder / name).read_bytes(), "path": name} for name in names])
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    source = PagedSource(open_source(tmp_path / "images.parquet"), "all")
    items = list(source.items(0, 99))
    for item, (key, page) in zip(items, [place for place in PLACES if place[0] in names], strict=True):
        assert np.array_equal(read(item), EXPECTED[key][page - 1])


def test_tiles_of_pages(folder: Path) -> None:
    source = TiledSource(PagedSource(open_source(folder), "all"), 40)
    *items, broken = source.items(0, 99)
    assert [(item.key, item.page, item.x, item.y) for item in items] == [
        (key, page, x, y) for key, page in PLACES for y in (0, 8) for x in (0, 24)
    ]
    for item in items:
        decoded = item.decode("pillow")
        assert (decoded.page, decoded.x, decoded.y, decoded.several) == (item.page, item.x, item.y, False)
        expected = EXPECTED[item.key][item.page - 1][item.y : item.y + 40, item.x : item.x + 40]
        assert np.array_equal(decoded.pixels.permute(1, 2, 0).numpy(), expected)
    assert broken.page is None


def test_tiles_of_a_page_that_is_missing_are_one_failure(folder: Path) -> None:
    items = list(TiledSource(PagedSource(open_source(folder), 3), 40).items(0, 99))
    assert [(item.key, item.page) for item in items] == [
        *[("a.tif", 3)] * 4, ("b.tif", 3), *[("c.webp", 3)] * 4, ("d.png", 3), ("e.tif", 3),
    ]  # fmt: skip
    for item, match in zip((items[4], items[9]), ("page 3: the file has 2", "page 3: the file has fewer"), strict=True):
        with pytest.raises(DecodeError, match=match):
            item.decode()


def test_the_fingerprint_says_which_page_a_position_is(folder: Path) -> None:
    def fingerprint(pages: str | int) -> str:
        return PagedSource(open_source(folder), pages).fingerprint()

    before = [fingerprint(pages) for pages in ("all", 1, 2)]
    assert before == [fingerprint(pages) for pages in ("all", 1, "2")]
    write_tiff(folder / "a.tif", make_pages(2))
    after = [fingerprint(pages) for pages in ("all", 1, 2)]
    assert (len(set(before)), after[0] == before[0], after[1:] == before[1:]) == (3, False, True)


def test_a_damaged_page_fails_by_itself(tmp_path: Path) -> None:
    """The third of five pages lies where the file has no table: what follows it is not known."""
    pages = make_pages(5)
    write_tiff(tmp_path / "a.tif", pages)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        place = tiff.pages[1].offset
        count = len(tiff.pages[1].tags)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<I", data, place + 2 + 12 * count, len(data) - 1)
    (tmp_path / "a.tif").write_bytes(data)
    one, two, damaged = PagedSource(open_source(tmp_path), "all").items(0, 99)
    assert np.array_equal(read(one), pages[0])
    assert np.array_equal(read(two), pages[1])
    with pytest.raises(DecodeError, match="its table is damaged"):
        damaged.decode()


def test_a_stack_of_ten_thousand_pages(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (10_000, 16, 16), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata=None)
    source = PagedSource(open_source(tmp_path), "all")
    assert source.length == 10_000
    for position in (0, 1, 63, 64, 65, 9_999):
        (item,) = source.items(position, position + 1)
        assert np.array_equal(read(item)[..., 0], stack[position])


def test_more_pages_than_a_file_may_have(tmp_path: Path) -> None:
    """Tables of one tag that name each other; tifffile is not asked for any but the first."""
    count = 100_001
    tables = b"".join(struct.pack("<HHHIII", 1, 256, 3, 1, 1, 8 + 18 * (number + 1)) for number in range(count))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + tables[:-4] + bytes(4))
    (item,) = PagedSource(open_source(tmp_path), "all").items(0, 9)
    with pytest.raises(DecodeError, match="a TIFF of more than 100,000 pages"):
        item.decode()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="POSIX")
def test_no_link_out_of_the_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.tif").symlink_to(folder / "a.tif")
    (item,) = PagedSource(open_source(inside), "all").items(0, 9)
    with pytest.raises(DecodeError) as caught:
        item.decode()
    assert caught.value.stage == "read"


class Stream:
    """Images of which it is not known how many there are."""

    length = None
    labelled = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    def items(self, start: int, stop: int) -> Any:
        return (ImageItem(str(number), None, partial(bytes, self.data)) for number in range(start, min(stop, 3)))

    def keys(self) -> pa.LargeBinaryArray:
        raise UsageError("no length")

    def fingerprint(self) -> str:
        return hash_columns()


def test_streams_have_one_page_each_at_most(folder: Path) -> None:
    source = Stream((folder / "a.tif").read_bytes())
    with pytest.raises(UsageError, match="all pages need an input whose length is known beforehand"):
        PagedSource(source, "all")
    paged = PagedSource(source, 2)
    assert paged.length is None
    for item in paged.items(0, 2**62):
        assert np.array_equal(read(item), make_pages(3)[1])


@pytest.mark.parametrize(("pages", "parsed"), [("first", "first"), ("all", "all"), ("7", 7), (1, 1)])
def test_what_can_be_chosen(pages: str | int, parsed: str | int) -> None:
    assert parse_pages(pages) == parsed


@pytest.mark.parametrize("pages", ["", "last", "0", 0, -1, "-1", "1.5", 2.0, True, "²", "9" * 5000])
def test_what_cannot(pages: Any) -> None:
    with pytest.raises(UsageError, match="give first, all, or the number of a page from 1"):
        parse_pages(pages)


def test_16_bit_pages_by_region_and_whole(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 2**16, (3, 40, 50), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", metadata=None, compression="zlib")
    data = (tmp_path / "a.tif").read_bytes()
    for source in (open_source(tmp_path), Stream(data)):
        (item,) = list(PagedSource(source, 3).items(0, 1))
        assert np.array_equal(read(item)[..., 0], pages[2] >> 8)
    assert io.BytesIO(data).read(2) == b"II"


def test_frames_of_a_dicom(tmp_path: Path) -> None:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 32), np.uint8)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = SecondaryCaptureImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.Rows, image.Columns, image.NumberOfFrames, image.SamplesPerPixel = 24, 32, 3, 1
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    image.PixelData = pixels.tobytes()
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    items = list(PagedSource(open_source(tmp_path), "all").items(0, 9))
    assert [item.page for item in items] == [1, 2, 3]
    for item, frame in zip(items, pixels, strict=True):
        assert np.array_equal(read(item)[..., 0], frame)
    (missing,) = PagedSource(open_source(tmp_path), 4).items(0, 9)
    with pytest.raises(DecodeError, match="page 4: the file has 3"):
        missing.decode()
