"""A store in a folder: parts, refusals, updates, one writer at a time."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

import densefeat
from densefeat import DensefeatError, UsageError
from densefeat.base import add_checksum
from densefeat.base.files import hold_lock
from densefeat.errors import OutputError
from densefeat.store.layout import Layout
from support.commands import run_command
from support.helpers import BUNDLED
from support.processors import AVX2, AVX512_BF16
from support.tiny_net import TINY, tiny_state, write_tiny_weights


def extract(images: Path, out: Path, **options: Any) -> densefeat.ExtractResult:
    defaults = {"batch_size": 4, "part_rows": 5, "backend": "buffer"}
    network = {"model": TINY, "weights": write_tiny_weights(images.parent)} if "model" not in options else {}
    return densefeat.extract(images, out, **network, **defaults | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Path:
    """A folder with photographs in ``photos`` and a finished store of them in ``store``. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "photos/class").mkdir(parents=True)
    for i, photograph in enumerate(photographs):
        photograph.save(folder / f"photos/class/{i:02}.jpg")
    extract(folder / "photos", folder / "store")
    return folder


def test_parts_and_nothing_else_in_data(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "china/02.jpg").write_bytes(b"")
    result = extract(photo_folder, tmp_path / "store")
    assert sorted(os.listdir(tmp_path / "store")) == [".lock", "data", "failures.parquet", "manifest.json", "stamps.parquet"]
    parts = sorted(os.listdir(tmp_path / "store/data"))
    assert parts == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [pq.read_metadata(tmp_path / "store/data" / part).num_rows for part in parts] == [4, 5, 2]
    assert (result.rows, result.failures, result.extracted) == (11, 1, 12)
    (failure,) = densefeat.open_store(tmp_path / "store").failures
    assert (failure.path, failure.stage, failure.reason) == ("china/02.jpg", "decode", "the file is empty")


def test_same_rows_as_a_single_file(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store", part_rows=8)  # of whole batches: the same images beside each other
    extract(photo_folder, tmp_path / "single.parquet", part_rows=None)
    folder, single = densefeat.open_store(tmp_path / "store"), densefeat.open_store(tmp_path / "single.parquet")
    assert list(folder.keys) == list(single.keys)
    for name in folder.shapes:
        assert np.array_equal(folder[name], single[name])


def test_part_size_is_bounded_in_bytes(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store", pool="none", part_rows=100_000)
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    values = sum(int(np.prod(shape)) for shape in manifest["settings"]["shapes"].values())
    assert manifest["settings"]["part_rows"] == 256 * 2**20 // (4 * values) < 8192


def test_the_same_command_again_does_nothing(photo_folder: Path, tmp_path: Path) -> None:
    first = extract(photo_folder, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("[!.]*")}
    again = extract(photo_folder, tmp_path / "store", batch_size=3, workers=1)  # how it runs may differ
    assert (again.rows, again.extracted) == (first.rows, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("[!.]*")} == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(blocks="1,2"), r"blocks is \['block1', 'block2', 'block3'\] there, not \['block1', 'block2'\]"),
        (dict(pool="max"), r"pool is \['avg'\] there, not \['max'\]"),
        (dict(tap="raw"), "tap is 'norm' there, not 'raw'"),
        (dict(image_size=48), "preprocessing size is 32 there, not 48"),
        (dict(dtype="float16"), "dtype is 'float32' there, not 'float16'"),
        (dict(decoder="pillow"), "decoder is 'torchvision' there, not 'pillow'"),
        (dict(precision="bf16"), "precision is 'fp32' there, not 'bf16'"),
        (dict(part_rows=6), "part_rows is 5 there, not 6"),
        (dict(labels="folder"), "labels is False there, not True"),
        (dict(tile=90), "tiles is None there"),
    ],
)
@pytest.mark.usefixtures("with_bf16")
def test_refuses_to_mix_rows_of_two_kinds(options: dict, match: str, finished: Path) -> None:
    with pytest.raises(UsageError, match=f"was made with other settings: .*{match}.*or --overwrite"):
        extract(finished / "photos", finished / "store", **options)


