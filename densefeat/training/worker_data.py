"""Images that worker processes decode in every epoch, with timm's augmentation."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Resize, v2
from torchvision.transforms.functional import pil_to_tensor, ten_crop

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images import MEMORY, ImageReader, Preprocessing, decode_pixels, name_image
from densefeat.training.device_data import MicroBatch
from densefeat.training.labelled import EncodedImages
from densefeat.training.sampling import Sampler

# pixels (n, …, C, S, S), labels int64 (n,), failures, and why the run has to end, which a worker's own error would not say well
_Decoded = tuple[torch.Tensor, torch.Tensor, list[tuple[str, str]], str]
_EVAL_BATCH = 64  # images
_AUGMENT: dict[str, dict[str, Any]] = {
    "crop-mirror": dict(color_jitter=None, scale=(0.5, 1.0)),  # mild, for small data sets
    "inception": dict(color_jitter=0.4),
    "randaugment": dict(color_jitter=0.0, auto_augment="rand-m9-mstd0.5-inc1"),
}


class ImageDataset(Dataset):
    """A dataset that decodes ``(step, position)`` pairs; augmentation depends on the pair and the seed alone.

    ``step`` None: without augmentation, by the geometry ``eval_geometry`` if there is one. An image that cannot be read
    is black, has label -1, and is among the failures.
    """

    def __init__(
        self,
        labelled: EncodedImages,
        preprocessing: Preprocessing,
        augment: str,
        seed: int,
        eval_geometry: "TenCropGeometry | None" = None,
    ) -> None:
        self.labelled, self.size, self.seed, self.rule = labelled, preprocessing.size, seed, preprocessing.pixels
        self.eval_geometry = eval_geometry or preprocessing.geometry()
        blank = preprocessing.make_blank(1)[0]
        self.shape, self.dtype = eval_geometry.shape if eval_geometry else blank.shape, blank.dtype
        self.augmentation = None if augment == "none" else self._make_augmentation(augment)
        self._reader: ImageReader | None = None

    def _make_augmentation(self, augment: str) -> Callable[[Any], torch.Tensor]:
        options = _AUGMENT[augment]
        if not self.rule.floating:
            return create_transform(
                (3, self.size, self.size), is_training=True, interpolation="bicubic", normalize=False, **options
            )
        if augment != "crop-mirror":
            raise UsageError(
                f"augment {augment!r} changes colours, which {self.rule.in_chans} channels are not: give crop-mirror"
            )
        return make_mirrored_crops(self.size, options["scale"])

    def __getitems__(self, pairs: list[tuple[int | None, int]]) -> _Decoded:
        if self._reader is None:
            self._reader = self.labelled.reader()  # opened in the worker: each has its own open files and cached rows
        pixels = torch.zeros(len(pairs), *self.shape, dtype=self.dtype)
        labels = torch.from_numpy(self.labelled.labels[[position for _, position in pairs]])
        failures = []
        for row, (step, position) in enumerate(pairs):
            try:
                pixels[row] = self.decode(self._reader.read(position), step, position)
            except DecodeError as error:
                labels[row] = -1
                failures.append((self.labelled.key(position), str(error)))
            except UnknownRange as error:
                return pixels, labels, failures, str(name_image(error, self.labelled.key(position)))
        return pixels, labels, failures, ""

    def decode(self, data: bytes, step: int | None, position: int) -> torch.Tensor:
        """Return ``(C, S, S)``."""
        image = decode_pixels(data, "pillow", rule=self.rule)
        if step is None or self.augmentation is None:
            return self.eval_geometry(image)
        seed = int(np.random.SeedSequence([self.seed, step, position]).generate_state(1)[0])
        random.seed(seed)  # timm's transforms draw from all three generators
        np.random.seed(seed)
        with torch.random.fork_rng([]):  # without workers, the network draws from the same generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of GPUs
            return self.augmentation(image)


def make_mirrored_crops(size: int, scale: tuple[float, float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make an augmentation of floats ``(C, H, W)``: random crops that cover a share of the image, mirrored or not."""
    crop = v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


@dataclass(frozen=True)
class TenCropGeometry:
    """A geometry that resizes the short side to ``side`` pixels, then crops corners and centre, each also mirrored.

    Returns uint8 ``(10, 3, size, size)``.
    """

    side: int
    size: int
    interpolation: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 10, 3, self.size, self.size

    def __call__(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        assert isinstance(image, Image.Image), "ten crops are of pictures"
        resized = Resize(self.side, str_to_interp_mode(self.interpolation))(image)
        return torch.stack(ten_crop(pil_to_tensor(resized), [self.size]))


def _share_memory(workers: int, _: int) -> None:
    """Give this process its share of the memory for decoding."""
    MEMORY.start(processes=workers)


def _return_unchanged(micro_batch: Any) -> Any:
    """Return a micro-batch unchanged: a collate function for :class:`ImageDataset`, whose batches are complete."""
    return micro_batch


@dataclass(frozen=True)
class WorkerImages:
    """Images that ``workers`` processes decode and the device normalises."""

    images: ImageDataset
    preprocessing: Preprocessing
    workers: int
    device: torch.device
    dtype: torch.dtype
    failures: set[tuple[str, str]]  # up to now

    def train_batches(
        self, sampler: Sampler, slices: list[slice], augment: str, start: int, stop: int  # noqa: ARG002
    ) -> Iterator[list[MicroBatch]]:  # fmt: skip
        """Yield the augmented micro-batches of each step."""
        loaded = map(self.to_device, self.loader(_StepSampler(sampler, slices, start, stop)))
        for _ in range(start, stop):
            yield [next(loaded) for _ in slices]

    def eval_batches(self, positions: np.ndarray) -> Iterator[MicroBatch]:
        """Yield the images at ``positions`` without augmentation, some dozens at a time."""
        chunks = [positions[first : first + _EVAL_BATCH] for first in range(0, len(positions), _EVAL_BATCH)]
        return map(self.to_device, self.loader([[(None, int(position)) for position in chunk] for chunk in chunks]))

    def loader(self, batches: "_StepSampler | list[list[tuple[None, int]]]") -> DataLoader:
        pin = self.device.type == "cuda"
        # DataLoader draws a seed for its workers, unused here: from its own generator, for it must not disturb the network's
        generator = torch.Generator()
        return DataLoader(
            self.images,
            batch_sampler=batches,
            num_workers=self.workers,
            worker_init_fn=partial(_share_memory, self.workers),
            collate_fn=_return_unchanged,
            pin_memory=pin,
            generator=generator,
        )

    def to_device(self, decoded: _Decoded) -> MicroBatch:
        pixels, labels, failures, reason = decoded
        if reason:
            raise UnknownRange(reason)
        self.failures.update(failures)
        x = self.preprocessing.normalize(pixels.to(self.device, non_blocking=True)).to(self.dtype)
        return x, labels.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class _StepSampler:
    """A batch sampler for a DataLoader that can start at any step."""

    sampler: Sampler
    slices: list[slice]
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            batch = self.sampler.batch(step)
            for part in self.slices:
                yield [(step, int(position)) for position in batch[part]]

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.slices)
