"""Other images under the same keys: noticed, named, and extracted again so that each image is in the store exactly once."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import densefeat
from densefeat import DensefeatError, UsageError
from support.tiny_net import TINY, write_tiny_weights


def extract(images: object, out: Path, **options: Any) -> densefeat.ExtractResult:
    defaults = {"blocks": [3], "batch_size": 2, "part_rows": 3, "backend": "buffer"}
    return densefeat.extract(images, out, TINY, write_tiny_weights(out.parent), **defaults | options)


def encode(seed: int) -> bytes:
    """A picture of its own for each seed, as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40)).save(file, "PNG")
    return file.getvalue()


def write_folder(place: Path, seeds: list[int]) -> Path:
    place.mkdir(exist_ok=True)
    for i, seed in enumerate(seeds):
        file = place / f"{i:02}.png"
        if not file.exists() or file.read_bytes() != encode(seed):
            file.write_bytes(encode(seed))
    return place


def write_list(place: Path, seeds: list[int]) -> Path:
    write_folder(place, seeds)
    (place / "list.txt").write_text("".join(f"{i:02}.png\n" for i in reversed(range(len(seeds)))))
    return place / "list.txt"


def write_table(place: Path, seeds: list[int]) -> Path:
    place.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [encode(seed) for seed in seeds]}), place / "x.parquet")
    return place / "x.parquet"


def write_tar(place: Path, seeds: list[int]) -> Path:
    place.mkdir(exist_ok=True)
    with tarfile.open(place / "x.tar", "w") as tar:
        for i, seed in enumerate(seeds):
            header = tarfile.TarInfo(f"{i:02}.png")
            header.size = len(encode(seed))
            tar.addfile(header, io.BytesIO(encode(seed)))
    return place / "x.tar"


def write_saved(place: Path, seeds: list[int]) -> Path:
    datasets = pytest.importorskip("datasets")
    shutil.rmtree(place, ignore_errors=True)
    rows = {"image": [{"bytes": encode(seed), "path": None} for seed in seeds]}
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()})).save_to_disk(str(place))
    return place


def write_streamed(place: Path, seeds: list[int]) -> str:
    """A folder that datasets streams from; the number of its rows is not known."""
    pytest.importorskip("datasets")
    place.mkdir(exist_ok=True)
    for i, seed in enumerate(seeds):
        pq.write_table(pa.table({"image": [encode(seed)]}), place / f"train-{i}.parquet")
    return f"hf:{place}:train"


KINDS = {"folder": write_folder, "list": write_list, "table": write_table, "tar": write_tar, "saved": write_saved}
KEYS = {"folder": "{:02}.png", "list": "{:02}.png", "table": "x.parquet#{}", "tar": "x.tar/{:02}.png", "saved": "in#{}"}


def read_rows(store: Path) -> dict[str, np.ndarray]:
    """Each image's row, by the files in ``data/`` alone, in which no image may be twice."""
    table = pa.concat_tables(pq.read_table(part) for part in sorted((store / "data").iterdir()))
    keys = table["path"].to_pylist()
    assert len(keys) == len(set(keys))
    assert keys == list(densefeat.open_store(store).keys)
    return dict(zip(keys, table["block3"].to_pylist(), strict=True))