def test_a_store_in_bf16_is_not_resumed_where_that_is_emulated(
    photo_folder: Path, tmp_path: Path, pretend_flags: Callable[[str], None]
) -> None:
    pretend_flags(AVX2)
    extract(photo_folder, tmp_path / "here", precision="bf16", device="cpu")
    assert densefeat.open_store(tmp_path / "here").provenance["precision"] == "fp32"
    assert extract(photo_folder, tmp_path / "here", precision="fp32", device="cpu").extracted == 0
    pretend_flags(AVX512_BF16)
    with pytest.raises(UsageError, match="precision is 'fp32' there, not 'bf16'"):
        extract(photo_folder, tmp_path / "here", precision="bf16", device="cpu")
    extract(photo_folder, tmp_path / "there", precision="bf16", device="cpu")
    assert densefeat.open_store(tmp_path / "there").provenance["precision"] == "bf16"
    pretend_flags(AVX2)
    with pytest.raises(UsageError, match="precision is 'bf16' there, not 'fp32'"):
        extract(photo_folder, tmp_path / "there", precision="bf16", device="cpu")


def test_overwrite_replaces_rows_of_another_kind(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "store")
    assert extract(finished / "photos", tmp_path / "store", tile=90, overwrite=True).extracted > 12
    assert "x" in densefeat.open_store(tmp_path / "store").schema.names


