"""The main job on real photographs, without a network connection: embeddings from every block of the bundled network.

    python -m densefeat_recipes.demo demo

Cuts the two photographs that ship with scikit-learn into 24 tiles each, extracts, and shows for some tiles which other tile
lies nearest at each block. Expected: nearly always one of the same photograph.
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

import densefeat

TILE = 106


def cut_photographs(folder: Path) -> None:
    """Write the photographs of China and of a flower, 640×427 each, as JPEG tiles."""
    photographs = load_sample_images()
    for name, pixels in zip(("china", "flower"), photographs.images, strict=True):
        image = Image.fromarray(pixels)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for top in range(0, image.height - TILE + 1, TILE):
            for left in range(0, image.width - TILE + 1, TILE):
                file = folder / name / f"y{top:03}-x{left:03}.jpg"
                if not os.path.lexists(file):  # of an earlier call, or somebody else's
                    image.crop((left, top, left + TILE, top + TILE)).save(file, quality=92)


def find_nearest(vectors: np.ndarray) -> np.ndarray:
    """Return for each row the position of the most similar other row, by cosine: (N, C) to (N,)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -1)
    return similarity.argmax(1)


def main(out: Path) -> None:
    """Cut the photographs, extract their embeddings, and print the nearest tiles."""
    console = Console()
    cut_photographs(out / "photos")
    result = densefeat.extract(out / "photos", out / "embeddings", model="densefeat_densenet_bc100_k12")
    store = densefeat.open_store(result.path)
    paths = [path.removesuffix(".jpg") for path in store.keys]
    photograph = np.array([path.split("/")[0] for path in paths])
    neighbours = {name: find_nearest(store[name]) for name in store.shapes}

    print(f"wrote {result.path}: {result.rows} rows, {result.failures} failures, {result.seconds:.1f} s\n")
    headings = [f"nearest by {name} ({shape[0]})" for name, shape in result.shapes.items()]
    table = Table("tile", *headings, box=None, pad_edge=False)
    for row in range(0, len(paths), 6):
        table.add_row(paths[row], *(paths[indices[row]] for indices in neighbours.values()))
    console.print(table)
    console.print()
    for name, indices in neighbours.items():
        same = 100 * (photograph[indices] == photograph).mean()
        console.print(f"{name}: {same:.0f} % of nearest tiles are of the same photograph")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
