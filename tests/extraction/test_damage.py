"""Damaged stores: the same command extracts what is lost, and nothing else, and the store is then as it was."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import densefeat
from densefeat.errors import DensefeatError, OutputError
from densefeat.store import verify_store
from support.stores import flip_bit
from support.tiny_net import TINY, write_tiny_weights


def extract(images: Path, out: Path, **options: Any) -> densefeat.ExtractResult:
    network = TINY, write_tiny_weights(images.parent)
    return densefeat.extract(images, out, *network, **{"batch_size": 2, "part_rows": 4, "backend": "reference", **options})


def read_files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def flip_column(file: Path, name: str) -> None:
    """Flip a bit within a column's values."""
    group = pq.read_metadata(file).row_group(0)
    column = group.column(pq.read_schema(file).get_field_index(name))
    flip_bit(file, column.data_page_offset + column.total_compressed_size - 3)


def make_images(folder: Path) -> Path:
    """Twelve small images, and two files that are none, the first of them among the first four files."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    for name in ("01a.png", "zz.png"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, and the store that was made of it: four parts, with a failure in the first and in the last."""
    root = tmp_path_factory.mktemp("damage")
    extract(make_images(root / "images"), root / "store")
    return root / "images", root / "store"


DAMAGES = {
    "a bit of vectors": lambda out: flip_column(out / "data/part-00001.parquet", "block2"),
    "a bit of keys": lambda out: flip_column(out / "data/part-00000.parquet", "path"),
    "a bit of the footer": lambda out: flip_bit(out / "data/part-00001.parquet", -20),
    "a part is gone": lambda out: (out / "data/part-00000.parquet").unlink(),
    "a part is cut": lambda out: (out / "data/part-00002.parquet").write_bytes(b"PAR1"),
    "a copy of another part": lambda out: shutil.copyfile(out / "data/part-00001.parquet", out / "data/part-00000.parquet"),
    "failures are gone": lambda out: (out / "failures.parquet").unlink(),
    "a bit of failures": lambda out: flip_bit(out / "failures.parquet", 30),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_the_same_command_redoes_what_is_lost(made: tuple[Path, Path], tmp_path: Path, damage: Any) -> None:
    images, original = made
    store = shutil.copytree(original, tmp_path / "store")
    before = read_files(store)
    damage(store)
    [problem] = [found.problem for found in verify_store(store).damages]
    assert re.search(r"(part-0000\d|failures)\.parquet: ", problem)
    assert 0 < extract(images, store).extracted <= 8
    assert read_files(store) == before
    assert not verify_store(store).damages


def test_a_damaged_part_of_an_unfinished_store(made: tuple[Path, Path], tmp_path: Path) -> None:
    images, original = made
    with pytest.raises(DensefeatError, match="stopped after 2 failures"):
        extract(images, tmp_path / "store", max_failures=1)
    flip_column(tmp_path / "store/data/part-00000.parquet", "block1")
    with pytest.raises(OutputError, match=r"part-00000\.parquet: damaged: its columns block1"):
        densefeat.open_store(tmp_path / "store")["block1"]
    extract(images, tmp_path / "store")
    for name in ("path", "block1"):
        assert np.array_equal(densefeat.open_store(tmp_path / "store")[name], densefeat.open_store(original)[name])


def test_a_torn_part_of_an_unfinished_store(made: tuple[Path, Path], tmp_path: Path) -> None:
    """A part without its end is known as the job's own by its record, and extracted again."""
    images, original = made
    store = tmp_path / "store"
    with pytest.raises(DensefeatError, match="stopped after 2 failures"):
        extract(images, store, max_failures=1)
    part = store / "data/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    extract(images, store)
    assert np.array_equal(densefeat.open_store(store)["block1"], densefeat.open_store(original)["block1"])


def test_another_input_leaves_a_damaged_store_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    images, original = made
    others = shutil.copytree(images, tmp_path / "images")
    (others / "more.png").write_bytes((images / "00.png").read_bytes())
    store = shutil.copytree(original, tmp_path / "store")
    flip_column(store / "data/part-00001.parquet", "block1")
    before = read_files(store)
    with pytest.raises(DensefeatError, match="was made of the images at"):
        extract(others, store)
    assert read_files(store) == before


@pytest.fixture
def updated(tmp_path: Path) -> tuple[Path, Path]:
    """Images and a store to which the first of them was added later."""
    images = make_images(tmp_path / "images")
    extract(images, tmp_path / "store")
    shutil.copy(images / "00.png", images / "000.png")
    extract(images, tmp_path / "store", update=True)
    return images, tmp_path / "store"


@pytest.mark.parametrize("number", [0, 4])
def test_an_update_redoes_a_part_of_an_updated_store(updated: tuple[Path, Path], number: int) -> None:
    images, store = updated
    before = densefeat.open_store(store)
    columns = {name: before[name] for name in before.schema.names}
    flip_column(store / f"data/part-{number:05}.parquet", "block2")
    with pytest.raises(OutputError, match=rf"part-0000{number}\.parquet is damaged: --update extracts its images again"):
        extract(images, store)
    extract(images, store, update=True)
    after = densefeat.open_store(store)
    assert all(np.array_equal(after[name], values) for name, values in columns.items())
    assert not verify_store(store).damages


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda out: flip_column(out / "data/part-00000.parquet", "path"), "which images it was of cannot be read"),
        (lambda out: (out / "failures.parquet").unlink(), "the store has been updated since its first images"),
    ],
)
def test_what_an_update_cannot_redo(updated: tuple[Path, Path], damage: Any, match: str) -> None:
    images, store = updated
    damage(store)
    with pytest.raises(OutputError, match=f"{match}.*: --overwrite starts over"):
        extract(images, store, update=True)


def test_a_damaged_part_whose_images_are_gone(updated: tuple[Path, Path]) -> None:
    images, store = updated
    flip_column(store / "data/part-00000.parquet", "block1")
    (images / "00.png").unlink()
    with pytest.raises(OutputError, match="some of its images are no longer in the input"):
        extract(images, store, update=True)