def test_a_store_of_tiles_made_before_they_had_a_limit(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store", tile=90)
    path = tmp_path / "store/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["tiles"]["max_tiles"], manifest["densefeat_sha256"]
    path.write_text(json.dumps(add_checksum(manifest)))
    assert extract(photo_folder, tmp_path / "store", tile=90).extracted == 0
    with pytest.raises(UsageError, match="tiles max_tiles is 4000000 there, not 5000000"):
        extract(photo_folder, tmp_path / "store", tile=90, max_tiles=5_000_000)


def test_a_store_made_before_colour_profiles_were_converted(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store", pixels=densefeat.PixelRule(icc="ignore"))
    path = tmp_path / "store/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["preprocessing"]["pixels"], manifest["densefeat_sha256"]
    path.write_text(json.dumps(add_checksum(manifest)))
    with pytest.raises(UsageError, match="preprocessing pixels icc is 'ignore' there, not 'convert'. Choose another --out"):
        extract(photo_folder, tmp_path / "store")
    assert extract(photo_folder, tmp_path / "store", pixels=densefeat.PixelRule(icc="ignore")).extracted == 0


def test_refuses_other_weights_under_the_same_name(photo_folder: Path, tmp_path: Path) -> None:
    model = timm.create_model(TINY).eval()
    model.load_state_dict(tiny_state())
    extract(photo_folder, tmp_path / "store", model=model)
    assert extract(photo_folder, tmp_path / "store", model=model).extracted == 0
    with torch.no_grad():
        model.features.norm5.weight[0] += 1e-6
    with pytest.raises(UsageError, match="weights_sha256"):
        extract(photo_folder, tmp_path / "store", model=model)


def test_update_extracts_what_was_added(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "flower/06.jpg").rename(tmp_path / "kept.jpg")
    (photo_folder / "broken.jpg").write_bytes(b"broken")
    extract(photo_folder, tmp_path / "store")
    old = densefeat.open_store(tmp_path / "store")
    old_keys, old_rows = list(old.keys), old["block3"]

    (tmp_path / "kept.jpg").rename(photo_folder / "flower/06.jpg")
    Image.open(photo_folder / "china/00.jpg").save(photo_folder / "a-new.jpg")
    (photo_folder / "worse.jpg").write_bytes(b"")
    (photo_folder / "china/05.jpg").unlink()
    with pytest.raises(UsageError, match="3 were added and 1 removed.*--update"):
        extract(photo_folder, tmp_path / "store")
    result = extract(photo_folder, tmp_path / "store", update=True)
    assert (result.extracted, result.rows, result.failures, result.removed) == (3, 13, 2, 1)
    new = densefeat.open_store(tmp_path / "store")
    assert list(new.keys) == [*old_keys, "a-new.jpg", "flower/06.jpg"]
    assert np.array_equal(new["block3"][:11], old_rows)
    assert sorted(failure.path for failure in new.failures) == ["broken.jpg", "worse.jpg"]
    assert extract(photo_folder, tmp_path / "store").extracted == 0
    assert extract(photo_folder, tmp_path / "store", update=True).extracted == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX links")
def test_update_tries_failed_reads_again(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "later.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (photo_folder / "broken.jpg").write_bytes(b"broken")
    assert extract(photo_folder, tmp_path / "store").failures == 2
    assert extract(photo_folder, tmp_path / "store").extracted == 0
    (photo_folder / "later.jpg").unlink()
    Image.open(photo_folder / "china/00.jpg").save(photo_folder / "later.jpg")
    result = extract(photo_folder, tmp_path / "store", update=True)
    assert (result.extracted, result.rows, result.failures) == (1, 13, 1)


def test_update_of_tiles(photo_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 90), "white").save(photo_folder / "blank.png")
    first = extract(photo_folder, tmp_path / "store", tile=64, min_content=0.01)
    Image.open(photo_folder / "china/01.jpg").save(photo_folder / "new.png")
    result = extract(photo_folder, tmp_path / "store", tile=64, min_content=0.01, update=True)
    assert (result.extracted, result.rows, result.failures) == (25, first.rows + 25 - (result.skipped - first.skipped), 1)


def test_refuses_a_folder_of_other_things(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"is no store of densefeat and not empty \(thesis.txt\)"):
            extract(photo_folder, tmp_path / "mine", overwrite=overwrite)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    with pytest.raises(OutputError, match="is a file: give a folder"):
        extract(photo_folder, tmp_path / "mine/thesis.txt")


@pytest.mark.parametrize(
    ("content", "match"),
    [("{", "not a readable manifest"), ('{"kind": "other", "format_version": 1}', "of format 'other' 1"), ("[]", "manifest")],
)
def test_refuses_a_damaged_manifest(content: str, match: str, photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store")
    (tmp_path / "store/manifest.json").write_text(content)
    with pytest.raises(OutputError, match=match):
        extract(photo_folder, tmp_path / "store")


def test_the_second_of_two_writers_refuses(photo_folder: Path, tmp_path: Path) -> None:
    extract(photo_folder, tmp_path / "store")
    arguments = ["extract", "--images", photo_folder, "--out", tmp_path / "store", "--model", BUNDLED, "--overwrite"]
    with hold_lock(Layout(tmp_path / "store").lock):
        finished = run_command(*arguments)
    assert finished.exit_code == 1
    assert "another process is writing to it" in finished.stderr
    assert len(densefeat.open_store(tmp_path / "store")) == 12


def test_too_many_failures_keep_what_is_written(photo_folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        (photo_folder / f"zz-bad-{i}.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped after 2 failures"):
        extract(photo_folder, tmp_path / "store", max_failures=1)
    unfinished = densefeat.open_store(tmp_path / "store")
    assert not unfinished.complete
    assert len(unfinished) == 10
    result = extract(photo_folder, tmp_path / "store")
    assert (result.extracted, result.rows, result.failures) == (4, 12, 2)


def test_failures_of_earlier_runs_count(photo_folder: Path, tmp_path: Path) -> None:
    for name in ("a-bad.jpg", "zz-bad.jpg"):
        (photo_folder / name).write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped after 2 failures"):
        extract(photo_folder, tmp_path / "store", max_failures=1)
    with pytest.raises(DensefeatError, match="stopped after 2 failures"):
        extract(photo_folder, tmp_path / "store", max_failures=1)
