"""Batches by input position, in order, whoever decodes them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densefeat import FeatureExtractor
from densefeat.extract.loader import load_batches
from densefeat.images.sources import find_images


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_cut_from_positions(workers: int, photo_folder: Path, small_extractor: FeatureExtractor) -> None:
    (photo_folder / "china/02.jpg").write_bytes(b"broken")
    (photo_folder / "flower/06.jpg").write_bytes(b"")
    (photo_folder / "flower/07.jpg").write_bytes(b"")
    batches = list(load_batches(find_images(photo_folder), 2, small_extractor.preprocessing, workers))
    assert [[key[-6:-4] for key in batch.keys] for batch in batches] == [
        ["00", "01"],
        ["03"],
        ["04", "05"],
        [],
        ["08", "09"],
        ["10", "11"],
    ]
    assert [len(batch.failures) for batch in batches] == [0, 1, 0, 2, 0, 0]
    assert batches[3].pixels is None
    assert batches[0].pixels.shape == (2, 3, 32, 32)
    assert batches[0].pixels.dtype == torch.uint8
    assert batches[1].failures[0].path == "china/02.jpg"
    assert batches[1].failures[0].stage == "decode"
    assert batches[0].sizes == [(640, 427), (300, 300)]


SPAWNED = """
import multiprocessing, sys
from densefeat import FeatureExtractor
from densefeat.extract.loader import load_batches
from densefeat.images.sources import find_images
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    preprocessing = FeatureExtractor("densefeat_densenet_bc100_k12").preprocessing
    print([key for batch in load_batches(find_images(sys.argv[1]), 4, preprocessing, 2) for key in batch.keys])
"""


@pytest.mark.slow
def test_workers_can_be_spawned(photo_folder: Path, tmp_path: Path) -> None:
    """As on macOS and Windows: nothing is inherited, all of it is pickled."""
    (tmp_path / "spawned.py").write_text(SPAWNED)
    ended = subprocess.run([sys.executable, tmp_path / "spawned.py", photo_folder], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == str([file.key for file in find_images(photo_folder)]), ended.stderr
