"""Tiny data and recipes for tests of training."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from densefeat.finetuning.recipe import FineTuning, load_finetuning
from densefeat.nets import load_torch_file
from densefeat.training.checkpoints import _list_checkpoints
from densefeat.training.recipe import Recipe
from densefeat.training.recipe_files import load_recipe
from support.tiny_net import TINY, write_tiny_weights

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
LAUNCH += ["--rdzv-endpoint=localhost:0"]
PROCESS_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
FINETUNE = Path(__file__).parents[2] / "recipes/finetune_folder.yaml"
FAST = Path(__file__).parents[2] / "recipes/cifar10_fast.yaml"  # a path, so that the package need not be installed


def write_table(path: Path, count: int, classes: int = 10, size: int = 16, seed: int = 0) -> Path:
    """Write PNGs of noise around a colour for each class, in the datasets layout, with the names of all classes."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(1234).integers(0, 200, (classes, 3))
    rows, labels = [], random.integers(0, classes, count)
    for label in labels:
        pixels = (colours[label] + random.integers(0, 56, (size, size, 3))).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    names = [f"class {i}" for i in range(classes)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.table([pa.array(rows, image), pa.array(labels)], schema=schema), path, row_group_size=16)
    return path


def tiny_overrides(folder: Path, **changes: Any) -> list[str]:
    """Overrides for the fast recipe: 8 steps of 8 images of 16×16, with dropout, on data written to ``folder``."""
    train, val = folder / "train.parquet", folder / "val.parquet"
    if not train.exists():
        write_table(train, 66, seed=1)
        write_table(val, 21, seed=2)
    values = {
        "model": TINY, "train": train, "val": val, "image_size": 16, "batch_size": 8, "epochs": 1, "augment": "none", "log_steps": 3,
        "eval_epochs": 0.5, "lr": 0.05, "cuda_graph": "false", "precision": "float32", "warmup_epochs": 0.25,
    } | changes  # fmt: skip
    return [f"{key}={json.dumps(value) if isinstance(value, bool | None) else value}" for key, value in values.items()]


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    return load_recipe(str(FAST), tiny_overrides(folder, **changes))


def write_classes(folder: Path, count: int, classes: int = 3, size: int = 40, seed: int = 0) -> Path:
    """Write ``count`` PNGs for each class, ``class 0/000.png``, like those of :func:`write_table`."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(1234).integers(0, 200, (classes, 3))
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(count):
            pixels = (colours[label] + random.integers(0, 56, (size, size, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{i:03}.png")
    return folder


def tiny_finetuning(folder: Path, **changes: Any) -> FineTuning:
    """Fine-tuning of a tiny network on three classes of ten images in ``folder``: 24 to train, 6 to validate; 6 steps of 8."""
    data = folder / "classes"
    if "train" not in changes and not data.exists():
        write_classes(data, 10)
    values = {
        "train": str(data), "workers": 0, "epochs": 2, "batch_size": 8, "log_steps": 2, "warmup_epochs": 0.5,
        "lr": 0.001,
    } | changes  # fmt: skip
    if "model" not in changes:
        values |= {"model": TINY, "weights": str(write_tiny_weights(folder))}
    return load_finetuning(str(FINETUNE), [f"{key}={json.dumps(value)}" for key, value in values.items()])


def newest_state(run: Path) -> dict[str, Any]:
    return load_torch_file(_list_checkpoints(run / "checkpoints")[0], "checkpoint")


def find_tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Find all tensors of a checkpoint, by their place in it."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: tensor for place, value in items for key, tensor in find_tensors(value, f"{name}.{place}").items()}


def assert_same_training(one: Path, other: Path) -> None:
    """Compare network, optimizer, average and generators bit for bit, and metrics except times."""
    first, second = find_tensors(newest_state(one)), find_tensors(newest_state(other))
    assert first.keys() == second.keys()
    assert len(first) > 50
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different[:5]
    lines, others = untimed(one), untimed(other)
    assert lines == others, [pair for pair in zip(lines, others, strict=False) if pair[0] != pair[1]][:3]


def untimed(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
