"""Images decoded once: their pixels, what cannot be read, batches of any parts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from densefeat import UsageError
from densefeat.images.transforms import Preprocessing
from densefeat.training import device_data
from densefeat.training.classic import Arrays
from densefeat.training.device_data import DeviceImages, decode_all, draw, gather_augmented
from densefeat.training.labelled import open_labelled
from densefeat.training.sampling import Sampler, micro_batch_slices

MakeFolder = MakeParquet = Callable[..., Path]
MEAN, STD = (0.49, 0.48, 0.44), (0.24, 0.25, 0.26)
CPU = torch.device("cpu")


def preprocessing(size: int = 32) -> Preprocessing:
    return Preprocessing(size, 1.0, "center", "bicubic", MEAN, STD)


def test_pixels_and_labels_of_files(make_folder: MakeFolder, pieces: np.ndarray) -> None:
    done: list[int] = []
    images, labels, failures = decode_all(open_labelled(str(make_folder({"a": 3, "b": 2})), True), preprocessing(), done.append)
    assert images.dtype == np.uint8
    assert np.array_equal(images, pieces[:5])
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert (failures, sum(done)) == ([], 5)


def test_more_images_than_are_decoded_at_a_time(
    make_parquet: MakeParquet, pieces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_data, "_CHUNK", 7)
    done: list[int] = []
    found = open_labelled(str(make_parquet("x.parquet", [0] * 40, ["a"], row_group_size=9)), True)
    images, _, _ = decode_all(found, preprocessing(), done.append)
    assert np.array_equal(images, pieces)
    assert done == [7, 7, 7, 7, 7, 5]


def test_other_sizes_go_through_timms_transform(photo_folder: Path) -> None:
    images, _, failures = decode_all(open_labelled(str(photo_folder), True), preprocessing(40), lambda _: None)
    transform = create_transform((3, 40, 40), interpolation="bicubic", crop_pct=1.0, normalize=False)
    files = sorted(photo_folder.rglob("*.jpg"))
    wanted = np.stack([transform(Image.open(file)).permute(1, 2, 0).numpy() for file in files])
    assert not failures
    assert np.array_equal(images, wanted)


def test_what_cannot_be_read_has_no_label_and_is_named(make_folder: MakeFolder, pieces: np.ndarray) -> None:
    folder = make_folder({"a": 3, "b": 2})
    good = (folder / "a/001.png").read_bytes()
    (folder / "a/001.png").write_bytes(good[: len(good) // 2])
    (folder / "b/000.png").write_bytes(b"")
    images, labels, failures = decode_all(open_labelled(str(folder), True), preprocessing(), lambda _: None)
    assert labels.tolist() == [0, -1, 0, -1, 1]
    assert [key for key, _ in failures] == ["a/001.png", "b/000.png"]
    assert [reason.split(":")[0] for _, reason in failures] == ["truncated or damaged", "the file is empty"]
    assert np.array_equal(images[[0, 2, 4]], pieces[[0, 2, 4]])
    assert not images[[1, 3]].any()


def test_decoding_leaves_the_labels_of_the_source_alone(make_folder: MakeFolder) -> None:
    folder = make_folder({"a": 2})
    (folder / "a/001.png").write_bytes(b"")
    found = open_labelled(str(folder), True)
    assert decode_all(found, preprocessing(), lambda _: None)[1].tolist() == [0, -1]
    assert found.labels.tolist() == [0, 0]


def arrays(pieces: np.ndarray) -> Arrays:
    return Arrays("made/train", pieces, np.arange(40) % 10, [str(i) for i in range(10)])


def test_refused(make_folder: MakeFolder, pieces: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="image_size 48: the images of made/train have 32 pixels"):
        decode_all(arrays(pieces), preprocessing(48), lambda _: None)
    monkeypatch.setattr(device_data, "_MAX_BYTES", 5 * 32 * 32 * 3 - 1)
    with pytest.raises(UsageError, match="5 images of 32×32 take 0 GB decoded: use loader=workers"):
        decode_all(open_labelled(str(make_folder({"a": 5})), True), preprocessing(), lambda _: None)


def test_batches_are_the_same_in_any_parts_and_from_any_step(pieces: np.ndarray) -> None:
    images = DeviceImages.from_arrays(pieces, np.arange(40), preprocessing(), CPU, torch.float32)
    sampler = Sampler(np.arange(40), None, 12, seed=2)
    whole = [step[0] for step in images.batches(sampler, [slice(0, 12)], "cutout", 0, 7)]
    assert len(whole) == 7
    for step, (x, y) in enumerate(whole):
        assert x.shape == (12, 3, 32, 32)
        assert y.tolist() == sampler.batch(step).tolist()
        draws = draw(12, 32, "cutout", 2, step)
        assert torch.equal(x, gather_augmented(images.images, y, draws, images.mean, images.std, torch.float32))
    for ranks, accumulation in ((1, 3), (2, 2), (3, 1)):
        by_rank = [
            list(images.batches(sampler, micro_batch_slices(12, accumulation, rank, ranks), "cutout", 2, 7))
            for rank in range(ranks)
        ]
        for step in range(2, 7):
            parts = [part for rank in by_rank for part in rank[step - 2]]
            assert torch.equal(torch.cat([x for x, _ in parts]), whole[step][0])
            assert torch.equal(torch.cat([y for _, y in parts]), whole[step][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_images_are_normalised_as_by_timm(
    dtype: torch.dtype, pieces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_data, "_EVALUATED", 16)
    images = DeviceImages.from_arrays(pieces, np.arange(40), preprocessing(), CPU, dtype)
    positions = np.arange(0, 40)[::-1].copy()
    parts = list(images.eval_batches(positions))
    assert [len(y) for _, y in parts] == [16, 16, 8]
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    assert (x.dtype, y.tolist()) == (dtype, positions.tolist())
    transform = create_transform((3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=MEAN, std=STD)
    wanted = torch.stack([transform(Image.fromarray(pieces[position])) for position in positions])
    torch.testing.assert_close(x.float(), wanted, rtol=0, atol=1e-5)
