"""Batches by input position, in order, whatever fails and whoever decodes; and those that do not fit into memory."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch

import densefeat
from densefeat import DensefeatError, FeatureExtractor
from densefeat.extraction.batches import Decoding, _find_batch_size, _forward, _run_ahead, decode_batches
from densefeat.images.sources import open_source
from densefeat.images.stream import ImageItem
from support.helpers import BUNDLED
from support.tiny_net import TINY


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (4, 0), (3, 2)])
def test_batches_are_cut_from_positions(
    threads: int, ahead: int, photo_folder: Path, small_extractor: FeatureExtractor
) -> None:
    (photo_folder / "china/02.jpg").write_bytes(b"broken")
    (photo_folder / "flower/06.jpg").write_bytes(b"")
    (photo_folder / "flower/07.jpg").write_bytes(b"")
    decoding = Decoding(small_extractor.preprocessing.geometry())
    with ThreadPoolExecutor(threads) as pool:
        batches = list(decode_batches(open_source(photo_folder).items(0, 12), 2, decoding, pool, ahead))
    assert [[item.key[-6:-4] for item in batch.items] for batch in batches] == [
        ["00", "01"],
        ["03"],
        ["04", "05"],
        [],
        ["08", "09"],
        ["10", "11"],
    ]
    assert [len(batch.failures) for batch in batches] == [0, 1, 0, 2, 0, 0]
    assert [batch.positions for batch in batches] == [2] * 6
    assert batches[3].pixels is None
    assert batches[0].pixels.shape == (2, 3, 32, 32)
    assert batches[0].pixels.dtype == torch.uint8
    assert (batches[1].failures[0].path, batches[1].failures[0].stage) == ("china/02.jpg", "decode")
    assert [(image.width, image.height) for image in batches[0].images] == [(640, 427), (300, 300)]


@pytest.mark.parametrize(
    ("error", "stage", "reason"),
    [
        (MemoryError(), "memory", "out of memory"),
        (KeyError("bucket"), "decode", "KeyError: 'bucket'"),
    ],
)
def test_errors_of_other_peoples_code_cost_one_image(
    error: Exception, stage: str, reason: str, photo_folder: Path, small_extractor: FeatureExtractor
) -> None:
    def read() -> bytes:
        raise error

    good = (photo_folder / "china/00.jpg").read_bytes()
    items = [ImageItem("a", None, lambda: good), ImageItem("b", None, read), ImageItem("c", None, lambda: good)]
    with ThreadPoolExecutor(2) as pool:
        (batch,) = decode_batches(iter(items), 3, Decoding(small_extractor.preprocessing.geometry()), pool, 0)
    assert [item.key for item in batch.items] == ["a", "c"]
    assert [(failure.path, failure.stage, failure.reason) for failure in batch.failures] == [("b", stage, reason)]


def test_runs_no_further_ahead_than_asked() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    ahead = _run_ahead(numbers(), 3)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 6  # one taken, three waiting, one in the feeder's hand and one begun
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "densefeat-input"]


def test_an_error_of_the_input_arrives_in_its_place() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    ahead = _run_ahead(numbers(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)


MEASURED = """
import resource, sys
import torch
from densefeat import DensefeatError, FeatureExtractor
from densefeat.extraction.batches import _forward as forward

torch.set_num_threads(1)
extractor = FeatureExtractor(sys.argv[1], blocks=1, image_size=256, device="cpu", backend="reference")
pixels = torch.randint(256, (8, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
forward(pixels, extractor, halve=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 5 * 2**20, resource.RLIM_INFINITY))
for halve in (False, True):
    try:
        forward(pixels, extractor, halve=halve)
    except DensefeatError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own account of memory")
def test_out_of_memory() -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}  # what is freed goes back at once
    ended = subprocess.run([sys.executable, "-c", MEASURED, BUNDLED], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    message, hopeless = ended.stdout.splitlines()
    assert message == "out of memory with 8 images a pass: give a smaller --batch-size, or --batch-size auto"
    assert hopeless == "out of memory with a single image: give a smaller --image-size or fewer --blocks"


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """More than two images at a time ask for more memory than any machine has; the halves give the same features."""

    def ask_for_too_much(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            torch.empty(2**60)

    extractor = FeatureExtractor(timm.create_model(TINY).eval(), device="cpu", backend="reference")
    pixels = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = _forward(pixels, extractor, halve=False)
    extractor.model.register_forward_pre_hook(ask_for_too_much)
    halved = _forward(pixels, extractor, halve=True)
    for name, value in whole.items():
        torch.testing.assert_close(halved[name], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(DensefeatError, match="out of memory with 7 images a pass: give a smaller --batch-size"):
        _forward(pixels, extractor, halve=False)


def test_batch_size_auto(photo_folder: Path, tmp_path: Path, small_extractor: densefeat.FeatureExtractor) -> None:
    assert _find_batch_size(small_extractor) == 32
    result = densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, batch_size="auto", device="cpu")
    assert result.rows == 12
