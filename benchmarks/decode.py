"""JPEG files to network input, images per second on one core: timm's transform on Pillow against densefeat's two decoders.

    python benchmarks/decode.py --images photos/

Each variant ends at uint8 (3, 224, 224), in one thread; the files are in memory. The variants take turns within each round; the
table has medians over the rounds, and ratios to timm of the same round. Below: how far the pixels and the embeddings of the
decoder "torchvision" are from those of "pillow", which are timm's bit for bit (checked, or it stops).
"""

import io
import tempfile
from pathlib import Path

import click
import timm
import torch
from extract import measure, print_table, sample_photographs
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import create_transform, resolve_model_data_config

import densefeat
from densefeat.images import Preprocessing, decode_pixels
from densefeat.images.decode import DECODERS

JPEG_SUFFIXES = (".jpg", ".jpeg")


def print_rates(files: list[bytes], rounds: int) -> None:
    model = timm.create_model("densenet121")
    transform = create_transform(**resolve_model_data_config(model), normalize=False)
    geometry = Preprocessing.of(model).geometry()

    def timms() -> list[torch.Tensor]:
        return [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]

    def ours(decoder: str) -> list[torch.Tensor]:
        return [geometry(decode_pixels(data, decoder)) for data in files]

    by_timm, by_pillow, by_torchvision = (
        torch.stack(pixels).int() for pixels in (timms(), ours("pillow"), ours("torchvision"))
    )
    if not torch.equal(by_pillow, by_timm):
        raise click.ClickException("decoder pillow differs from timm's transform: are there EXIF rotations, which timm leaves?")
    variants = {
        "timm on Pillow": timms,
        "densefeat, decoder pillow": lambda: ours("pillow"),
        "densefeat, decoder torchvision": lambda: ours("torchvision"),
    }
    print_table(measure(variants, rounds), len(files), dict.fromkeys(variants, "timm on Pillow"))
    difference = (by_torchvision.int() - by_pillow.int()).abs()
    print(f"pixels, torchvision to pillow: mean {difference.float().mean():.4f} of 255, largest {difference.max()}")


def print_distances(paths: list[Path], temporary: Path) -> None:
    torch.manual_seed(0)
    weights = temporary / "random.pt"
    torch.save(timm.create_model("densefeat_densenet121").state_dict(), weights)
    table = Table("network", "pixels", "block", "1 - cosine, mean", "largest", box=None, pad_edge=False)
    for name, source in (("densefeat_densenet_bc100_k12", None), ("densefeat_densenet121", weights)):
        extractors = [densefeat.FeatureExtractor(name, weights=source, device="cpu", decoder=decoder) for decoder in DECODERS]
        by_torchvision, by_pillow = (extractor(paths) for extractor in extractors)
        size = extractors[0].preprocessing.size
        for block, features in by_torchvision.items():
            distance = 1 - torch.nn.functional.cosine_similarity(features.double(), by_pillow[block].double())
            label = f"{name}, random weights" if source else name
            table.add_row(label, f"{size}×{size}", block, f"{distance.mean():.1e}", f"{distance.max():.1e}")
    Console(width=120).print(table)


@click.command()
@click.option(
    "--images", "folder", type=click.Path(exists=True, path_type=Path), help="Folder; without, scikit-learn's photographs."
)
@click.option("--count", default=64, show_default=True, help="Photographs a round.")
@click.option("--rounds", default=5, show_default=True)
def main(folder: Path | None, count: int, rounds: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary, "photos")
            sample_photographs(folder, count)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in JPEG_SUFFIXES)[:count]
        if not paths:
            raise click.ClickException(f"no JPEG file below {folder}")
        print(f"{len(paths)} JPEG files, one thread, torch {torch.__version__}, Pillow {Image.__version__}")
        print_rates([path.read_bytes() for path in paths], rounds)
        print_distances(paths, Path(temporary))


if __name__ == "__main__":
    main()
