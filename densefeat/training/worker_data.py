"""Images that are decoded anew for every epoch, by worker processes, with timm's augmentation."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Resize
from torchvision.transforms.functional import pil_to_tensor, ten_crop

from densefeat.errors import DecodeError
from densefeat.images import Preprocessing, decode_image
from densefeat.training.device_data import Part
from densefeat.training.labelled import Encoded, Reader
from densefeat.training.sampling import Sampler

_Decoded = tuple[torch.Tensor, torch.Tensor, list[tuple[str, str]]]  # uint8 (n, …, 3, S, S), int64 (n,), failures
_EVALUATED = 64  # images at a time
_AUGMENT: dict[str, dict[str, Any]] = {
    "crop-mirror": dict(color_jitter=None, scale=(0.5, 1.0)),  # milder: for few images
    "inception": dict(color_jitter=0.4),
    "randaugment": dict(color_jitter=0.0, auto_augment="rand-m9-mstd0.5-inc1"),
}


class Images(Dataset):
    """Maps ``(step, position)`` pairs to one decoded part; what is drawn depends on seed, step and position alone.

    ``step`` None: as evaluation wants them, by ``plain`` where given. An image that cannot be read is black, has label -1,
    and is named.
    """

    def __init__(
        self, labelled: Encoded, preprocessing: Preprocessing, augment: str, seed: int, plain: "TenCropGeometry | None" = None
    ) -> None:
        self.labelled, self.size, self.seed = labelled, preprocessing.size, seed
        self.plain = plain or preprocessing.geometry()
        self.shape = plain.shape if plain else (3, self.size, self.size)
        self.augmented = None
        if augment != "none":
            self.augmented = create_transform(
                (3, self.size, self.size), is_training=True, interpolation="bicubic", normalize=False, **_AUGMENT[augment]
            )
        self._reader: Reader | None = None

    def __getitems__(self, wanted: list[tuple[int | None, int]]) -> _Decoded:
        if self._reader is None:
            self._reader = self.labelled.reader()  # in the worker: it keeps files and rows of its own
        pixels = torch.zeros(len(wanted), *self.shape, dtype=torch.uint8)
        labels = torch.from_numpy(self.labelled.labels[[position for _, position in wanted]])
        failures = []
        for row, (step, position) in enumerate(wanted):
            try:
                pixels[row] = self.pixels(self._reader.read(position), step, position)
            except DecodeError as error:
                labels[row] = -1
                failures.append((self.labelled.key(position), str(error)))
        return pixels, labels, failures

    def pixels(self, data: bytes, step: int | None, position: int) -> torch.Tensor:
        """uint8 ``(3, S, S)``."""
        image = decode_image(data)
        if step is None or self.augmented is None:
            return self.plain(image)
        seed = int(np.random.SeedSequence([self.seed, step, position]).generate_state(1)[0])
        random.seed(seed)  # timm's transforms draw from all three
        np.random.seed(seed)
        with torch.random.fork_rng([]):  # without workers it is the network's own generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of GPUs, too
            return self.augmented(image)


@dataclass(frozen=True)
class TenCropGeometry:
    """The whole image, its short side ``side`` pixels, to corners and centre, each mirrored: uint8 ``(10, 3, size, size)``."""

    side: int
    size: int
    interpolation: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 10, 3, self.size, self.size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        resized = Resize(self.side, str_to_interp_mode(self.interpolation))(image)
        return torch.stack(ten_crop(pil_to_tensor(resized), [self.size]))


def _same(part: Any) -> Any:
    """Parts come whole from :class:`Images`: nothing to collate."""
    return part


@dataclass(frozen=True)
class WorkerImages:
    """Decoded by ``workers`` processes, normalised on the device."""

    images: Images
    preprocessing: Preprocessing
    workers: int
    device: torch.device
    dtype: torch.dtype
    failures: set[tuple[str, str]]  # those met so far

    def batches(self, sampler: Sampler, parts: list[slice], augment: str, start: int, stop: int) -> Iterator[list[Part]]:  # noqa: ARG002
        """The parts of each step's batch, augmented."""
        loaded = map(self.on_device, self.loader(StepParts(sampler, parts, start, stop)))
        for _ in range(start, stop):
            yield [next(loaded) for _ in parts]

    def plain(self, positions: np.ndarray) -> Iterator[Part]:
        """Images as evaluation wants them, some dozens at a time."""
        chunks = [positions[first : first + _EVALUATED] for first in range(0, len(positions), _EVALUATED)]
        return map(self.on_device, self.loader([[(None, int(position)) for position in chunk] for chunk in chunks]))

    def loader(self, batches: "StepParts | list[list[tuple[None, int]]]") -> DataLoader:
        pin = self.device.type == "cuda"
        own = torch.Generator()  # it draws a seed for its workers, which nothing here uses: not from the network's generator
        return DataLoader(
            self.images, batch_sampler=batches, num_workers=self.workers, collate_fn=_same, pin_memory=pin, generator=own
        )

    def on_device(self, decoded: _Decoded) -> Part:
        pixels, labels, failures = decoded
        self.failures.update(failures)
        x = self.preprocessing.normalize(pixels.to(self.device, non_blocking=True)).to(self.dtype)
        return x, labels.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class StepParts:
    """A batch sampler: from any step on."""

    sampler: Sampler
    parts: list[slice]
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            batch = self.sampler.batch(step)
            for part in self.parts:
                yield [(step, int(position)) for position in batch[part]]

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.parts)
