"""Accuracy of the bundled network on a Parquet table of Tiny ImageNet at 32×32.

    python -m densefeat_recipes.evaluate_tin200 --val val.parquet

Expected: the figures of the network's card, densefeat/nets/bundled/densenet_bc100_k12.tin200.md.
"""

from pathlib import Path

import click
import timm

from densefeat_recipes.train_tin200 import MODEL, decode_table, evaluate


@click.command()
@click.option("--val", "val_path", type=click.Path(exists=True, path_type=Path), required=True)
def main(val_path: Path) -> None:
    """Print top-1 and top-5 accuracy."""
    images, labels = decode_table(val_path, limit=None)
    accuracy = evaluate(timm.create_model(MODEL, pretrained=True), images, labels)
    print(f"{len(images)} images: top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} %")


if __name__ == "__main__":
    main()
