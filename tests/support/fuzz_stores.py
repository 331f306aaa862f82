"""Small stores, and what commands do with them, for fuzzing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import CHECKSUM
from densefeat.extraction import extract
from densefeat.labels import load_labels
from densefeat.probing import probe
from densefeat.search import find_duplicates, find_neighbours
from densefeat.store import (
    Failure,
    Layout,
    Manifest,
    convert,
    describe_store,
    is_store,
    open_store,
    read_stamps,
    verify_store,
    write_stamps,
)
from densefeat.store.stamps import _SCHEMA, RecordedStamps
from support.fuzz_inputs import try_all, write_pngs
from support.probes import make_features, write_probe_store
from support.stores import write_store
from support.tiny_net import TINY, write_tiny_weights


def write_store_folder(folder: Path) -> None:
    write_store(folder / "store", 12, 5, failures=(Failure("a.jpg", "decode", "no"),))
    layout = Layout(folder / "store")
    stamps = pa.table([["a", "b"], ["1", None], [1, 1], [False, True]], schema=_SCHEMA)
    write_stamps(layout, Manifest({}, {}, "made-up", ()), RecordedStamps(stamps))


def write_unfinished_store(folder: Path) -> None:
    write_store(folder / "store", 12, 5, failures=(Failure("a.jpg", "decode", "no"),), finished=2)


def write_store_file(folder: Path) -> None:
    write_probe_store(folder / "store", ["a", "b"] * 6, make_features(np.arange(12) % 2))
    lines = {"path": "a.jpg", "stage": "decode", "reason": "no", "x": 1, "y": 2}, {"path": "b", "stage": "read", "reason": ""}
    (folder / "store.failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_rows(folder: Path, _: Path) -> dict[str, tuple[object, ...]]:
    """Read every value, by the rows' keys."""
    store = open_store(folder / "store")
    columns = [[value.tobytes() for value in store[name]] if name in store.shapes else store[name].tolist()
               for name in store.schema.names]  # fmt: skip
    assert all(len(column) == len(store) for column in columns)
    return dict(zip(store.keys.tolist(), zip(*columns, strict=True), strict=True)) | {"": (str(store.provenance),)}


def read_failures_too(folder: Path, file: Path) -> tuple[object, object]:
    return read_rows(folder, file), open_store(folder / "store").failures


def is_part(found: dict[str, object], good: dict[str, object]) -> bool:
    return found.items() <= good.items()


def use_store(folder: Path, _: Path) -> None:
    """Do with a store what the commands do that read it."""
    path = folder / "store"
    is_store(path)
    try_all(lambda: verify_store(path), lambda: describe_store(path))
    store = open_store(path)
    repr((store, store.failures, store.labels, store.progress, store.complete))
    key = str(store.keys[0]) if len(store) else ""
    conversions = [lambda name=name: convert(store, name, folder / f"out.{name}") for name in ("npz", "csv") if store.complete]
    try_all(
        lambda: read_rows(folder, path),
        lambda: [None for name in store.shapes for _ in store.batches(name, 5)],
        lambda: list(store.record_batches(store.schema.names)),
        lambda: store.manifest and read_stamps(Layout(path), store.manifest),
        lambda: load_labels([store]),
        lambda: find_neighbours(store, keys=[key]),
        lambda: find_duplicates(store, 0.9),
        *conversions,
    )


def use_unchecked_store(folder: Path, file: Path) -> None:
    """Use a store whose maker states the sizes that its files have."""
    state_sizes(folder, file)
    use_store(folder, file)


def state_sizes(folder: Path, damaged: Path | None = None) -> None:
    layout = Layout(folder / "store")
    for path in [layout.manifest, *layout.records.glob("*.json")]:
        if path != damaged:
            content = json.loads(path.read_text())
            for record in content.get("parts", [content]):
                record["bytes"] = layout.part(record["part"]).stat().st_size
            path.write_text(json.dumps(content))


def write_extracted(folder: Path) -> None:
    write_pngs(folder / "images")
    (folder / "images/c0/none.png").write_bytes(b"")
    write_tiny_weights(folder)
    extract_again(folder, folder)


def extract_again(folder: Path, _: Path) -> tuple[object, object]:
    """Run the command again that made the store: it extracts what it finds to be damaged."""
    extract(
        folder / "images",
        folder / "store",
        TINY,
        folder / "tiny.safetensors",
        backend="reference",
        part_rows=2,
        labels="folder",
    )
    return read_failures_too(folder, folder)


def write_fitted(folder: Path) -> None:
    write_store_file(folder)
    probe_again(folder, folder)


def probe_again(folder: Path, _: Path) -> object:
    """Run the command again that fitted the probe."""
    return str(probe(folder / "store", folder / "out", protocol="knn").results)


def without_checksums(write: Callable[[Path], object]) -> Callable[[Path], None]:
    """Write files as :func:`write` does and take the checksums out, for those would hide all other damage."""

    def write_unchecked(folder: Path) -> None:
        write(folder)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            data = path.read_bytes()
            if path.suffix == ".json":
                path.write_text(json.dumps(_forget_checksums(json.loads(data))))
            elif data[:4] == b"PAR1":
                with pa.memory_map(str(path)) as file, pq.ParquetFile(file) as parquet:
                    table = parquet.read()
                pq.write_table(table, path, row_group_size=7)
            elif data[8:9] == b"{":
                end = 8 + int.from_bytes(data[:8], "little")
                header = json.loads(data[8:end])
                if header.get("__metadata__", {}).pop(CHECKSUM, None):
                    text = json.dumps(header).encode()
                    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        if (folder / "store").is_dir():
            state_sizes(folder)

    return write_unchecked


def _forget_checksums(content: Any) -> Any:
    if isinstance(content, list):
        return [_forget_checksums(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    old = {"format_version": 2} if "format_version" in content else {}
    return {
        name: _forget_checksums(value) for name, value in content.items() if not name.endswith(("checksum", CHECKSUM))
    } | old
