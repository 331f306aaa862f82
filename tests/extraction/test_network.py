"""Batches that do not fit into memory: halved on request, else one clear message. Real limits, real failures."""

import subprocess
import sys
from pathlib import Path

import pytest

import densefeat
from densefeat.extraction.network import _find_batch_size
from support.helpers import BUNDLED

MEASURED = """
import resource, sys
import torch
from densefeat import DensefeatError, FeatureExtractor
from densefeat.extraction.network import _forward as forward

torch.set_num_threads(1)
extractor = FeatureExtractor(sys.argv[1], blocks=1, image_size=256, device="cpu", backend="reference")
pixels = torch.randint(256, (8, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
whole = forward(pixels, extractor, halve=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 225 * 2**20, resource.RLIM_INFINITY))
try:
    forward(pixels, extractor, halve=False)
except DensefeatError as error:
    print(error)
print(float((forward(pixels, extractor, halve=True)["block1"] - whole["block1"]).abs().max()))
resource.setrlimit(resource.RLIMIT_AS, (used + 5 * 2**20, resource.RLIM_INFINITY))
try:
    forward(pixels, extractor, halve=True)
except DensefeatError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own account of memory")
def test_out_of_memory() -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}  # what is freed goes back at once
    ended = subprocess.run([sys.executable, "-c", MEASURED, BUNDLED], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    message, difference, hopeless = ended.stdout.splitlines()
    assert message == "out of memory with 8 images a pass: give a smaller --batch-size, or --batch-size auto"
    assert float(difference) < 1e-5
    assert hopeless == "out of memory with a single image: give a smaller --image-size or fewer --blocks"


def test_batch_size_auto(photo_folder: Path, tmp_path: Path, small_extractor: densefeat.FeatureExtractor) -> None:
    assert _find_batch_size(small_extractor) == 32
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, batch_size="auto", device="cpu")
    assert result.rows == 12
