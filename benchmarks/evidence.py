"""Does evidence tell which pixels decide? Deletion and insertion, beside Grad-CAM and a random order.

    pip install grad-cam
    python benchmarks/evidence.py --data DATA

DATA has clothing-train.parquet and clothing-test.parquet, or other tables of that layout (--train, --test). The network is
the bundled one, 32×32; two heads are fitted by logistic regression, on the last block and on all. Pixels are taken in the order
of a map, the most evident first, 1/8 of them at a time. Deletion blurs them, insertion puts them back into a blurred image;
the area under the probability of the class predicted for the whole image should be small for deletion, large for insertion
(Petsiuk et al., "RISE", arXiv 1806.07421, section 4.1). Without pytorch-grad-cam its rows are left out.
"""

import importlib.util
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import densefeat
from densefeat.bench import Report, benchmark_options
from densefeat.certainty import fit_certainty
from densefeat.explaining import explain
from densefeat.features import list_taps
from densefeat.labels import Targets, hold_out
from densefeat.overlay import enlarge_maps
from densefeat.probing import Probe, fit_head
from densefeat.probing.probe_file import save_probe

MODEL, STEPS = "densefeat_densenet_bc100_k12", 8
BLUR = [11, 5.0]  # pixels: the kernel, and its standard deviation
COLUMNS = (
    "order=order: | deletion=deletion:.3f | ±=deletion error:.3f | insertion=insertion:.3f"
    " | ±=insertion error:.3f | insertion - deletion=difference:.3f"
)
Score = Callable[[torch.Tensor], np.ndarray]


class ProbedNet(nn.Module):
    """The bundled network and a linear head on the averages of some blocks, as pytorch-grad-cam needs it: with gradients."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.network = probe.extractor(device="cpu").model
        taps = {tap.name: tap.module for tap in list_taps(self.network, "norm")}
        self.modules_read = [taps[name] for name in probe.columns]
        self.head = nn.Linear(probe.head.weight.shape[1], len(probe.classes))
        self.head.weight.data, self.head.bias.data = torch.from_numpy(probe.head.weight), torch.from_numpy(probe.head.bias)

    @property
    def last(self) -> nn.Module:
        return self.network.get_submodule(self.modules_read[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: dict[str, torch.Tensor] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(lambda *a, name=name: kept.update({name: a[2]}))
            for name in self.modules_read
        ]
        self.network.forward_features(x)
        for hook in hooks:
            hook.remove()
        return self.head(torch.cat([kept[name].mean((2, 3)) for name in self.modules_read], dim=1))


def fit_probe(store: densefeat.Store, columns: tuple[str, ...], file: Path) -> Probe:
    """Fit a head on columns of a store, with a temperature from the fifth of it that was held out to choose the penalty."""
    classes = tuple(sorted(set(store.labels.tolist())))
    targets = Targets("single", classes, np.array([classes.index(label) for label in store.labels], np.int64))
    val = hold_out(targets, 0.2, 0)
    fit = fit_head("logreg", np.concatenate([store[name] for name in columns], axis=1), targets, val)
    certainty = fit_certainty(targets.take(val), fit.val_scores)
    save_probe(file, Probe("single", classes, columns, store.provenance, fit.head, certainty=certainty))
    return densefeat.load_probe(file)


def order_by_grad_cam(probe: Probe, x: torch.Tensor, chosen: np.ndarray) -> np.ndarray:
    """Return maps ``(n, 32, 32)`` of pytorch-grad-cam."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = ProbedNet(probe).eval()
    with GradCAM(network, [network.last]) as method:
        parts = [
            method(x[start : start + 32], [ClassifierOutputTarget(int(code)) for code in chosen[start : start + 32]])
            for start in range(0, len(x), 32)
        ]
    return np.concatenate(parts)


def measure_areas(score: Score, x: torch.Tensor, maps: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the areas of deletion and insertion of each image, float64 ``(n,)``, for maps ``(n, h, w)``."""
    large = np.stack([enlarge_maps(each[None], *x.shape[2:])[0] for each in maps]).reshape(len(maps), -1)
    ranks = torch.from_numpy(np.argsort(np.argsort(-large, axis=1, kind="stable"), axis=1)).view(-1, 1, *x.shape[2:])
    blurred, areas = gaussian_blur(x, *BLUR), {}
    for name, before, after in (("deletion", x, blurred), ("insertion", blurred, x)):
        curve = []
        for step in range(STEPS + 1):
            mixed = torch.where(ranks < step / STEPS * ranks[0].numel(), after, before)
            curve.append(score(mixed)[np.arange(len(x)), chosen])
        areas[name] = np.trapezoid(np.array(curve, np.float64), dx=1 / STEPS, axis=0)
    return areas


def compare(probe: Probe, test: Path, out: Path) -> list[dict[str, Any]]:
    """Measure all orders for a head."""
    store = densefeat.open_store(explain(str(probe.path), test, out, device="cpu").store)
    evidence = store["evidence"].reshape(len(store), *store.shapes["evidence"])[:, 0]
    x, chosen = read_inputs(probe, test), store["scores"].argmax(1)
    extractor = probe.extractor(device="cpu")

    def score(pixels: torch.Tensor) -> np.ndarray:
        features = {name: value.numpy() for name, value in extractor.forward(pixels).items()}
        return softmax(probe.certainty.calibrate(probe.scores(features)).astype(np.float64), axis=1)

    orders = {"random": np.random.default_rng(0).normal(size=x[:, 0].shape), "evidence": evidence}
    if importlib.util.find_spec("pytorch_grad_cam"):
        orders["Grad-CAM"] = order_by_grad_cam(probe, x, chosen)
    return [summarize(name, measure_areas(score, x, maps, chosen)) for name, maps in orders.items()]


def read_inputs(probe: Probe, table: Path) -> torch.Tensor:
    """Return the images of a table as the network reads them, ``(n, 3, 32, 32)``."""
    encoded = pq.read_table(table, columns=["image"])["image"].to_pylist()
    return probe.extractor(device="cpu").prepare([Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in encoded])


def summarize(name: str, areas: dict[str, np.ndarray]) -> dict[str, Any]:
    """Average over images, with standard errors."""
    row: dict[str, Any] = {"order": name}
    for kind, values in areas.items():
        row |= {kind: float(values.mean()), f"{kind} error": float(values.std() / len(values) ** 0.5)}
    return row | {"difference": float((areas["insertion"] - areas["deletion"]).mean())}


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--train", default="clothing-train.parquet", show_default=True)
@click.option("--test", default="clothing-test.parquet", show_default=True)
@click.option("--images", type=click.IntRange(2), default=372, show_default=True, help="Of the test table, at most.")
@benchmark_options()
def main(data: Path, train: str, test: str, images: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report("areas under the probability of the predicted class; ±: standard error over images", file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pq.read_table(data / test).slice(0, images), folder / "test.parquet")
        store = densefeat.open_store(densefeat.extract(data / train, folder / "store", MODEL, device="cpu").path)
        for head, columns in (("the last block", tuple(store.shapes)[-1:]), ("all blocks", tuple(store.shapes))):
            probe = fit_probe(store, columns, folder / f"{head}.safetensors")
            report.add(f"a linear head on {head}", compare(probe, folder / "test.parquet", folder / head), COLUMNS)


if __name__ == "__main__":
    main()