def assert_like_new(images: object, store: Path, tmp_path: Path, **options: Any) -> None:
    """Compare a store, row by row and in order, with one that is made now."""
    found, fresh = read_rows(store), read_rows(extract(images, tmp_path / "fresh", overwrite=True, **options).path)
    assert list(found) == list(fresh)
    np.testing.assert_allclose(np.array(list(found.values())), np.array(list(fresh.values())), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_images_are_named_and_redone(kind: str, tmp_path: Path) -> None:
    write: Callable[[Path, list[int]], Any] = KINDS[kind]
    store = tmp_path / "store"
    images = write(tmp_path / "in", list(range(8)))
    extract(images, store)
    before = read_rows(store)
    write(tmp_path / "in", [0, 1, 2, 90, 4, 5, 6, 91])
    alone = kind in ("folder", "list")
    changed = [KEYS[kind].format(i) for i in ([3, 7] if alone else range(8))]
    names = ", ".join(reversed(changed) if kind == "list" else changed[:3]) + (", …" if len(changed) > 3 else "")
    with pytest.raises(UsageError) as refused:
        extract(images, store)
    assert f"{len(changed)} of the images of '{images}' have changed ({names}) since" in str(refused.value)
    assert "--update extracts those again" in str(refused.value)
    assert read_rows(store) == before
    result = extract(images, store, update=True)
    assert (result.extracted, result.rows, result.failures, result.removed) == (len(changed), 8, 0, 0)
    assert_like_new(images, store, tmp_path)
    after = read_rows(store)
    moved = [key for key in before if not np.allclose(before[key], after[key], atol=1e-3)]
    assert sorted(moved) == [KEYS[kind].format(i) for i in (3, 7)]
    for update in (False, True):
        assert extract(images, store, update=update).extracted == 0


def test_a_table_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    """Its keys are row numbers: an update would leave an image in the store under its old number, too."""
    table = write_table(tmp_path / "in", [0, 1, 2, 3])
    extract(table, tmp_path / "out")
    write_table(tmp_path / "in", [3, 0, 1])
    with pytest.raises(UsageError, match="x.parquet has changed, and .* has more rows of it.*: --overwrite starts over"):
        extract(table, tmp_path / "out", update=True)
    extract(table, tmp_path / "out", overwrite=True)
    assert_like_new(table, tmp_path / "out", tmp_path)


def test_a_folder_that_is_streamed_has_changed(tmp_path: Path) -> None:
    images, store = write_streamed(tmp_path / "in", [0, 1]), tmp_path / "store"
    assert extract(images, store).extracted == 2
    for update in (False, True):
        assert extract(images, store, update=update).extracted == 0
    write_streamed(tmp_path / "in", [0, 1, 2])
    with pytest.raises(UsageError, match=r"the images of 'hf:.*' have changed since .* was made: --overwrite starts over"):
        extract(images, store)
    with pytest.raises(UsageError, match="how many there are is not known: --overwrite starts over"):
        extract(images, store, update=True)
    assert extract(images, store, overwrite=True).rows == 3


def test_changed_added_removed_and_broken_at_once(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(8))), tmp_path / "store"
    extract(images, store)
    (images / "01.png").write_bytes(encode(50))
    (images / "02.png").write_bytes(b"broken")
    (images / "03.png").unlink()
    (images / "0a.png").write_bytes(encode(51))
    with pytest.raises(UsageError, match=r"1 were added and 1 removed \(2 of the images .*\(01.png, 02.png\)\). --update"):
        extract(images, store)
    result = extract(images, store, update=True)
    assert (result.extracted, result.rows, result.failures, result.removed) == (3, 8, 1, 1)
    found = read_rows(store)
    assert list(found) == ["00.png", "01.png", "03.png", "04.png", "05.png", "06.png", "07.png", "0a.png"]
    fresh = read_rows(extract(images, tmp_path / "fresh").path)
    for key in fresh:
        np.testing.assert_allclose(found[key], fresh[key], atol=1e-5)
    assert [(failure.path, failure.stage) for failure in densefeat.open_store(store).failures] == [("02.png", "decode")]
    (images / "02.png").write_bytes(encode(2))
    assert extract(images, store, update=True).failures == 0
    assert list(read_rows(store)) == [*found, "02.png"]


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 10)):
        write_folder(tmp_path / name, [seed, seed + 1, seed + 2])
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    extract(tmp_path / "in", tmp_path / "store", labels="folder")
    (tmp_path / "in/a/02.png").write_bytes(encode(70))
    (tmp_path / "in/b/00.png").write_bytes(encode(71))
    assert extract(tmp_path / "in", tmp_path / "store", labels="folder", update=True).extracted == 2
    store = densefeat.open_store(tmp_path / "store")
    assert list(store["label"]) == ["a"] * 3 + ["b"] * 3
    assert list(store.keys) == [f"{name}/{i:02}.png" for name in "ab" for i in range(3)]


def write_labels(images: Path, labels: str) -> Path:
    (images / "list.csv").write_text("path,label\n" + "".join(f"{i:02}.png,{label}\n" for i, label in enumerate(labels)))
    return images / "list.csv"


def test_an_update_keeps_no_other_labels(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(5))), tmp_path / "store"
    named = dict(label_column="label")
    extract(write_labels(images, "aabb"), store, **named)
    with pytest.raises(UsageError, match=r"2 of the rows .* have other labels .*\(01.png: 'a' there, 'c' now\): --overwrite"):
        extract(write_labels(images, "acbcb"), store, update=True, **named)
    assert extract(write_labels(images, "aabbb"), store, update=True, **named).extracted == 1
    (images / "01.png").write_bytes(encode(40))
    with pytest.raises(UsageError, match=r"0 were added and 0 removed \(1 of the images .* \(01.png\)\)"):
        extract(write_labels(images, "acbbb"), store, **named)
    assert extract(images / "list.csv", store, update=True, **named).extracted == 1
    assert "".join(densefeat.open_store(store)["label"]) == "acbbb"
    assert_like_new(images / "list.csv", store, tmp_path, **named)


