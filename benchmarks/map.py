"""A map of 20,000 points in a browser: bytes of the page, seconds until it is drawn, frames while it is moved.

    python benchmarks/map.py

A store of clustered random vectors, four blocks of 256 values, 200 labels, and a small picture for each row: pieces of the two
photographs that ship with scikit-learn. "load": from opening the file in headless Chromium until the points are drawn; "pan":
the time between animation frames while the map is dragged. Without a GPU the page draws on a plain canvas, with one by WebGL.
Needs playwright, and Chromium (or CHROME, its path).
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from densefeat.bench import Report, benchmark_options, measure_rounds
from densefeat.map import write_map
from densefeat.store import EmbeddingWriter, make_embedding_schema, open_store
from support.browser import chromium, opened

BLOCKS, SIZE, CLASSES, EDGE = 4, 256, 200, 96
FRAMES = """() => {
    window.frames_at = [];
    const note = (now) => { window.frames_at.push(now); requestAnimationFrame(note); };
    requestAnimationFrame(note);
}"""


def write_pictures(path: Path, rows: int) -> None:
    photographs = [Pillow.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    pieces = []
    for row in range(rows):
        photograph = photographs[row % len(photographs)]
        left, top = (int(generator.integers(0, side - EDGE)) for side in photograph.size)
        pieces.append(photograph.crop((left, top, left + EDGE, top + EDGE)))
    Dataset.from_dict({"image": pieces}, features=Features({"image": Image()})).to_parquet(path)


def write_store(path: Path, pictures: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, CLASSES, rows)
    features = {}
    for block in range(1, BLOCKS + 1):
        centres = generator.standard_normal((CLASSES, SIZE), np.float32)
        features[f"block{block}"] = centres[codes] + generator.standard_normal((rows, SIZE), np.float32)
    schema = make_embedding_schema(dict.fromkeys(features, (SIZE,)), {"images": str(pictures)}, labelled=True)
    columns = {"path": [f"{pictures.name}#{row}" for row in range(rows)], "label": [f"class {code}" for code in codes],
               "width": [EDGE] * rows, "height": [EDGE] * rows}  # fmt: skip
    with EmbeddingWriter(path, schema) as writer:
        writer.append(columns, features)


def look_at(page: Path) -> tuple[float, list[float]]:
    """Milliseconds until the page is drawn, and between the frames while it is dragged."""
    with chromium() as browser:
        began = time.perf_counter()
        with opened(browser, page) as seen:
            load = 1000 * (time.perf_counter() - began)
            box = seen.page.locator("#plot").bounding_box()
            assert box is not None
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            seen.page.mouse.move(x, y)
            seen.page.mouse.down()
            seen.page.evaluate(FRAMES)
            for step in range(120):
                seen.page.mouse.move(x + 150 * np.sin(step / 10), y + 100 * np.cos(step / 10))
            frames = np.diff(seen.page.evaluate("window.frames_at")).tolist()
            seen.page.mouse.up()
            assert not seen.complaints, seen.complaints
    return load, frames


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@benchmark_options(rounds=3)
def main(rows: int, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "pictures.parquet", rows)
        write_store(root / "store.parquet", root / "pictures.parquet", rows)
        result = write_map(open_store(root / "store.parquet"), root / "map.html")
        page, table = result.page.stat().st_size / 1e6, result.table.stat().st_size / 1e6
        looks = measure_rounds({"page": lambda: look_at(result.page)}, rounds)["page"]
    report = Report(f"{rows:,} rows, {BLOCKS} blocks of {SIZE}; {result.notes[-1]}", file)
    report.note("size", {"page": page, "table": table}, f"page {page:.2f} MB, table {table:.2f} MB")
    load, frames = statistics.median(each for each, _ in looks), sorted(each for _, some in looks for each in some)
    report.note("load", load, f"load {load / 1000:.2f} s (median of {rounds})")
    text = f"pan {statistics.median(frames):.1f} ms a frame (median of {len(frames)})"
    report.note("pan", frames, f"{text}, 95 % within {frames[int(0.95 * len(frames))]:.1f} ms")


if __name__ == "__main__":
    main()
