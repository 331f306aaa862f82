"""What a frozen RGB network loses on other channels than it was trained on: probes of CIFAR-10 by chosen bands.

    python benchmarks/channels.py --data cifar10-test.parquet

The images are extracted with the bundled network by several pixel rules, with their own mean and deviation where the first
layer is adapted to other channels, and ridge probes on the last block are cross-validated.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import densefeat
from densefeat import PixelRule
from densefeat.bench import Report, benchmark_options

COLUMNS = "=channels | accuracy %=accuracy:.1f"
ARMS: dict[str, tuple[PixelRule, int | None]] = {
    "red, green, blue": (PixelRule(), None),
    "blue, green, red": (PixelRule(channels=("3", "2", "1")), None),
    "green, repeated": (PixelRule(channels=("2",)), None),
    "red and blue, first layer adapted": (PixelRule(channels=("1", "3")), 2),
}


def probe(folder: Path, data: str, rule: PixelRule, in_chans: int | None) -> float:
    """Return the accuracy of a ridge probe on the last block, cross-validated in five folds."""
    stats = None if in_chans is None else "fit"
    result = densefeat.extract(
        data, folder / "e.parquet", "densefeat_densenet_bc100_k12", label_column="label", pixels=rule, in_chans=in_chans,
        channel_stats=stats, device="cpu",
    )  # fmt: skip
    store = densefeat.open_store(result.path)
    x, y = store["block3"], np.asarray(store["label"])
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 6)))
    return 100 * cross_val_score(classifier, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0)).mean()


@click.command()
@click.option("--data", required=True, help="Parquet file of CIFAR-10's images, columns image and label.")
@click.option("--images", type=click.IntRange(100), default=2000, show_default=True, help="How many of them.")
@benchmark_options()
def main(data: str, images: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"a frozen network on other channels: ridge probes of {images:,} images of CIFAR-10", file)
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "images.parquet")
        pq.write_table(pq.read_table(data).slice(0, images), few, row_group_size=1000)
        rows = [{"channels": name, "accuracy": probe(Path(folder), str(few), *arm)} for name, arm in ARMS.items()]
    report.add("accuracy in five folds", rows, COLUMNS)


if __name__ == "__main__":
    main()
