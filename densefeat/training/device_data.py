"""Small images, decoded once and kept on the device: a batch, augmented, is then one gather."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images import MEMORY, Geometry, ImageItem, PixelRule, Preprocessing, decode_pixels, name_image
from densefeat.training.classic import DecodedImages
from densefeat.training.labelled import EncodedImages, LabelledImages
from densefeat.training.sampling import Sampler

_MAX_BYTES = 2**34  # of all decoded images
_CHUNK = 4096  # images decoded at a time
_EVAL_BATCH = 256  # images
_PAD = 4  # pixels of zeros around an image before the crop (1608.06993, 4.1)
_CUT = 16  # pixels, side of the square that cutout blanks (1708.04552)

MicroBatch = tuple[torch.Tensor, torch.Tensor]  # x (n, 3, H, W) normalised, y int64 (n,): -1 where there is no label
Failures = list[tuple[str, str]]  # key, reason


@dataclass(frozen=True)
class DeviceImages:
    """Images on the device, ``(N, S, S, C)`` in uint8 or float32, with their labels, int64 ``(N,)``."""

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def from_arrays(
        cls, images: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> "DeviceImages":
        return cls(
            torch.from_numpy(images).to(device),
            torch.from_numpy(labels).to(device),
            torch.tensor(preprocessing.mean, dtype=dtype, device=device),
            torch.tensor(preprocessing.std, dtype=dtype, device=device),
            dtype,
        )

    def train_batches(
        self, sampler: Sampler, slices: list[slice], augment: str, start: int, stop: int
    ) -> Iterator[list[MicroBatch]]:
        """Yield the augmented micro-batches of each step."""
        for step in range(start, stop):
            positions = torch.from_numpy(sampler.batch(step))
            draws = _draw(len(positions), self.images.shape[1], augment, sampler.seed, step)
            yield [self.load(positions[part], draws.select(part, self.images.device)) for part in slices]

    def load(self, positions: torch.Tensor, draws: "Draws") -> MicroBatch:
        rows = positions.to(self.images.device, non_blocking=True)
        return _gather_augmented(self.images, rows, draws, self.mean, self.std, self.dtype), self.labels[rows]

    def eval_batches(self, positions: np.ndarray) -> Iterator[MicroBatch]:
        """Yield the images at ``positions`` without augmentation, some hundreds at a time."""
        still = _draw(_EVAL_BATCH, self.images.shape[1], "none", 0, 0)
        for rows in torch.from_numpy(positions).split(_EVAL_BATCH):
            yield self.load(rows, still.select(slice(0, len(rows)), self.images.device))


@dataclass(frozen=True)
class Draws:
    """The random numbers for n images, int64 ``(n,)``: shift down and right, whether mirrored, centre of the cut."""

    down: torch.Tensor
    right: torch.Tensor
    mirror: torch.Tensor
    cut_y: torch.Tensor
    cut_x: torch.Tensor

    def select(self, part: slice, device: torch.device) -> "Draws":
        return Draws(*(values[part].to(device, non_blocking=True) for values in vars(self).values()))


def _draw(count: int, size: int, augment: str, seed: int, step: int) -> Draws:
    """Draw for the ``count`` images of a step's batch, on the CPU: the same for any number of ranks."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    still, nowhere = torch.zeros(count, dtype=torch.int64), torch.full((count,), -_CUT)
    if augment == "none":
        return Draws(still, still, still, nowhere, nowhere)
    shift = integers(-_PAD, _PAD + 1), integers(-_PAD, _PAD + 1), integers(0, 2)
    cut = (integers(0, size), integers(0, size)) if augment == "cutout" else (nowhere, nowhere)
    return Draws(*shift, *cut)


