"""Make the pictures in the README, in docs/images/.

    python docs/pictures.py photos.parquet

``photos.parquet`` is a table of labelled images in the layout of Hugging Face datasets (columns ``image`` and ``label``). The
README's pictures show photographs of clothes (ten classes, CC0). The map is drawn by Chromium, which playwright starts.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

MODEL = "densefeat_densenet_bc100_k12"
IMAGES = Path(__file__).parent / "images"
WIDTH = 800  # pixels of a picture in the README


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--chromium", default="chromium", help="The browser that draws the map.")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(
            work,
            "extract",
            "--images",
            arguments.table.absolute(),
            "--model",
            MODEL,
            "--out",
            "clothes",
            "--label-column",
            "label",
        )
        run(work, "probe", "clothes", "--out", "probe")
        run(work, "map", "clothes", "--method", "umap", "--out", "map.html")
        run(work, "report", "reuse", MODEL, "--out", "reuse.png")
        photograph_page(work / "map.html", work / "map.png", arguments.chromium)
        for name, source in {"blocks": work / "probe/blocks.png", "map": work / "map.png", "reuse": work / "reuse.png"}.items():
            shrink(source, IMAGES / f"{name}.png")


def run(folder: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "densefeat", *map(str, arguments)], cwd=folder, check=True)


def photograph_page(page_file: Path, picture: Path, chromium: str) -> None:
    """Save what a browser window of 1100 × 720 pixels shows of a page, once its points are drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 720})
        page.goto(page_file.as_uri())
        page.wait_for_timeout(3000)
        page.screenshot(path=str(picture))
        browser.close()


def shrink(source: Path, target: Path) -> None:
    """Save a picture ``WIDTH`` pixels wide, with 128 colours."""
    with Image.open(source) as picture:
        height = round(picture.height * WIDTH / picture.width)
        small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
