"""Small lists, labels, data sets and recipes, and what commands do with them, for fuzzing."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from densefeat.errors import DecodeError, DensefeatError
from densefeat.finetuning.recipe import load_finetuning
from densefeat.images import open_for_training, open_source
from densefeat.labels import LabelFile, load_labels
from densefeat.store import open_store
from densefeat.training import load_recipe, open_labelled
from densefeat.training.classic import read_classic
from support.probes import make_features, write_probe_store
from support.runs import FAST, FINETUNE, write_table

_MAX_PIXELS = 2**16
_ITEMS = 64  # of a source that are read
NAMES = [f"c{i % 2}/im{i}.png" for i in range(6)]


def try_all(*steps: Callable[[], object]) -> None:
    """Take steps one after the other, also after one that refuses; raise the last refusal."""
    refusal = None
    for step in steps:
        try:
            step()
        except DensefeatError as error:
            refusal = error
    if refusal:
        raise refusal


def write_pngs(folder: Path) -> None:
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 9, 0)).save(folder / name)


def write_lists(folder: Path) -> None:
    write_pngs(folder)
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        rows = [mark.join((name, f'"c{i % 2} é"', str(i / 2))) for i, name in enumerate(NAMES)]
        (folder / f"list.{suffix}").write_text("\n".join([mark.join(("path", "label", "value")), *rows]) + "\n")


def write_tars(folder: Path) -> None:
    write_pngs(folder)
    for name, kind in (("ustar.tar", tarfile.USTAR_FORMAT), ("gnu.tar", tarfile.GNU_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        with tarfile.open(folder / name, "w", format=kind) as tar:
            for i, member in enumerate(NAMES):
                long = f"{'d' * 110}/{i}" if kind != tarfile.USTAR_FORMAT and i == 2 else f"im{i}"
                for suffix, data in (("png", (folder / member).read_bytes()), ("cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"{long}.{suffix}")
                    info.size = len(data)
                    info.mtime = 1.5 if kind == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
                    tar.addfile(info, io.BytesIO(data))


def write_tables(folder: Path) -> None:
    write_table(folder / "images.parquet", 20, classes=3, size=8)
    table = pq.read_table(folder / "images.parquet")
    plain = pa.table({"image": table["image"].combine_chunks().field("bytes"), "label": ["a", "b"] * 10})
    pq.write_table(plain, folder / "plain.parquet", compression="none", row_group_size=7)
    pq.write_table(pa.table({"path": NAMES, "label": ["a", "b|c", "a", None, "b", "b"]}), folder / "list.parquet")


def use_input(_: Path, file: Path) -> None:
    """Read as extract and train do, with labels where there are any."""
    path, column = str(file), {".txt": None, ".tar": "cls"}.get(file.suffix, "label")
    training = [lambda: _read_source(open_for_training(path, column)), lambda: _read_labelled(path)] if column else []
    try_all(lambda: _read_source(open_source(path, label_column=column)), *training)


def _read_source(source: Any) -> None:
    source.fingerprint()
    source.stamps()
    for item in source.items(0, min(source.length or _ITEMS, _ITEMS)):
        decode_item(item)


def decode_item(item: Any) -> None:
    with suppress(DecodeError):
        item.decode("pillow", _MAX_PIXELS)


def _read_labelled(path: str) -> None:
    images = open_labelled(path, True)
    for position in range(min(len(images.labels), _ITEMS)):
        images.key(position)


def write_label_files(folder: Path) -> None:
    keys = [f"{i}.jpg" for i in range(12)]
    write_probe_store(folder / "store", [f"c{i % 3}" for i in range(12)], make_features(np.arange(12) % 3), keys)
    header = ["path", "label", "value", "split"]
    rows = [[key, f'"c{i % 2}"', str(i / 3), ("train", "val", "test")[i % 3]] for i, key in enumerate(keys)]
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        (folder / f"labels.{suffix}").write_text("".join(mark.join(row) + "\n" for row in [header, *rows]))


def use_labels(folder: Path, file: Path) -> None:
    labels, store = LabelFile(file), open_store(folder / "store")
    choices = [(column, split) for column in ("label", "value") for split in (None, "split")]
    try_all(*(lambda choice=choice: load_labels([store], labels, choice[0], split_column=choice[1]) for choice in choices))


def write_class_files(folder: Path) -> None:
    contents = {"list.json": ["a", "b"], "names.json": {"a": 1, "b": 0}, "numbers.json": {"0": "a", "1": "b"}}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "list.txt").write_text("a\nb\né\n")


def write_cifar(folder: Path) -> None:
    random = np.random.default_rng(0)
    files: dict[str, dict[str, Any]] = {"batches.meta": {"label_names": list("abcdefghij")}}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        files[name] = {"labels": [1, 2], "data": random.integers(0, 255, (2, 3072), np.uint8)}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps({key.encode(): value for key, value in content.items()}, 2))


def write_svhn(folder: Path) -> None:
    for name, packed in (("train_32x32.mat", True), ("extra_32x32.mat", False), ("test_32x32.mat", True)):
        pixels = np.arange(32 * 32 * 3 * 2).astype(np.uint8).reshape(32, 32, 3, 2)
        savemat(folder / name, {"X": pixels, "y": np.array([[1], [10]], np.uint8)}, do_compression=packed)


def read_both_splits(folder: Path, _: Path) -> None:
    try_all(lambda: read_classic(folder, True), lambda: read_classic(folder, False))


def write_recipes(folder: Path) -> None:
    for recipe in (FAST, FINETUNE):
        shutil.copy(recipe, folder)


def read_either_recipe(_: Path, file: Path) -> None:
    (load_finetuning if file.name == FINETUNE.name else load_recipe)(str(file))
