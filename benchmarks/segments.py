"""Masks by a probe of positions, against scikit-learn on features by hooks, and a U-Net trained on the same images.

    python benchmarks/segments.py --data DATA/nuclei --out OUT

DATA/nuclei has images/ and masks/ (1 is a nucleus). The network is the bundled one. The U-Net is segmentation_models_pytorch's
decoder on this network, all of whose weights are trained; without that package its row is missing.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from torch.nn import functional

from densefeat.bench import Report, benchmark_options
from densefeat.images import Preprocessing
from densefeat.labels import TEST, TRAIN, VAL, find_masks
from densefeat.segmentation import probe_masks
from densefeat.segmentation.data import Annotation, DenseData, assign_parts, join_stores, read_annotations
from densefeat.segmentation.fitting import _read_sample
from densefeat.segmentation.masks import IGNORED
from densefeat.segmentation.scores import count_overlaps, measure
from densefeat.store import open_store

MODEL = "densefeat_densenet_bc100_k12"
TAPS = ("features.transition1.act", "features.transition2.act", "features.act5")
STRIDE, BATCH, RATE = 4, 8, 3e-4
COLUMNS = (
    "way=way: | val mean IoU, %=val:.1f | mean IoU, %=mean_iou:.1f | from=low:.1f | to=high:.1f"
    " | class 0=iou 0:.1f | class 1=iou 1:.1f | pixels right, %=right:.1f | CPU minutes=minutes:.1f | =best:"
)


def probe(images: Path, masks: Path, out: Path, protocol: str, **settings: Any) -> tuple[dict[str, Any], float]:
    """Probe; return the results and the minutes of CPU that this process took."""
    started = time.process_time()
    probed = probe_masks(images, masks, out, protocol=protocol, model=MODEL, stride=STRIDE, device="cpu", **settings)
    return probed.results, (time.process_time() - started) / 60


def open_data(masks: Path, store: Path, size: int) -> DenseData:
    """Draw the probe's split and positions once more."""
    opened, shape = open_store(store), (-(-size // STRIDE),) * 2
    table, annotations, *_ = read_annotations([find_masks(opened.keys.tolist(), masks).by_key], None, None, shape)
    annotations, _ = assign_parts(join_stores(annotations, [opened]), len(table.names), 0)
    widths = {name: opened.shapes[name][0] for name in opened.shapes}
    return DenseData([opened], annotations, table, widths, shape, 0)


class Hooked:
    """A plain network of timm, with hooks on its blocks."""

    def __init__(self, images: Path, size: int) -> None:
        self.images = images
        self.network = timm.create_model(MODEL, pretrained=True).eval()
        self.preprocessing = Preprocessing.for_model(self.network, size).see_whole()
        self.maps: list[torch.Tensor] = []
        for name in TAPS:
            self.network.get_submodule(name).register_forward_hook(lambda _, __, output: self.maps.append(output))

    def prepare(self, each: Annotation) -> torch.Tensor:
        pixels = self.preprocessing.geometry()(Image.open(self.images / each.key).convert("RGB"))
        return self.preprocessing.normalize(pixels[None])

    def read(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.maps.clear()
        self.network.forward_features(x)
        return list(self.maps)


def compare_with_scikit_learn(hooked: Hooked, data: DenseData, c: float, prior: float) -> tuple[dict[str, Any], float]:
    """Fit all blocks' features at the probe's positions, by its C, and measure the masks of the test images."""
    started = time.process_time()
    sample = _read_sample("logreg", data)  # for the positions, classes and shares alone
    labels = sample.targets.values[: sample.train]

    def embed(each: Annotation) -> np.ndarray:
        with torch.no_grad():
            maps = hooked.read(hooked.prepare(each))
        grids = [functional.interpolate(one, data.shape, mode="bilinear", antialias=True) for one in maps]
        return torch.cat(grids, 1)[0].flatten(1).T.numpy()

    x = np.concatenate([embed(each)[rows] for each, rows in zip(data.select(TRAIN), sample.rows, strict=True)])
    model = LogisticRegression(C=c, tol=1e-5, max_iter=5000).fit(x, labels)
    offset = prior * (sample.log_prior[1] - sample.log_prior[0])
    counts, truths, found = [], [], []
    for each in data.select(TEST):
        truth = each.read(data.table)
        margin = model.decision_function(embed(each)).reshape(data.shape) + offset
        large = functional.interpolate(torch.from_numpy(margin)[None, None], truth.shape, mode="bilinear", antialias=True)
        predicted = (large[0, 0].numpy() > 0).astype(np.uint8)
        counts.append(count_overlaps(predicted, truth, 2))
        truths.append(truth[truth != IGNORED])
        found.append(predicted[truth != IGNORED])
    measured = measure(np.stack(counts), 0)
    theirs = jaccard_score(np.concatenate(truths), np.concatenate(found), average="macro")
    assert abs(theirs - measured["values"]["mean_iou"]) < 1e-9
    return measured, (time.process_time() - started) / 60


class Unet(torch.nn.Module):
    """segmentation_models_pytorch's U-Net decoder on three blocks of resolutions 1, 1/2 and 1/4."""

    def __init__(self, hooked: Hooked, classes: int) -> None:
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__()
        self.hooked, self.network = hooked, hooked.network
        channels = [one.shape[1] for one in hooked.read(torch.rand(1, 3, 32, 32))]
        self.decoder = UnetDecoder(channels, (128, 64), n_blocks=2)
        self.head = SegmentationHead(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.hooked.read(x)))


def train_unet(hooked: Hooked, data: DenseData, epochs: int) -> tuple[dict[str, Any], float, int]:
    """Train on the training images, with flips; keep the epoch that is best on the validation images; measure test images."""
    started = time.process_time()
    torch.manual_seed(0)
    model, size = Unet(hooked, len(data.table.names)), hooked.preprocessing.size
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * -(-len(data.select(TRAIN)) // BATCH))
    best, kept, at = -1.0, {}, 0
    for epoch in range(1, epochs + 1):
        model.train()
        for x, y in load_batches(hooked, data, size):
            loss = functional.cross_entropy(model(x), y, ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        rated = measure(paint(model, data, VAL), 0)["values"]["mean_iou"]
        if rated > best:
            best, at, kept = rated, epoch, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return measure(paint(model, data, TEST), 0), (time.process_time() - started) / 60, at


def load_batches(hooked: Hooked, data: DenseData, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for rows in torch.randperm(len(data.select(TRAIN))).split(BATCH):
        images, masks = [], []
        for row in rows.tolist():
            each = data.select(TRAIN)[row]
            mask = Image.fromarray(each.read(data.table)).resize((size, size), Image.Resampling.NEAREST)
            flips = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
            images.append(hooked.prepare(each)[0].flip(flips))
            masks.append(torch.from_numpy(np.array(mask)).long().flip(flips))
        yield torch.stack(images), torch.stack(masks)


@torch.no_grad()
def paint(model: Unet, data: DenseData, part: int) -> np.ndarray:
    """Count the overlaps of predicted masks of a part's images, at their own resolution."""
    model.eval()
    counts = []
    for each in data.select(part):
        truth = each.read(data.table)
        scores = functional.interpolate(model(model.hooked.prepare(each)), truth.shape, mode="bilinear", antialias=True)
        counts.append(count_overlaps(scores[0].argmax(0).numpy().astype(np.uint8), truth, len(data.table.names)))
    return np.stack(counts)


def describe(name: str, values: dict[str, Any], ends: dict[str, Any], minutes: float | None, **more: Any) -> dict[str, Any]:
    low, high = ends["mean_iou"]
    iou = {f"iou {code}": 100 * value for code, value in enumerate(values["iou"])}
    row = {"way": name, "mean_iou": 100 * values["mean_iou"], "low": 100 * low, "high": 100 * high, "minutes": minutes}
    return row | iou | {"right": 100 * values["pixel_accuracy"]} | more


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="For features and probes.")
@click.option("--image-size", type=int, default=128, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True, help="Of the U-Net.")
@benchmark_options()
def main(data: Path, out: Path, image_size: int, epochs: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"{MODEL}, {image_size}×{image_size} pixels, a position for {STRIDE}×{STRIDE} of them", file)
    images, masks, rows = data / "images", data / "masks", []
    for protocol in ("logreg", "knn"):
        place = out / protocol
        if protocol == "knn" and not place.exists():
            place.mkdir(parents=True)
            shutil.copytree(out / "logreg/features", place / "features")
        results, minutes = probe(images, masks, place, protocol, image_size=image_size)
        for each in results["candidates"]:
            best = each["name"] == results["best"]
            row = describe(f"{protocol}, {each['name']}", each["test"], each["intervals"], minutes if best else None)
            rows.append(row | {"val": 100 * each["val"]["mean_iou"], "best": "best on val" if best else ""})
            if protocol == "logreg" and each["name"] == "all":
                chosen = each["chosen"]
    report.add("probes", rows, COLUMNS)
    split = open_data(masks, out / "logreg/features", image_size)
    hooked = Hooked(images, image_size)
    measured, minutes = compare_with_scikit_learn(hooked, split, chosen["C"], chosen["prior"])
    row = describe("scikit-learn, all, one C", measured["values"], measured["intervals"], minutes)
    report.add("the same positions by scikit-learn", [row], COLUMNS)
    try:
        measured, minutes, at = train_unet(hooked, split, epochs)
    except ImportError:
        print("no U-Net: pip install segmentation-models-pytorch")
        return
    row = describe(f"U-Net, epoch {at} of {epochs}", measured["values"], measured["intervals"], minutes)
    report.add("all weights trained", [row], COLUMNS)


if __name__ == "__main__":
    main()
