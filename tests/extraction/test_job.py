"""The main job on real files: every file in exactly one of two places, and nothing half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import densefeat
from densefeat import DensefeatError, FeatureExtractor, UsageError, WeightsError
from densefeat.errors import OutputError
from support.helpers import BUNDLED, relative_difference


def failures_of(result: densefeat.ExtractResult) -> list[dict]:
    return [json.loads(line) for line in result.failures_path.read_text().splitlines()]


def test_rows_are_the_extractors_features(photo_folder: Path, tmp_path: Path, small_extractor: FeatureExtractor) -> None:
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, batch_size=5, workers=2)
    table = pq.read_table(result.path)
    paths = [f"{'china' if i < 6 else 'flower'}/{i:02}.jpg" for i in range(12)]
    assert table["path"].to_pylist() == paths
    sizes = []
    for path in paths:
        with Image.open(photo_folder / path) as image:
            sizes.append(image.size)
    assert list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)) == sizes
    expected = small_extractor([photo_folder / path for path in paths])
    for name, value in expected.items():
        assert relative_difference(np.stack(table[name].to_numpy()), value) < 1e-5
    assert (result.rows, result.failures, result.shapes) == (12, 0, {"block1": (216,), "block2": (300,), "block3": (342,)})
    assert failures_of(result) == []
    assert sorted(os.listdir(tmp_path)) == ["e.failures.jsonl", "e.parquet", "photos"]


def test_files_with_more_than_one_image_are_said(
    photographs: list[Image.Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a whole image and of its tiles once; files with one image are not counted."""
    folder = tmp_path / "images"
    folder.mkdir()
    first, second = (photographs[i].crop((0, 0, 200, 130)) for i in (0, 7))
    for name in ("a.gif", "b.tif", "c.webp", "d.png"):
        first.save(folder / name, save_all=True, append_images=[second])
    first.save(folder / "e.tif")
    for options in ({}, {"tile": 64, "stride": 50}):
        caplog.clear()
        densefeat.extract(folder, tmp_path / f"{len(options)}.parquet", BUNDLED, blocks=1, image_size=32, **options)
        assert "the first of several pages or frames was taken of 4 files: a.gif, b.tif, c.webp, …" in caplog.text


