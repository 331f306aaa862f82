"""Images decoded once and kept on the device: pixels, failures, batches, and augmentation in one gather."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform

from densefeat import UsageError
from densefeat.images.transforms import Preprocessing
from densefeat.training import device_data
from densefeat.training.classic import DecodedImages
from densefeat.training.device_data import _CUT, _PAD, DeviceImages, Draws, _draw, _gather_augmented, decode_all
from densefeat.training.labelled import open_labelled
from densefeat.training.sampling import Sampler, micro_batch_slices

MakeFolder = MakeParquet = Callable[..., Path]
MEAN, STD = (0.49, 0.48, 0.44), (0.24, 0.25, 0.26)
MEANS, STDS = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
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


def test_unreadable_images_have_no_label_and_are_named(make_folder: MakeFolder, pieces: np.ndarray) -> None:
    folder = make_folder({"a": 3, "b": 2})
    good = (folder / "a/001.png").read_bytes()
    (folder / "a/001.png").write_bytes(good[: len(good) // 2])
    (folder / "b/000.png").write_bytes(b"")
    images, labels, failures = decode_all(open_labelled(str(folder), True), preprocessing(), lambda _: None)
    assert labels.tolist() == [0, -1, 0, -1, 1]
    assert [key for key, _ in failures] == ["a/001.png", "b/000.png"]
    assert [reason.split(":")[0] for _, reason in failures] == ["truncated", "the file is empty"]
    assert np.array_equal(images[[0, 2, 4]], pieces[[0, 2, 4]])
    assert not images[[1, 3]].any()


def test_decoding_does_not_change_the_labels_of_the_source(make_folder: MakeFolder) -> None:
    folder = make_folder({"a": 2})
    (folder / "a/001.png").write_bytes(b"")
    found = open_labelled(str(folder), True)
    assert decode_all(found, preprocessing(), lambda _: None)[1].tolist() == [0, -1]
    assert found.labels.tolist() == [0, 0]


def arrays(pieces: np.ndarray) -> DecodedImages:
    return DecodedImages("made/train", pieces, np.arange(40) % 10, [str(i) for i in range(10)])


def test_refused(make_folder: MakeFolder, pieces: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="image_size 48: the images of made/train have 32 pixels"):
        decode_all(arrays(pieces), preprocessing(48), lambda _: None)
    monkeypatch.setattr(device_data, "_MAX_BYTES", 5 * 32 * 32 * 3 - 1)
    with pytest.raises(UsageError, match="5 images of 32×32 take 0 GB decoded: use loader=workers"):
        decode_all(open_labelled(str(make_folder({"a": 5})), True), preprocessing(), lambda _: None)


def test_batches_are_the_same_in_any_micro_batches_and_from_any_step(pieces: np.ndarray) -> None:
    images = DeviceImages.from_arrays(pieces, np.arange(40), preprocessing(), CPU, torch.float32)
    sampler = Sampler(np.arange(40), None, 12, seed=2)
    whole = [step[0] for step in images.train_batches(sampler, [slice(0, 12)], "cutout", 0, 7)]
    assert len(whole) == 7
    for step, (x, y) in enumerate(whole):
        assert x.shape == (12, 3, 32, 32)
        assert y.tolist() == sampler.batch(step).tolist()
        draws = _draw(12, 32, "cutout", 2, step)
        assert torch.equal(x, _gather_augmented(images.images, y, draws, images.mean, images.std, torch.float32))
    for ranks, accumulation in ((1, 3), (2, 2), (3, 1)):
        by_rank = [
            list(images.train_batches(sampler, micro_batch_slices(12, accumulation, rank, ranks), "cutout", 2, 7))
            for rank in range(ranks)
        ]
        for step in range(2, 7):
            parts = [part for rank in by_rank for part in rank[step - 2]]
            assert torch.equal(torch.cat([x for x, _ in parts]), whole[step][0])
            assert torch.equal(torch.cat([y for _, y in parts]), whole[step][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_normalised_as_by_timm(dtype: torch.dtype, pieces: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_data, "_EVAL_BATCH", 16)
    images = DeviceImages.from_arrays(pieces, np.arange(40), preprocessing(), CPU, dtype)
    positions = np.arange(0, 40)[::-1].copy()
    parts = list(images.eval_batches(positions))
    assert [len(y) for _, y in parts] == [16, 16, 8]
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    assert (x.dtype, y.tolist()) == (dtype, positions.tolist())
    transform = create_transform((3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=MEAN, std=STD)
    wanted = torch.stack([transform(Image.fromarray(pieces[position])) for position in positions])
    torch.testing.assert_close(x.float(), wanted, rtol=0, atol=1e-5)


def random_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """Convert uint8 ``(H, W, 3)`` to float64 ``(3, H, W)``."""
    return (image.permute(2, 0, 1) - 255 * MEANS[:, None, None]) * (1 / (255 * STDS))[:, None, None]


def augment_one(image: torch.Tensor, down: int, right: int, mirror: int, cut_y: int, cut_x: int) -> torch.Tensor:
    """Augment as the papers do: normalise, mirror, pad with zeros, crop; then blank a square around the cut's centre."""
    x = normalise(image)
    x = x.flip(2) if mirror else x
    size = x.shape[1]
    x = F.pad(x, [_PAD] * 4)[:, _PAD + down :, _PAD + right :][:, :size, :size].clone()
    if cut_y >= 0:
        x[:, max(cut_y - _CUT // 2, 0) : cut_y + _CUT // 2, max(cut_x - _CUT // 2, 0) : cut_x + _CUT // 2] = 0
    return x


@pytest.mark.parametrize("augment", ["none", "shift-mirror", "cutout"])
@pytest.mark.parametrize("size", [8, 32])
def test_equals_one_image_at_a_time(augment: str, size: int) -> None:
    images, rows = random_images(50, size), torch.randperm(50, generator=torch.Generator().manual_seed(1))[:40]
    draws = _draw(40, size, augment, seed=3, step=5)
    found = _gather_augmented(images, rows, draws, MEANS, STDS, torch.float64)
    assert found.shape == (40, 3, size, size)
    assert found.dtype == torch.float64
    assert found.is_contiguous(memory_format=torch.channels_last)
    drawn = torch.stack(list(vars(draws).values()), 1).tolist()
    wanted = torch.stack([augment_one(images[row], *values) for row, values in zip(rows.tolist(), drawn, strict=True)])
    assert torch.equal(found, wanted)
    if augment != "none":
        assert len(set(map(tuple, drawn))) > 30


@pytest.mark.parametrize("down", [-_PAD, 0, _PAD])
@pytest.mark.parametrize("right", [-_PAD, 1, _PAD])
@pytest.mark.parametrize("mirror", [0, 1])
@pytest.mark.parametrize("cut", [(-_CUT, -_CUT), (0, 31), (31, 0), (16, 15)])
def test_every_corner(down: int, right: int, mirror: int, cut: tuple[int, int]) -> None:
    image = random_images(1)
    draws = Draws(*(torch.tensor([value]) for value in (down, right, mirror, *cut)))
    found = _gather_augmented(image, torch.zeros(1, dtype=torch.int64), draws, MEANS, STDS, torch.float64)
    assert torch.equal(found[0], augment_one(image[0], down, right, mirror, *cut))


def test_none_is_normalisation_alone() -> None:
    images = random_images(6)
    still = _draw(6, 32, "none", 0, 0)
    found = _gather_augmented(images, torch.arange(6), still, MEANS.float(), STDS.float(), torch.float32)
    assert found.dtype == torch.float32
    wanted = (images.permute(0, 3, 1, 2) / 255 - MEANS[:, None, None]) / STDS[:, None, None]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)


def test_draws_lie_in_their_ranges_and_reach_the_ends() -> None:
    draws = _draw(5000, 32, "cutout", seed=0, step=0)
    for values, low, high in ((draws.down, -_PAD, _PAD), (draws.right, -_PAD, _PAD), (draws.mirror, 0, 1), (draws.cut_y, 0, 31), (draws.cut_x, 0, 31)):  # fmt: skip
        assert values.dtype == torch.int64
        counts = torch.bincount(values - low)
        assert len(counts) == high - low + 1  # no value above
        assert counts.min() > 0.6 * 5000 / len(counts)  # all, about equally often


def test_draws_by_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> list[list[int]]:
        return [values.tolist() for values in vars(_draw(64, 32, "cutout", seed, step)).values()]

    assert drawn(1, 2) == drawn(1, 2)
    different = [drawn(seed, step) for seed in range(3) for step in range(3)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _draw(64, 32, "cutout", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batches_are_slices_of_the_batch() -> None:
    """Each image gets the same draws, however a batch is divided."""
    images, rows = random_images(24), torch.arange(24)
    draws = _draw(24, 32, "cutout", seed=0, step=9)
    whole = _gather_augmented(images, rows, draws, MEANS, STDS, torch.float64)
    parts = [slice(0, 6), slice(6, 7), slice(7, 24)]
    found = [_gather_augmented(images, rows[part], draws.select(part, CPU), MEANS, STDS, torch.float64) for part in parts]
    assert torch.equal(torch.cat(found), whole)
