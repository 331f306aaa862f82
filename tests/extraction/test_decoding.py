"""Batches by input position, in order, whatever fails and whoever decodes."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from densefeat import FeatureExtractor
from densefeat.extraction.decoding import Decoding, _run_ahead, decode_batches
from densefeat.images.sources import open_source
from densefeat.images.stream import ImageItem


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
        (MemoryError(), "decode", "out of memory"),
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
