"""Extraction of a folder that a stranger made, in a process that may take four gigabytes."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from support.helpers import BUNDLED
from support.hostile import (
    add_scans,
    add_segments,
    encode,
    make_empty_webp,
    make_exif_of_overlaps,
    make_png_of_zeros,
    make_segment,
    make_small_image,
)

GB = 10**9
SIDE = 7168  # whose pixels fit into the budget one at a time, but not all


def write_folder(folder: Path) -> None:
    folder.mkdir()
    small, large = make_small_image(), Image.new("RGB", (SIDE, SIDE), "red")
    small.save(folder / "good.png")
    exif = make_exif_of_overlaps(65_000, 2700)
    (folder / "exif.jpg").write_bytes(add_segments(encode(small, "JPEG"), make_segment(b"\xff\xe1", exif)))
    (folder / "mpf.jpg").write_bytes(add_segments(encode(small, "JPEG"), make_segment(b"\xff\xe2", b"MPF\0" + exif[6:])))
    for kind in ("PNG", "WEBP"):
        small.save(folder / f"exif.{kind.lower()}", kind, exif=make_exif_of_overlaps(900_000, 30_000))
    (folder / "scans.jpg").write_bytes(add_scans(encode(large, "JPEG", progressive=True), 500))
    (folder / "strip.png").write_bytes(make_png_of_zeros(3, 500_000))
    with tifffile.TiffWriter(folder / "entries.tif") as tiff:
        tiff.write(np.zeros((4096, 4096), np.uint8), tile=(16, 16), compression="zlib", photometric="minisblack")
    for number in range(3):
        (folder / f"empty-{number}.webp").write_bytes(make_empty_webp(13_000, 13_000))
        (folder / f"large-{number}.png").write_bytes(make_png_of_zeros(SIDE, SIDE))
        large.save(folder / f"large-{number}.jpg", progressive=True)
        tifffile.imwrite(
            folder / f"large-{number}.tif", np.asarray(large), photometric="rgb", compression="deflate", rowsperstrip=SIDE
        )
    shutil.copy(folder / "large-0.png", folder / "sparse.png")
    os.truncate(folder / "sparse.png", 900_000_000)


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (4 * GB, 4 * GB))


@pytest.mark.slow
def test_every_image_is_a_row_or_a_failure_and_memory_is_bounded(tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    command = [sys.executable, "-m", "densefeat", "extract", "--images", "images", "--out", "e", "--model", BUNDLED]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.Popen(
        [*command, "--device", "cpu", "--workers", "8"], cwd=tmp_path, env=environment, preexec_fn=limit_memory
    )
    _, status, usage = os.wait4(ended.pid, 0)
    ended.returncode = os.waitstatus_to_exitcode(status)
    assert ended.returncode == 0
    assert usage.ru_maxrss * 1024 < 4 * GB
    rows = set(pq.read_table(tmp_path / "e/data", columns=["path"])["path"].to_pylist())
    failures = {failure["path"]: failure for failure in pq.read_table(tmp_path / "e/failures.parquet").to_pylist()}
    assert rows | set(failures) == set(os.listdir(tmp_path / "images"))
    assert {"good.png", "exif.jpg", "mpf.jpg", "exif.png", "exif.webp"} <= rows
    assert {f"large-{number}.{kind}" for number in range(3) for kind in ("png", "tif", "jpg")} <= rows
    stages = {name: failure["stage"] for name, failure in failures.items()}
    assert {stages[f"empty-{number}.webp"] for number in range(3)} == {"memory"}
    assert stages["scans.jpg"] == "decode"
    assert stages["sparse.png"] == "memory"
    assert not [failure for failure in failures.values() if failure["reason"] == "out of memory"]
