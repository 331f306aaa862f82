"""Images of two textures, and their masks, for tests of segmentation."""

from pathlib import Path

import numpy as np
from PIL import Image

from densefeat.segmentation import Segmented, probe_masks
from support.tiny_net import TINY, write_tiny_weights


def write_textures(
    folder: Path, count: int = 8, sizes: tuple[tuple[int, int], ...] = ((64, 48), (40, 72))
) -> tuple[Path, Path]:
    """Write ``images/`` and ``masks/``: stripes on a bright disc or a half plane (class 1) before dark noise (class 0).

    ``sizes``: widths and heights, in turn. The top row of each mask is 255.
    """
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        y, x = np.mgrid[:height, :width]
        inside = (
            (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2 if i % 2 else x > width * (0.3 + 0.05 * (i % 4))
        )
        noise = generator.integers(0, 90, (height, width))
        grey = np.where(inside, 150 + 80 * (x // 2 % 2) + noise // 8, noise).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, 2)).save(folder / f"images/{i}.png")
        mask = inside.astype(np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
    return folder / "images", folder / "masks"


def probe_textures(folder: Path, out: Path, **options: object) -> Segmented:
    """Probe the images of :func:`write_textures` in ``folder`` with the tiny network, by the protocol that is faster."""
    settings = {"model": TINY, "weights": write_tiny_weights(folder), "image_size": 48, "device": "cpu", "ignore": 255}
    settings |= {"protocol": "knn"}
    return probe_masks(folder / "images", folder / "masks", out, **settings | options)  # type: ignore[arg-type]