def _gather_augmented(
    images: torch.Tensor, rows: torch.Tensor, draws: Draws, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Shift, mirror, cut and normalise images in one gather.

    ``images`` ``(N, H, W, C)``, uint8 to 255 or float32 to 1, at ``rows`` int64 ``(n,)`` give ``(n, C, H, W)``, channels last.
    ``mean``, ``std``: ``(C,)``, of pixels in [0, 1]. Pixels that a shift brings in or a cut blanks are 0 after normalisation,
    as where normalised images are padded (the papers' Torch code).
    """
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device) + draws.down[:, None]
    x = torch.arange(width, device=images.device) + draws.right[:, None]
    x = torch.where(draws.mirror[:, None] == 1, width - 1 - x, x)
    inside = _within(y, 0, height)[:, :, None] & _within(x, 0, width)[:, None, :]
    # a cut is a place in the output image, wherever its pixels come from
    cut_rows = _within(torch.arange(height, device=images.device) - draws.cut_y[:, None], -_CUT // 2, _CUT // 2)
    cut_columns = _within(torch.arange(width, device=images.device) - draws.cut_x[:, None], -_CUT // 2, _CUT // 2)
    inside &= ~(cut_rows[:, :, None] & cut_columns[:, None, :])
    y, x = y.clamp_(0, height - 1), x.clamp_(0, width - 1)
    white = 1 if images.is_floating_point() else 255
    pixels = images.view(-1, images.shape[3])[((rows[:, None] * height + y) * width)[:, :, None] + x[:, None, :]]
    scaled = (pixels.to(dtype) - white * mean) * (inside[..., None] / (white * std))
    return scaled.permute(0, 3, 1, 2)


def _within(values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return (values >= low) & (values < high)


def decode_all(
    labelled: LabelledImages, preprocessing: Preprocessing, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, Failures]:
    """Return images ``(N, S, S, C)``, labels int64 ``(N,)`` (-1 for images that cannot be read), and the failures.

    Raises UsageError where the images would take more than ``_MAX_BYTES``, and UnknownRange.
    """
    size, count = preprocessing.size, len(labelled.labels)
    needed = count * preprocessing.make_blank(1).nbytes
    if needed > _MAX_BYTES:
        raise UsageError(f"{count:,} images of {size}×{size} take {needed / 2**30:.0f} GB decoded: use loader=workers")
    if isinstance(labelled, DecodedImages):
        refuse_rule(labelled, preprocessing.pixels)
        if labelled.images.shape[1:] != (size, size, 3):
            raise UsageError(f"image_size {size}: the images of {labelled.name} have {labelled.images.shape[1]} pixels")
        return labelled.images, labelled.labels, []
    return _decode_encoded(labelled, preprocessing, advance)


def _decode_encoded(
    labelled: EncodedImages, preprocessing: Preprocessing, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, Failures]:
    """Do what :func:`decode_all` does for encoded images."""
    geometry, count = preprocessing.geometry(), len(labelled.labels)
    blank = preprocessing.make_blank(1)[0].permute(1, 2, 0).numpy()
    images, labels = np.zeros((count, *blank.shape), blank.dtype), labelled.labels.copy()
    failures: Failures = []
    items = enumerate(labelled.source.items(0, count))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(items, _CHUNK)):
            decoded = pool.map(lambda item: _decode_item(item, geometry, preprocessing), (item for _, item in chunk))
            for (position, item), pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, DecodeError):
                    labels[position] = -1
                    failures.append((item.key, str(pixels)))
                else:
                    images[position] = pixels
            advance(len(chunk))
    return images, labels, failures


def refuse_rule(labelled: DecodedImages, rule: PixelRule) -> None:
    """Raise UsageError for a rule that images in arrays of 8 bits would not follow."""
    if not rule.keeps_photographs:
        raise UsageError(f"{labelled.name} holds pictures of 8 bits in three channels: leave out ranges and channels")


def _decode_item(item: ImageItem, geometry: Geometry, preprocessing: Preprocessing) -> np.ndarray | DecodeError:
    """Return ``(S, S, C)``, or the error. Raises UnknownRange, which names the image."""
    with MEMORY.hold():
        try:
            image = decode_pixels(item.read(), "pillow", rule=preprocessing.pixels)
        except DecodeError as error:
            return error
        except UnknownRange as error:
            raise name_image(error, item.key) from error
        if isinstance(image, Image.Image) and image.size == (preprocessing.size, preprocessing.size):
            return np.asarray(image)
        return geometry(image).permute(1, 2, 0).numpy()