def test_empty_tiles_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slide of 16 tiles, of which its file has one: white, all of them, and without content."""
    segments = [np.full((64, 64, 3), 255, np.uint8), *[None] * 15]
    layout = {"shape": (256, 256, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb"}
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", iter(segments), **layout)
    options = {"model": BUNDLED, "blocks": 1, "image_size": 32, "tile": 64}
    result = densefeat.extract(tmp_path / "images", tmp_path / "all.parquet", **options)
    assert "15 tiles are empty in their files, and white: --min-content leaves them out" in caplog.text
    assert (result.rows, result.skipped) == (16, 0)
    caplog.clear()
    result = densefeat.extract(tmp_path / "images", tmp_path / "none.parquet", **options, min_content=0.01)
    assert (result.rows, result.skipped) == (0, 16)
    assert "tiles are empty" not in caplog.text
    result = densefeat.extract(tmp_path / "images", tmp_path / "few.parquet", **options, max_tiles=15)
    assert [failure["reason"] for failure in failures_of(result)] == [
        "256×256 pixels are 16 tiles, more than the limit of 15 (--max-tiles)"
    ]


def test_provenance(photo_folder: Path, tmp_path: Path) -> None:
    result = densefeat.extract(
        photo_folder, tmp_path / "e.parquet", BUNDLED, blocks="1,3", tap="raw", pool=["avg", "max"], image_size=48
    )
    made_by = json.loads(pq.read_schema(result.path).metadata[b"densefeat"])
    assert made_by["format_version"] == 3
    assert made_by["densefeat"] == densefeat.__version__
    assert made_by["model"] == f"{BUNDLED}.tin200"
    assert len(made_by["weights"]["sha256"]) == 64
    assert made_by["weights"]["license"] == "apache-2.0"
    assert made_by["preprocessing"]["size"] == 48
    assert made_by["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert (made_by["tap"], made_by["pool"], made_by["precision"]) == ("raw", ["avg", "max"], "fp32")
    assert (made_by["decoder"], made_by["backend"], made_by["images"]) == ("torchvision", "openvino", str(photo_folder))
    assert list(made_by["shapes"]) == ["block1_avg", "block1_max", "block3_avg", "block3_max"]


def test_maps_are_flattened_with_their_shape_in_the_metadata(
    photo_folder: Path, tmp_path: Path, small_extractor: FeatureExtractor
) -> None:
    result = densefeat.extract(photo_folder, tmp_path / "maps.parquet", BUNDLED, blocks=3, pool="none")
    table = pq.read_table(result.path)
    shape = json.loads(table.schema.metadata[b"densefeat"])["shapes"]["block3"]
    assert shape == [342, 8, 8]
    maps = np.stack(table["block3"].to_numpy()).reshape(-1, *shape)
    expected = small_extractor([photo_folder / path for path in table["path"].to_pylist()], pool="none")["block3"]
    assert relative_difference(maps, expected) < 1e-5


def test_every_file_is_a_row_or_a_failure(photo_folder: Path, tmp_path: Path) -> None:
    good = (photo_folder / "china/00.jpg").read_bytes()
    (photo_folder / "broken").mkdir()
    broken = {"empty.jpg": b"", "text.png": b"hello", "cut.jpg": good[: len(good) // 2], "name.gif.webp": b"\0" * 100}
    for name, data in broken.items():
        (photo_folder / "broken" / name).write_bytes(data)
    Image.new("RGB", (1, 6000)).save(photo_folder / "broken/thin.png")
    (photo_folder / "broken/wrong-extension.png").write_bytes(good)
    (photo_folder / "ignored.txt").write_text("no image")
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, batch_size=3, workers=1)
    rows, failures = pq.read_table(result.path)["path"].to_pylist(), failures_of(result)
    assert "broken/wrong-extension.png" in rows
    assert [failure["path"] for failure in failures] == [f"broken/{name}" for name in sorted([*broken, "thin.png"])]
    assert all(failure["stage"] == "decode" and failure["reason"] for failure in failures)
    assert (result.rows, result.failures) == (13, 5)
    assert rows == sorted(rows)


def test_broken_neighbours_change_no_row(photo_folder: Path, tmp_path: Path) -> None:
    before = pq.read_table(densefeat.extract(photo_folder, tmp_path / "a.parquet", BUNDLED, batch_size=4).path)
    (photo_folder / "a-first.jpg").write_bytes(b"broken")
    (photo_folder / "china/03a.jpg").write_bytes(b"broken")
    after = pq.read_table(densefeat.extract(photo_folder, tmp_path / "b.parquet", BUNDLED, batch_size=4).path)
    assert after["path"].equals(before["path"])
    for name in ("block1", "block2", "block3"):
        assert relative_difference(np.stack(after[name].to_numpy()), np.stack(before[name].to_numpy())) < 1e-5


def test_embeddings_that_are_not_finite_are_failures(photo_folder: Path, tmp_path: Path) -> None:
    model = FeatureExtractor(BUNDLED).model
    with torch.no_grad():
        model.features.norm5.running_var[0] = float("nan")
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", model)
    assert result.rows == 0
    assert {failure["stage"] for failure in failures_of(result)} == {"network"}


def test_opens_with_datasets(photo_folder: Path, tmp_path: Path) -> None:
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED)
    opened = datasets.load_dataset("parquet", data_files=str(result.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.num_rows == 12
    assert len(opened[0]["block3"]) == 342


def test_replaces_an_older_result_and_its_failures(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "bad.jpg").write_bytes(b"")
    assert densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED).failures == 1
    (photo_folder / "bad.jpg").unlink()
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED)
    assert failures_of(result) == []


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        (dict(images="nowhere"), UsageError, "no such folder"),
        (dict(images="empty"), UsageError, "no file with an image's extension"),
        (dict(out="nowhere/e.parquet"), OutputError, "cannot be written: No such file"),
        (dict(out="photos"), OutputError, "is no store of densefeat and not empty"),
        (dict(update=True), UsageError, "is a single file: --update"),
        (dict(part_rows=100), UsageError, "is a single file: --update, --part-rows"),
        (dict(engine="ray"), UsageError, "need a folder"),
        (dict(engine="spark"), UsageError, "engine 'spark': choose one of local, ray"),
        (dict(dtype="int8"), UsageError, "dtype 'int8': choose one of float32, float16"),
        (dict(decoder="opencv"), UsageError, "decoder 'opencv'"),
        (dict(stride=3), UsageError, "--stride, --min-content and --mpp are for tiles"),
        (dict(tile=8), UsageError, "8"),
        (dict(labels="csv"), UsageError, "labels 'csv'"),
        (dict(on_error="stop"), UsageError, "on error .stop.: choose skip or fail"),
        (dict(max_failures="many"), UsageError, "max failures 'many': give a number such as 20, or a share such as 5%"),
        (dict(max_failures="120%"), UsageError, "max failures '120%'"),
        (dict(max_failures=-1), UsageError, "max failures -1"),
        (dict(max_pixels=0), UsageError, "max pixels 0: give at least 1"),
        (dict(max_tiles=0), UsageError, "max tiles 0: give at least 1"),
        (dict(memory=0), UsageError, "memory 0: give at least 1"),
        (dict(batch_size="large"), UsageError, "batch size .large.: give a number or auto"),
        (dict(model="densenet_121"), UsageError, "did you mean densefeat_densenet121"),
        (dict(weights="nowhere.pt"), WeightsError, "no such file"),
        (dict(blocks="7"), UsageError, "this network has 1 to 3"),
        (dict(pool="mean"), UsageError, "pool 'mean'"),
        (dict(batch_size=0), UsageError, "batch size 0"),
        (dict(workers=-1), UsageError, "workers -1"),
        (dict(image_size=8), UsageError, "image size 8"),
    ],
)
def test_wrong_use_is_told_before_any_work(arguments: dict, kind: type, match: str, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = {"images": "photos", "out": "e.parquet", "model": BUNDLED} | arguments
    for key in ("images", "out", "weights"):
        if key in given:
            given[key] = tmp_path / given[key]
    with pytest.raises(kind, match=match):
        densefeat.extract(**given)
    assert sorted(os.listdir(tmp_path)) == ["empty", "photos"]


def test_float16(photo_folder: Path, tmp_path: Path) -> None:
    full = densefeat.open_store(densefeat.extract(photo_folder, tmp_path / "full.parquet", BUNDLED).path)
    half = densefeat.open_store(densefeat.extract(photo_folder, tmp_path / "half.parquet", BUNDLED, dtype="float16").path)
    assert half["block2"].dtype == np.float16
    assert np.array_equal(half["block2"], full["block2"].astype(np.float16))


def test_vectors_too_large_for_float16_are_failures(photo_folder: Path, tmp_path: Path) -> None:
    model = FeatureExtractor(BUNDLED).model
    with torch.no_grad():
        model.features.norm5.bias[0] = 1e6
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", model, dtype="float16", blocks=3)
    assert (result.rows, result.failures) == (0, 12)


def test_labels_of_folders(photo_folder: Path, tmp_path: Path) -> None:
    Image.open(photo_folder / "china/00.jpg").save(photo_folder / "root.jpg")
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, labels="folder")
    assert list(densefeat.open_store(tmp_path / "e.parquet").labels) == ["china"] * 6 + ["flower"] * 6 + [None]


def test_tiles(photo_folder: Path, tmp_path: Path, small_extractor: FeatureExtractor) -> None:
    shutil.rmtree(photo_folder / "flower")
    (photo_folder / "china/00.jpg").unlink()  # the largest
    Image.new("RGB", (128, 70), "white").save(photo_folder / "china/blank.png")
    result = densefeat.extract(photo_folder, tmp_path / "tiles", BUNDLED, tile=64, min_content=0.1, part_rows=50, batch_size=7)
    store = densefeat.open_store(tmp_path / "tiles")
    assert store.schema.names[:5] == ["path", "width", "height", "x", "y"]
    first = [(x, y) for path, x, y in zip(store.keys, store["x"], store["y"], strict=True) if path == "china/01.jpg"]
    assert first == [(x, y) for y in (0, 64, 128, 192, 236) for x in (0, 64, 128, 192, 236)]  # 300×300, flush at the border
    row = list(store.keys).index("china/01.jpg") + 7
    pixels = torch.from_numpy(np.array(Image.open(photo_folder / "china/01.jpg"))).permute(2, 0, 1)
    x, y = first[7]
    tile = torchvision.transforms.v2.functional.resize(pixels[:, y : y + 64, x : x + 64], [32, 32], 3)
    expected = small_extractor.forward(small_extractor.preprocessing.normalize(tile[None]))
    assert relative_difference(store["block3"][row], expected["block3"][0]) < 1e-5
    assert [(failure.path, failure.stage, failure.reason) for failure in store.failures] == [
        ("china/blank.png", "tile", "no tile with enough content")
    ]
    assert result.skipped >= 4
    assert result.rows == len(store)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(on_error="fail"), "stopped at the first failure, as --on-error fail says: bad-0.jpg: .*empty"),
        (dict(max_failures=2), "stopped after 3 failures, more than the 2 allowed; the last: bad-2.jpg"),
        (dict(max_failures="20%"), "stopped: 4 of 16 images failed, more than the 20% allowed"),
    ],
)
def test_stops_at_too_many_failures(options: dict, match: str, photo_folder: Path, tmp_path: Path) -> None:
    for i in range(4):
        (photo_folder / f"bad-{i}.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match=match):
        densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, batch_size=1, **options)
    assert not (tmp_path / "e.parquet").exists()
    allowed = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, max_failures="25%")
    assert allowed.failures == 4


def test_equals_timm_on_the_same_weights(photo_folder: Path, tmp_path: Path) -> None:
    """Tap raw and Pillow's decoder: what a hand-written loop over timm's own network gives."""
    theirs = timm.create_model("densenet121", num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "random.pt")
    result = densefeat.extract(
        photo_folder, tmp_path / "e.parquet", "densefeat_densenet121", tmp_path / "random.pt", "1,2,3", "raw",
        image_size=64, decoder="pillow",
    )  # fmt: skip
    store = densefeat.open_store(result.path)
    transform = create_transform(**resolve_model_data_config(theirs) | {"input_size": (3, 64, 64)})
    images = torch.stack([transform(Image.open(photo_folder / path).convert("RGB")) for path in store.keys])
    with torch.inference_mode():
        maps = theirs.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
    for i, block in enumerate(maps, 1):
        assert relative_difference(store[f"block{i}"], block.mean((2, 3))) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_leaves_no_single_file(photo_folder: Path, tmp_path: Path) -> None:
    for i in range(3000):
        os.link(photo_folder / "china/00.jpg", photo_folder / f"{i}.jpg")
    command = [sys.executable, "-m", "densefeat", "extract", "--model", BUNDLED, "--images", photo_folder]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "e.parquet", "--batch-size", "4"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell inherit it ignored
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".e.parquet.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "densefeat: interrupted, nothing was written"
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
@pytest.mark.parametrize("out", ["e.parquet", "store"])
def test_memory_does_not_grow_with_the_number_of_images(out: str, tmp_path: Path, photographs: list[Image.Image]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photographs[5].save(folder / "0.jpg")
    code = (
        "import re, sys, densefeat;"
        "densefeat.extract(sys.argv[1], sys.argv[2], sys.argv[3], blocks=3, workers=2, batch_size=16, overwrite=True);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"  # of this program, not of what started it
    )
    peaks = []
    for count in (200, 3200):
        for i in range(count):
            if not (folder / f"{i}.jpg").exists():
                shutil.copy(folder / "0.jpg", folder / f"{i}.jpg")
        command = [sys.executable, "-c", code, folder, tmp_path / out, BUNDLED]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] * 1.1 + 20_000  # kilobytes
