"""Updates that meet something on the way: interruptions, leftovers, damage, other inputs. Every image in exactly one place."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import densefeat
from densefeat import DensefeatError, UsageError
from densefeat.errors import OutputError
from support.tiny_net import TINY, write_tiny_weights


def extract(images: Path, out: Path, **options: Any) -> densefeat.ExtractResult:
    network = TINY, write_tiny_weights(out.parent)
    return densefeat.extract(images, out, *network, **{"batch_size": 2, "part_rows": 4, "backend": "buffer", **options})


def add(folder: Path, name: str) -> None:
    shutil.copy(folder / "china/01.jpg", folder / name)


def places(out: Path) -> tuple[list[str], list[str]]:
    """Keys of rows and of failures, sorted."""
    store = densefeat.open_store(out)
    assert store.complete
    return sorted(store.keys), sorted(failure.path for failure in store.failures)


@pytest.fixture
def unfinished(photo_folder: Path, tmp_path: Path) -> Path:
    """Two parts of three, and a failure in each of them."""
    for name in ("china/01a.jpg", "china/05a.jpg", "zz.jpg"):
        (photo_folder / name).write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped after 3 failures"):
        extract(photo_folder, tmp_path / "store", max_failures=2)
    return tmp_path / "store"


def all_rows(photo_folder: Path) -> list[str]:
    found = (path for path in photo_folder.rglob("*.jpg") if path.stat().st_size)
    return sorted(path.relative_to(photo_folder).as_posix() for path in found)


def test_update_of_an_unfinished_store(unfinished: Path, photo_folder: Path) -> None:
    add(photo_folder, "aa.jpg")
    with pytest.raises(UsageError, match="which is not finished. --update extracts those that it lacks"):
        extract(photo_folder, unfinished)
    extract(photo_folder, unfinished, update=True)
    assert places(unfinished) == (all_rows(photo_folder), ["china/01a.jpg", "china/05a.jpg", "zz.jpg"])


def test_update_that_is_itself_stopped_and_meets_another_input(unfinished: Path, photo_folder: Path) -> None:
    add(photo_folder, "aa.jpg")
    (photo_folder / "ab.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(photo_folder, unfinished, update=True, on_error="fail")
    add(photo_folder, "ac.jpg")
    with pytest.raises(UsageError, match="not finished"):
        extract(photo_folder, unfinished)
    extract(photo_folder, unfinished, update=True)
    assert places(unfinished) == (all_rows(photo_folder), ["ab.jpg", "china/01a.jpg", "china/05a.jpg", "zz.jpg"])


def test_update_is_continued_by_the_plain_command(unfinished: Path, photo_folder: Path) -> None:
    add(photo_folder, "aa.jpg")
    (photo_folder / "ab.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(photo_folder, unfinished, update=True, on_error="fail")
    extract(photo_folder, unfinished)
    assert places(unfinished) == (all_rows(photo_folder), ["ab.jpg", "china/01a.jpg", "china/05a.jpg", "zz.jpg"])


def test_leftovers_of_a_closed_round_do_not_count_again(photo_folder: Path, tmp_path: Path) -> None:
    """As if the process had been killed between closing the store and removing what it worked with."""
    (photo_folder / "bad.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError):
        extract(photo_folder, tmp_path / "store", max_failures=0)
    extract(photo_folder, tmp_path / "store")
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    (tmp_path / "store/work/records").mkdir(parents=True)
    failures = [{"path": "bad.jpg", "stage": "decode", "reason": "the file is empty", "x": None, "y": None}]
    record = manifest["parts"][0] | {"round": manifest["job"] + "-1", "failures": failures}
    (tmp_path / "store/work/records/part-00000.json").write_text(json.dumps(record))
    add(photo_folder, "aa.jpg")
    result = extract(photo_folder, tmp_path / "store", update=True)
    assert (result.extracted, result.failures) == (1, 1)
    assert places(tmp_path / "store") == (all_rows(photo_folder), ["bad.jpg"])


def test_tiles_of_an_unfinished_store_are_not_updated(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "zz.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError):
        extract(photo_folder, tmp_path / "store", tile=64, max_failures=0)
    add(photo_folder, "aa.jpg")
    with pytest.raises(UsageError, match="may have some tiles or pages of an image and not the others"):
        extract(photo_folder, tmp_path / "store", tile=64, update=True)


def test_other_labels_are_not_an_update(photo_folder: Path, tmp_path: Path) -> None:
    lines = [f"{path},{i % 2}" for i, path in enumerate(all_rows(photo_folder))]
    (photo_folder / "list.csv").write_text("\n".join(["path,label", *lines]))
    extract(photo_folder / "list.csv", tmp_path / "store", label_column="label")
    (photo_folder / "list.csv").write_text("\n".join(["path,label", *(line.replace(",0", ",9") for line in lines)]))
    for update in (False, True):
        with pytest.raises(UsageError, match="their order, columns or labels differ: --overwrite starts over"):
            extract(photo_folder / "list.csv", tmp_path / "store", label_column="label", update=update)


def write_table(path: Path, photo: Path, rows: int) -> None:
    pq.write_table(pa.table({name: [photo.read_bytes()] * rows for name in ("image", "mask")}), path)


def test_rows_of_another_column_do_not_join(photo_folder: Path, tmp_path: Path) -> None:
    table, store, photo = tmp_path / "table.parquet", tmp_path / "store", photo_folder / "china/01.jpg"
    write_table(table, photo, 1)
    extract(table, store, image_column="image")
    assert extract(table, store, image_column="image").extracted == 0
    with pytest.raises(UsageError, match="their order, columns or labels differ: --overwrite starts over"):
        extract(table, store, image_column="mask")
    write_table(table, photo, 2)
    with pytest.raises(UsageError, match="was made with other settings: image_column is 'image' there, not 'mask'"):
        extract(table, store, image_column="mask", update=True)
    assert extract(table, store, image_column="image", update=True).extracted == 2  # the file is another one: both rows


def test_the_same_names_elsewhere(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store")
    shutil.move(photo_folder, tmp_path / "moved")
    with pytest.raises(UsageError, match="was made of the images at '.*photos', not '.*moved'"):
        extract(tmp_path / "moved", tmp_path / "store")
    assert extract(tmp_path / "moved", tmp_path / "store", update=True).extracted == 0
    assert extract(tmp_path / "moved", tmp_path / "store").extracted == 0


def test_overwrite_does_not_touch_other_programs_folders(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "app/work").mkdir(parents=True)
    (tmp_path / "app/manifest.json").write_text('{"name": "webapp"}')
    (tmp_path / "app/work/thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="not a readable manifest"):
        extract(photo_folder, tmp_path / "app", overwrite=True)
    assert (tmp_path / "app/work/thesis.tex").read_text() == "years"


def test_a_single_file_replaces_only_its_like(photo_folder: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(extract_single(photo_folder, tmp_path / "e.parquet")).replace_schema_metadata(None),
                   tmp_path / "other.parquet")  # fmt: skip
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"other.parquet' exists and was not written by this command: move it away"):
            extract_single(photo_folder, tmp_path / "other.parquet", overwrite=overwrite)
    with pytest.raises(OutputError, match="is the input: give another name"):
        extract_single(tmp_path / "other.parquet", tmp_path / "other.parquet")
    extract_single(photo_folder, tmp_path / "e.parquet")
    (tmp_path / "e.failures.jsonl").write_text('{"path": "a.jpg", "remark": "mine"}\n')
    with pytest.raises(UsageError, match=r"e.failures.jsonl' exists and was not written by this command"):
        extract_single(photo_folder, tmp_path / "e.parquet")


def extract_single(images: Path, out: Path, **options: Any) -> Path:
    return densefeat.extract(images, out, TINY, write_tiny_weights(out.parent), **options).path


@pytest.mark.parametrize("damage", ["unfinished part", "end of unfinished rows", "half-written files", "record"])
def test_damaged_state_is_extracted_again(damage: str, unfinished: Path, photo_folder: Path) -> None:
    part = next((unfinished / "work").glob("part-*.parquet"))
    if damage == "unfinished part":
        part.write_bytes(b"\0" * part.stat().st_size)
    elif damage == "end of unfinished rows":
        group = pq.read_metadata(part).row_group(0)
        last = group.column(group.num_columns - 1)
        content = bytearray(part.read_bytes())
        content[last.data_page_offset : last.data_page_offset + last.total_compressed_size] = bytes(last.total_compressed_size)
        part.write_bytes(content)
        assert pq.read_table(part, columns=["path"]).num_rows
    elif damage == "half-written files":
        for name in ("part-00001.parquet", "records/part-00001.json"):
            temporary = unfinished / "work" / name
            temporary.with_name(f".{temporary.name}.ab_d3fgh.partial").write_bytes(b"?")
    else:
        for record in (unfinished / "work/records").iterdir():
            record.write_text(record.read_text()[:40])
    extract(photo_folder, unfinished)
    assert places(unfinished) == (all_rows(photo_folder), ["china/01a.jpg", "china/05a.jpg", "zz.jpg"])
    assert sorted(os.listdir(unfinished)) == [".lock", "data", "failures.parquet", "manifest.json", "stamps.parquet"]


def test_an_update_after_damage_to_the_failures(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store")
    (tmp_path / "store/failures.parquet").write_bytes(b"?")
    add(photo_folder, "aa.jpg")
    extract(photo_folder, tmp_path / "store", update=True)
    assert places(tmp_path / "store") == (all_rows(photo_folder), [])


def test_a_stopped_part_is_not_lost(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "zz.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped at the first failure"):
        extract(photo_folder, tmp_path / "store", on_error="fail", part_rows=100)
    shutil.copy(photo_folder / "china/01.jpg", photo_folder / "zz.jpg")
    result = extract(photo_folder, tmp_path / "store", on_error="fail", part_rows=100)
    assert (result.extracted, result.rows, result.failures) == (1, 13, 0)


def test_images_of_another_place_in_the_middle(photo_folder: Path, tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (40, 40), colour).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(DensefeatError):
        extract(tmp_path / "a", tmp_path / "store", max_failures=0)
    with pytest.raises(UsageError, match="was made of the images at"):
        extract(tmp_path / "b", tmp_path / "store")
