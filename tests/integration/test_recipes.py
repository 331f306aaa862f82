"""Recipes and benchmarks run, small."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from densefeat import load_weights, open_store
from densefeat_recipes.train_tin200 import Training, augment, parse_schedule, train_batches

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """64 images of 32×32 and 200 class names, in the Hugging Face layout."""
    rows = []
    for i in range(64):
        buffer = io.BytesIO()
        photographs[6 * (i % 2)].resize((32, 32), box=(i, i, i + 64, i + 64)).save(buffer, "JPEG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": i % 2})
    features = {"image": {"_type": "Image"}, "label": {"names": [f"n{i:08}" for i in range(200)], "_type": "ClassLabel"}}
    data = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(data, tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def train(table: Path, out: Path, *arguments: str) -> list[dict]:
    command = [sys.executable, "-m", "densefeat_recipes.train_tin200", "--train", table, "--val", table, "--out", out]
    command += ["--device", "cpu", "--batch-size", "16", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_runs_and_what_it_exports_loads(table: Path, tmp_path: Path) -> None:
    log = train(table, tmp_path / "run", "--schedule", "16:1,32:1", "--steps", "2")
    assert [entry["event"] for entry in log] == ["start", "end"]
    assert log[-1]["images"] == 32
    assert 0 <= log[-1]["top1"] <= log[-1]["top5"] <= 100
    load_weights(timm.create_model("densefeat_densenet_bc100_k12"), tmp_path / "run/model.safetensors")


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, sizes = torch.arange(24) % 5, [16, 16, 32, 32]

    def begin() -> Training:
        torch.manual_seed(0)
        return Training(sizes, lr=0.1, weight_decay=1e-4, device=torch.device("cpu"))

    def run(training: Training, until: int) -> None:
        for _, x, y in itertools.islice(train_batches(images, labels, sizes, 8, training.step), until - training.step):
            training.run_step(x, y)

    through, stopped, resumed = begin(), begin(), begin()
    run(through, 4)
    run(stopped, 3)
    stopped.save(tmp_path / "checkpoint.pt", seconds=12.5)
    assert resumed.load(tmp_path / "checkpoint.pt") == 12.5
    run(resumed, 4)
    torch.testing.assert_close(resumed.model.state_dict(), through.model.state_dict(), rtol=0, atol=0)
    assert resumed.scheduler.get_last_lr() == through.scheduler.get_last_lr()


def test_batches_depend_on_seed_and_position_alone() -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(40)
    sizes = parse_schedule("16:1,32:1.5", steps_per_epoch=5)
    assert sizes == [16] * 5 + [32] * 8
    through = list(train_batches(images, labels, sizes, 8, 0))
    later = list(train_batches(images, labels, sizes, 8, 7))
    for (step, x, y), (expected_step, expected_x, expected_y) in zip(later, through[7:], strict=True):
        assert step == expected_step
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)
    epoch = torch.cat([y for _, _, y in through[:5]])
    assert torch.equal(epoch.sort().values, labels)


def test_augmentation_shifts_and_mirrors() -> None:
    images = torch.rand(200, 3, 32, 32) + 1
    augmented = augment(images, torch.Generator().manual_seed(0))
    assert augmented.shape == images.shape
    found = 0
    for image, result in zip(images, augmented, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        found += any(torch.equal(result, crop) or torch.equal(result, crop.flip(2)) for crop in crops)
    assert found == 200
    assert len({float((result == 0).float().mean()) for result in augmented}) > 5


def test_demo(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "densefeat_recipes.demo", tmp_path], capture_output=True, text=True, check=True
    )
    assert "48 rows, 0 failures" in ended.stdout
    assert len(open_store(tmp_path / "embeddings")) == 48
    assert "block3: " in ended.stdout.splitlines()[-1]
