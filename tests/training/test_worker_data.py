"""Images decoded in every epoch: the same pixels for any number of workers, from any step, without other generators."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from densefeat.images.transforms import Preprocessing
from densefeat.training import worker_data
from densefeat.training.device_data import MicroBatch
from densefeat.training.labelled import EncodedImages, open_labelled
from densefeat.training.sampling import Sampler, micro_batch_slices
from densefeat.training.worker_data import _AUGMENT, ImageDataset, WorkerImages

MakeFolder = MakeParquet = Callable[..., Path]
PREPROCESSING = Preprocessing(24, 0.9, "center", "bicubic", (0.49, 0.48, 0.44), (0.24, 0.25, 0.26))
CPU = torch.device("cpu")


def loader(
    path: Path, augment: str = "none", workers: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> WorkerImages:
    labelled = open_labelled(str(path), True)
    assert isinstance(labelled, EncodedImages)
    return WorkerImages(ImageDataset(labelled, PREPROCESSING, augment, seed), PREPROCESSING, workers, CPU, dtype, set())


def concatenate(parts: Iterable[MicroBatch]) -> MicroBatch:
    xs, ys = zip(*parts, strict=True)
    return torch.cat(xs), torch.cat(ys)


@pytest.mark.parametrize("augment", _AUGMENT)
def test_pixels_depend_on_seed_step_and_position_alone(augment: str, make_parquet: MakeParquet) -> None:
    path = make_parquet("x.parquet", [i % 5 for i in range(30)], list("abcde"), row_group_size=7)
    sampler = Sampler(np.arange(30), np.array([7, 7, 7, 7, 2]), 8, seed=4)
    whole = list(loader(path, augment).train_batches(sampler, [slice(0, 8)], augment, 0, 5))
    assert [len(parts) for parts in whole] == [1] * 5
    for step, ((x, y),) in enumerate(whole):
        assert (x.shape, x.dtype) == ((8, 3, 24, 24), torch.float32)
        assert y.tolist() == (sampler.batch(step) % 5).tolist()
    later = loader(path, augment, workers=2).train_batches(sampler, micro_batch_slices(8, 4, 0, 1), augment, 2, 5)
    for step, parts in enumerate(later, 2):
        assert len(parts) == 4
        x, y = concatenate(parts)
        assert torch.equal(x, whole[step][0][0])
        assert torch.equal(y, whole[step][0][1])
    ranks = [
        loader(path, augment).train_batches(sampler, micro_batch_slices(8, 1, rank, 2), augment, 3, 4) for rank in range(2)
    ]
    assert torch.equal(concatenate(part for rank in ranks for parts in rank for part in parts)[0], whole[3][0][0])
    other = next(loader(path, augment, seed=1).train_batches(sampler, [slice(0, 8)], augment, 0, 1))
    assert not torch.equal(other[0][0], whole[0][0][0])


@pytest.mark.parametrize("augment", _AUGMENT)
def test_each_epoch_augments_differently(augment: str, make_folder: MakeFolder) -> None:
    images = loader(make_folder({"a": 4, "b": 4}), augment).images
    steps = [images.__getitems__([(step, position) for position in range(8)])[0] for step in range(2)]
    assert all(not torch.equal(one, other) for one, other in zip(*steps, strict=True))


def test_without_augmentation_images_are_those_of_evaluation(make_folder: MakeFolder) -> None:
    images = loader(make_folder({"a": 4, "b": 4}))
    ((part,),) = images.train_batches(Sampler(np.arange(8), None, 8, 0), [slice(0, 8)], "none", 0, 1)
    order = Sampler(np.arange(8), None, 8, 0).batch(0)
    (plain,) = images.eval_batches(order)
    assert torch.equal(part[0], plain[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_equal_timms_transform(workers: int, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_data, "_EVAL_BATCH", 5)
    files = sorted(photo_folder.rglob("*.jpg"))
    positions = np.arange(len(files))[::-1]
    parts = list(loader(photo_folder, "inception", workers).eval_batches(positions))
    assert [len(y) for _, y in parts] == [5, 5, 2]
    x, y = concatenate(parts)
    transform = create_transform(
        (3, 24, 24), interpolation="bicubic", crop_pct=0.9, mean=PREPROCESSING.mean, std=PREPROCESSING.std
    )
    wanted = torch.stack([transform(Image.open(files[position])) for position in positions])
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)
    assert y.tolist() == [1] * 6 + [0] * 6


def test_float64(make_folder: MakeFolder) -> None:
    ((x, _),) = loader(make_folder({"a": 1}), dtype=torch.float64).eval_batches(np.arange(1))
    assert x.dtype == torch.float64


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read(workers: int, make_parquet: MakeParquet, make_folder: MakeFolder) -> None:
    folder = make_folder({"a": 3, "b": 3})
    (folder / "a/001.png").write_bytes(b"")
    (folder / "b/002.png").unlink()
    good = loader(make_folder({"a": 3, "b": 3}, "good"))
    (folder / "b/002.png").symlink_to("/nowhere.png")
    images = loader(folder, workers=workers)
    x, y = concatenate(images.eval_batches(np.arange(6)))
    assert y.tolist() == [0, -1, 0, 1, 1, -1]
    assert {key for key, _ in images.failures} == {"a/001.png", "b/002.png"}
    assert ("a/001.png", "the file is empty") in images.failures
    kept = [0, 2, 3, 4]
    assert torch.equal(x[kept], concatenate(good.eval_batches(np.arange(6)))[0][kept])
    black = PREPROCESSING.normalize(torch.zeros(1, 3, 24, 24, dtype=torch.uint8))
    assert torch.equal(x[1:2], black)
    concatenate(images.eval_batches(np.arange(6)))
    assert len(images.failures) == 2  # they are listed once


@pytest.mark.parametrize("augment", ["none", *_AUGMENT])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_generator_of_the_network_is_not_used(augment: str, workers: int, make_folder: MakeFolder) -> None:
    images = loader(make_folder({"a": 4, "b": 4}), augment, workers)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert len(list(images.train_batches(Sampler(np.arange(8), None, 4, 0), [slice(0, 4)], augment, 0, 2))) == 2
    assert len(list(images.eval_batches(np.arange(8)))) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generators_of_gpus_are_not_used(make_folder: MakeFolder) -> None:
    images = loader(make_folder({"a": 4}), "inception")
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    assert len(list(images.train_batches(Sampler(np.arange(4), None, 4, 0), [slice(0, 4)], "inception", 0, 1))) == 1
    assert torch.equal(torch.cuda.get_rng_state(), before)
