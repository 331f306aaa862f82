"""Worker processes that read, decode and resize ahead of the network; batches are cut from input positions, in order."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from densefeat.errors import DecodeError
from densefeat.images.decode import decode_image
from densefeat.images.sources import ImageFile
from densefeat.images.transforms import Preprocessing


@dataclass(frozen=True)
class Failure:
    """One image that has no row: its key, the step that failed (``read``, ``decode``, ``transform``, ``network``), and why."""

    path: str
    stage: str
    reason: str


@dataclass
class Batch:
    """What became of a run of input positions: rows for the network, and failures."""

    keys: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    pixels: torch.Tensor | None = None


class _Decoded(Dataset[Batch]):
    """Batch i of the input; errors are part of the result. Picklable: workers may be spawned."""

    def __init__(self, files: Sequence[ImageFile], batch_size: int, preprocessing: Preprocessing) -> None:
        self.files, self.batch_size = files, batch_size
        self.geometry = preprocessing.geometry()

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        batch, pixels = Batch(), []
        for file in self.files[index * self.batch_size : (index + 1) * self.batch_size]:
            try:
                image = decode_image(file.read())
                pixels.append(self.transform(image))
            except (DecodeError, MemoryError) as error:
                if isinstance(error, MemoryError):
                    error = DecodeError("out of memory")
                batch.failures.append(Failure(file.printable_key, error.stage, str(error)))
            else:
                batch.keys.append(file.key)
                batch.sizes.append(image.size)
        batch.pixels = torch.stack(pixels) if pixels else None
        return batch

    def transform(self, image: Image.Image) -> torch.Tensor:
        try:
            return self.geometry(image)
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}", "transform") from error


def load_batches(files: Sequence[ImageFile], batch_size: int, preprocessing: Preprocessing, workers: int) -> Iterator[Batch]:
    """The input in order, ``batch_size`` positions at a time; ``workers`` processes decode ahead (0: in this process)."""
    return iter(
        DataLoader(
            _Decoded(files, batch_size, preprocessing),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_leave_interrupts_to_the_parent if workers else None,
        )
    )


def default_workers(device: torch.device) -> int:
    """Beside an accelerator one a core, 8 at most; beside a network that itself uses the cores, one for every four of them.

    On 2 cores DenseNet-121 leaves decoding a tenth of the time, and worker processes cost more than they save.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // 4 if device.type == "cpu" else cores)


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
