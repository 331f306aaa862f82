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
import torch
from PIL import Image

import densefeat
from densefeat import FeatureExtractor, UsageError, WeightsError
from densefeat.errors import OutputError
from helpers import BUNDLED, relative_difference


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


def test_provenance(photo_folder: Path, tmp_path: Path) -> None:
    result = densefeat.extract(
        photo_folder, tmp_path / "e.parquet", BUNDLED, blocks="1,3", tap="raw", pool=["avg", "max"], image_size=48
    )
    made_by = json.loads(pq.read_schema(result.path).metadata[b"densefeat"])
    assert made_by["format_version"] == 1
    assert made_by["densefeat"] == densefeat.__version__
    assert made_by["model"] == f"{BUNDLED}.tin200"
    assert len(made_by["weights"]["sha256"]) == 64
    assert made_by["weights"]["license"] == "apache-2.0"
    assert made_by["preprocessing"]["size"] == 48
    assert made_by["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert (made_by["tap"], made_by["pool"], made_by["precision"]) == ("raw", ["avg", "max"], "fp32")
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
        (dict(out="empty"), OutputError, "is a folder"),
        (dict(out="."), OutputError, "is a folder"),
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


COMMAND = [sys.executable, "-m", "densefeat", "extract", "--model", BUNDLED]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_leaves_nothing_behind(photo_folder: Path, tmp_path: Path) -> None:
    for i in range(3000):
        os.link(photo_folder / "china/00.jpg", photo_folder / f"{i}.jpg")
    command = [*COMMAND, "--images", photo_folder, "--out", tmp_path / "e.parquet", "--batch-size", "4"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell inherit it ignored
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".e.parquet.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "densefeat: interrupted, nothing was written"
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, photographs: list[Image.Image]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photographs[5].save(folder / "0.jpg")
    code = (
        "import sys, resource, densefeat;"
        "densefeat.extract(sys.argv[1], sys.argv[2], sys.argv[3], blocks=3, workers=2, batch_size=16);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (200, 3200):
        for i in range(count):
            if not (folder / f"{i}.jpg").exists():
                shutil.copy(folder / "0.jpg", folder / f"{i}.jpg")
        command = [sys.executable, "-c", code, folder, tmp_path / "e.parquet", BUNDLED]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] * 1.1 + 20_000  # kilobytes