def test_an_image_with_another_number_of_tiles(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, size in enumerate((64, 96, 64)):
        Image.open(io.BytesIO(encode(i))).resize((size, 64)).save(tmp_path / f"in/{i}.png")
    tiles = dict(tile=32, part_rows=4)
    extract(tmp_path / "in", tmp_path / "store", **tiles)
    Image.open(io.BytesIO(encode(9))).resize((128, 64)).save(tmp_path / "in/1.png")
    assert extract(tmp_path / "in", tmp_path / "store", update=True, **tiles).extracted == 8
    extract(tmp_path / "in", tmp_path / "fresh", **tiles)
    found, fresh = densefeat.open_store(tmp_path / "store"), densefeat.open_store(tmp_path / "fresh")
    for name in ("path", "x", "y", "width"):
        assert list(found[name]) == list(fresh[name])
    np.testing.assert_allclose(found["block3"], fresh["block3"], atol=1e-5)


def test_an_image_that_is_blank_now(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.open(io.BytesIO(encode(i))).resize((64, 64)).save(tmp_path / f"in/{i}.png")
    tiles = dict(tile=32, min_content=0.1)
    extract(tmp_path / "in", tmp_path / "store", **tiles)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "in/1.png")
    result = extract(tmp_path / "in", tmp_path / "store", update=True, **tiles)
    assert (result.extracted, result.rows, result.failures, result.skipped) == (4, 8, 1, 4)
    store = densefeat.open_store(tmp_path / "store")
    assert [(failure.path, failure.reason) for failure in store.failures] == [("1.png", "no tile with enough content")]
    assert list(store.keys) == ["0.png"] * 4 + ["2.png"] * 4


def test_a_file_that_was_only_touched_counts_as_changed(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", [0, 1, 2]), tmp_path / "store"
    extract(images, store)
    before = read_rows(store)
    os.utime(images / "01.png", ns=(0, (images / "01.png").stat().st_mtime_ns + 1))
    with pytest.raises(UsageError, match=r"1 of the images .* have changed \(01.png\)"):
        extract(images, store)
    assert extract(images, store, update=True).extracted == 1
    assert list(read_rows(store)) == list(before)
    np.testing.assert_allclose(list(read_rows(store).values()), list(before.values()), atol=1e-5)


def test_a_copy_that_keeps_times_is_the_same_input(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", [0, 1, 2]), tmp_path / "store"
    extract(images, store)
    shutil.copytree(images, tmp_path / "copy")
    assert extract(tmp_path / "copy", store, update=True).extracted == 0


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A store of eight images, of which 01 and 06 have changed since: its update has extracted one and stopped at a new one."""
    images = write_folder(tmp_path / "in", list(range(8)))
    extract(images, tmp_path / "store")
    for i in (1, 6):
        (images / f"{i:02}.png").write_bytes(encode(50 + i))
    for name in ("02a.png", "02b.png", "07b.png"):
        (images / name).write_bytes(b"" if name == "07b.png" else encode(60))
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(images, tmp_path / "store", update=True, on_error="fail")
    return tmp_path / "store"


def test_readers_see_the_old_rows_until_an_update_is_closed(interrupted: Path, tmp_path: Path) -> None:
    store = densefeat.open_store(interrupted)
    assert not store.complete
    assert list(read_rows(interrupted)) == [f"{i:02}.png" for i in range(8)]
    assert store.failures == []
    result = extract(tmp_path / "in", interrupted)
    assert (result.rows, result.failures) == (10, 1)
    assert result.extracted == 2  # the first part was kept
    assert list(read_rows(interrupted)) == [*(f"{i:02}.png" for i in range(8)), "02a.png", "02b.png"]
    fresh = read_rows(extract(tmp_path / "in", tmp_path / "fresh").path)
    for key, row in read_rows(interrupted).items():
        np.testing.assert_allclose(row, fresh[key], atol=1e-5)


@pytest.mark.parametrize("what", ["extracted again", "not of the update", "restored", "added"])
def test_images_that_change_while_an_update_is_interrupted(what: str, interrupted: Path, tmp_path: Path) -> None:
    images = tmp_path / "in"
    number = {"extracted again": 1, "not of the update": 4, "restored": 1, "added": 9}[what]
    file = images / f"{number:02}.png"
    file.write_bytes(encode(1 if what == "restored" else 80))
    with pytest.raises(UsageError, match="which is not finished" if what == "added" else rf"have changed \({file.name}\)"):
        extract(images, interrupted)
    extract(images, interrupted, update=True)
    fresh, found = read_rows(extract(images, tmp_path / "fresh").path), read_rows(interrupted)
    assert sorted(found) == sorted(fresh)
    for key, row in found.items():
        np.testing.assert_allclose(row, fresh[key], atol=1e-5)
    assert extract(images, interrupted).extracted == 0


@pytest.mark.parametrize("update", [False, True])
def test_images_that_change_before_they_are_extracted(update: bool, tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(8))), tmp_path / "store"
    (images / "03.png").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(images, store, on_error="fail")
    for i in (3, 7):
        (images / f"{i:02}.png").write_bytes(encode(60 + i))
    assert extract(images, store, update=update).rows == 8
    assert_like_new(images, store, tmp_path)
    assert extract(images, store).extracted == 0


def test_images_that_change_after_they_were_extracted(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(8))), tmp_path / "store"
    (images / "05.png").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(images, store, on_error="fail")
    (images / "01.png").write_bytes(encode(61))
    (images / "05.png").write_bytes(encode(62))
    with pytest.raises(UsageError, match=r"1 of the images .* have changed \(01.png\)"):
        extract(images, store)
    extract(images, store, update=True)
    assert_like_new(images, store, tmp_path)


def test_a_failure_is_tried_again_once_its_file_has_changed(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(4))), tmp_path / "store"
    whole = (images / "02.png").read_bytes()
    (images / "02.png").write_bytes(whole[: len(whole) // 2])  # a download under way
    assert extract(images, store).failures == 1
    assert extract(images, store, update=True).extracted == 0
    (images / "02.png").write_bytes(whole)
    with pytest.raises(UsageError, match=r"have changed \(02.png\)"):
        extract(images, store)
    result = extract(images, store, update=True)
    assert (result.extracted, result.rows, result.failures) == (1, 4, 0)


def test_an_update_that_fails_adds_no_part(tmp_path: Path) -> None:
    images, store = write_folder(tmp_path / "in", list(range(4))), tmp_path / "store"
    (images / "later.png").symlink_to(tmp_path / "elsewhere.png")
    extract(images, store)
    (images / "bad.png").write_bytes(b"")
    parts = os.listdir(store / "data")
    for extracted in (2, 1, 1):  # a link that leads nowhere cannot be read, which may pass
        result = extract(images, store, update=True)
        assert (result.extracted, result.rows, result.failures) == (extracted, 4, 2)
        assert os.listdir(store / "data") == parts
        assert [record.part for record in densefeat.open_store(store).manifest.parts] == [0, 1]
    (images / "later.png").unlink()
    (images / "later.png").write_bytes(encode(7))
    assert extract(images, store, update=True).rows == 5
    assert {failure.path for failure in densefeat.open_store(store).failures} == {"bad.png"}


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_without_stamps(finished: bool, tmp_path: Path) -> None:
    """A store of an earlier version opens, resumes and updates; its images are stamped from then on."""
    images, store = write_folder(tmp_path / "in", list(range(8))), tmp_path / "store"
    if not finished:
        (images / "04.png").write_bytes(b"")
        with pytest.raises(DensefeatError):
            extract(images, store, on_error="fail")
    else:
        extract(images, store)
    (store / "stamps.parquet").unlink()
    manifest = json.loads((store / "manifest.json").read_text())
    for made in manifest["rounds"]:
        del made["replaces"], made["dropped"]
    manifest["format_version"] = 2  # the last one without checksums
    del manifest["densefeat_sha256"]
    (store / "manifest.json").write_text(json.dumps(manifest))
    (images / "04.png").write_bytes(encode(70))  # not noticed: nothing is known of it
    assert extract(images, store).rows == 8
    (images / "05.png").write_bytes(encode(71))
    with pytest.raises(UsageError, match=r"have changed \(05.png\)"):
        extract(images, store)
    (images / "08.png").write_bytes(encode(72))
    assert extract(images, store, update=True).extracted == 2
    assert list(read_rows(store)) == [f"{i:02}.png" for i in range(9)]
