"""Fixtures: small labelled images in every layout."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]
MakeParquet = Callable[..., Path]
MakeTar = Callable[[str, Iterable[tuple[str, bytes]]], Path]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 ``(H, W, 3)`` without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="session")
def pieces(photographs: list[Image.Image]) -> np.ndarray:
    """Return uint8 ``(40, 32, 32, 3)``: different parts of the photographs."""
    places = [(64 * i, 64 * j) for j in range(2) for i in range(10)]
    boxes = [(x, y, x + 64, y + 64) for x, y in places]
    return np.stack(
        [np.asarray(photographs[whole].resize((640, 427)).crop(box).resize((32, 32))) for whole in (0, 6) for box in boxes]
    )


@pytest.fixture(scope="session")
def pngs(pieces: np.ndarray) -> list[bytes]:
    return [encode_png(piece) for piece in pieces]


@pytest.fixture
def make_folder(tmp_path: Path, pngs: list[bytes]) -> MakeFolder:
    """A function of class names and counts that writes ``CLASS/000.png``, from the pieces in order."""

    def make(counts: dict[str, int], name: str = "in") -> Path:
        images = iter(pngs)
        for label, count in counts.items():
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / name / label / f"{i:03}.png").write_bytes(next(images))
        return tmp_path / name

    return make


@pytest.fixture
def make_parquet(tmp_path: Path, pngs: list[bytes]) -> MakeParquet:
    """A function that writes a file in the datasets layout, a row for each label, with the pieces from ``first`` on."""

    def make(
        name: str, labels: Sequence[Any], names: list[str] | None = None, first: int = 0, column: str = "label", **options: Any
    ) -> Path:
        rows = [{"bytes": pngs[first + i], "path": None} for i in range(len(labels))]
        table = pa.table({"image": pa.array(rows, STRUCT), column: labels})
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        if names is not None:
            features[column] = {"names": names, "_type": "ClassLabel"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / name, **options)
        return tmp_path / name

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    def make(name: str, members: Iterable[tuple[str, bytes]]) -> Path:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return make
