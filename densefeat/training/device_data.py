"""Small images decoded once and kept on the device as uint8: the loader is then a gather."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images import Geometry, ImageItem, Preprocessing, decode_pixels
from densefeat.training.augment import Draws, draw, gathered
from densefeat.training.classic import Arrays
from densefeat.training.labelled import Encoded, Labelled
from densefeat.training.sampling import Sampler

_MAX_BYTES = 2**34  # of decoded images
_CHUNK = 4096
_EVALUATED = 256  # images at a time

Part = tuple[torch.Tensor, torch.Tensor]  # x (n, 3, H, W) normalised, y int64 (n,): -1 where there is no label
Failures = list[tuple[str, str]]  # key, reason


@dataclass(frozen=True)
class DeviceImages:
    """``images``: uint8 ``(N, S, S, 3)``, ``labels``: int64 ``(N,)``; both on the device."""

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(
        cls, images: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> "DeviceImages":
        return cls(
            torch.from_numpy(images).to(device),
            torch.from_numpy(labels).to(device),
            torch.tensor(preprocessing.mean, dtype=dtype, device=device),
            torch.tensor(preprocessing.std, dtype=dtype, device=device),
            dtype,
        )

    def batches(self, sampler: Sampler, parts: list[slice], augment: str, start: int, stop: int) -> Iterator[list[Part]]:
        """The parts of each step's batch, augmented."""
        for step in range(start, stop):
            positions = torch.from_numpy(sampler.batch(step))
            draws = draw(len(positions), self.images.shape[1], augment, sampler.seed, step)
            yield [self.part(positions[part], draws.part(part, self.images.device)) for part in parts]

    def part(self, positions: torch.Tensor, draws: Draws) -> Part:
        rows = positions.to(self.images.device, non_blocking=True)
        return gathered(self.images, rows, draws, self.mean, self.std, self.dtype), self.labels[rows]

    def plain(self, positions: np.ndarray) -> Iterator[Part]:
        """Images as they are, some hundreds at a time."""
        still = draw(_EVALUATED, self.images.shape[1], "none", 0, 0)
        for rows in torch.from_numpy(positions).split(_EVALUATED):
            yield self.part(rows, still.part(slice(0, len(rows)), self.images.device))


def decode_all(
    labelled: Labelled, preprocessing: Preprocessing, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, Failures]:
    """Images uint8 ``(N, S, S, 3)``, labels int64 ``(N,)``, -1 for an image that cannot be read, and which these are.

    Raises UsageError where they would take more than ``MAX_BYTES``.
    """
    size, count = preprocessing.size, len(labelled.labels)
    if count * size * size * 3 > _MAX_BYTES:
        raise UsageError(
            f"{count:,} images of {size}×{size} take {count * size * size * 3 / 2**30:.0f} GB decoded: use loader=workers"
        )
    if isinstance(labelled, Arrays):
        if labelled.images.shape[1:] != (size, size, 3):
            raise UsageError(f"image_size {size}: the images of {labelled.name} have {labelled.images.shape[1]} pixels")
        return labelled.images, labelled.labels, []
    return decode_encoded(labelled, preprocessing, advance)


def decode_encoded(
    labelled: Encoded, preprocessing: Preprocessing, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, Failures]:
    geometry, size, count = preprocessing.geometry(), preprocessing.size, len(labelled.labels)
    images, labels = np.zeros((count, size, size, 3), np.uint8), labelled.labels.copy()
    failures: Failures = []
    items = enumerate(labelled.source.items(0, count))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(items, _CHUNK)):
            decoded = pool.map(lambda item: _pixels_of(item, geometry, size), (item for _, item in chunk))
            for (position, item), pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, DecodeError):
                    labels[position] = -1
                    failures.append((item.key, str(pixels)))
                else:
                    images[position] = pixels
            advance(len(chunk))
    return images, labels, failures


def _pixels_of(item: ImageItem, geometry: Geometry, size: int) -> np.ndarray | DecodeError:
    """uint8 ``(S, S, 3)``, or why not."""
    try:
        image = decode_pixels(item.read(), "pillow")
    except DecodeError as error:
        return error
    assert isinstance(image, Image.Image)
    if image.size == (size, size):
        return np.asarray(image)
    return geometry(image).permute(1, 2, 0).numpy()
