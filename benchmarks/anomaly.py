"""How well and how fast are anomalies found, beside anomalib's PatchCore on the same network, blocks and images?

    python benchmarks/anomaly.py --data tiles --peer venv-anomalib/bin/python

DATA has ``train/good``, ``test/KIND`` and ``masks/KIND``. PEER is a Python that has densefeat's dependencies and anomalib;
without it the table has no such row. Times are the processor's, for images that are prepared, of all threads together: medians
over batches, each of which all arms take in turn.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from densefeat import FeatureExtractor, open_store
from densefeat.anomaly import PixelMetrics, fit_detector, load_detector, match_masks, score_images, shrink_mask
from densefeat.anomaly.alarms import choose_held_out
from densefeat.bench import Report, benchmark_options
from densefeat.labels import read_mask

BATCH, RATE = 8, 0.05
PEER = """
import sys, time
import numpy as np, torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
import densefeat  # registers the network with timm

images, out, name, share = sys.argv[1:]
arrays = np.load(images)
model = PatchcoreModel(layers=[2, 3], backbone=name, pre_trained=True)
started = time.process_time()
model.train()
model.feature_extractor.eval()
with torch.no_grad():
    for batch in torch.from_numpy(arrays["train"]).split(8):
        model(batch)
    model.subsample_embedding(float(share))
fit, scores, maps = time.process_time() - started, [], []
batches = torch.from_numpy(arrays["test"]).split(8)
model.eval()
with torch.no_grad():
    for batch in batches:
        found = model(batch)
        scores.append(found.pred_score.numpy())
        maps.append(found.anomaly_map[:, 0].numpy().astype(np.float32))
    bank = model.memory_bank
    np.savez(out, scores=np.concatenate(scores), maps=np.concatenate(maps), fit=fit, bank=bank.shape)
    print("ready", flush=True)
    for line in sys.stdin:  # the number of a batch to take
        started = time.process_time()
        model(batches[int(line)])
        print("seconds", time.process_time() - started, flush=True)
"""
Work = Callable[[int], float]  # the number of a batch to the seconds that it takes


class Peer:
    """anomalib in a process of its own, which has fitted, and scored the test images to ``out``, when this is made."""

    def __init__(self, python: str, images: Path, out: Path, model: str, share: float) -> None:
        place = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [python, "-W", "ignore", "-c", PEER, images, out, model, str(share)]
        self.process = subprocess.Popen(command, env=place, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.read("ready")

    def read(self, word: str) -> str:
        """Return the rest of the next line that begins with ``word``; the peer prints others."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise RuntimeError(f"the peer ended with {self.process.wait()}")

    def work(self, number: int) -> float:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return float(self.read("seconds"))


def judge_peer(found: Any, masks: list[np.ndarray]) -> dict[str, float]:
    """Compute what :func:`densefeat.anomaly.score_images` computes, of another program's scores and maps."""
    bad = np.array([mask.any() for mask in masks])
    pixels = PixelMetrics(float(found["maps"].min()), float(found["maps"].max()))
    for values, mask in zip(found["maps"], masks, strict=True):
        pixels.add(values, mask)
    auroc = float(roc_auc_score(bad, found["scores"]))
    return {"image_auroc": auroc, "pixel_auroc": pixels.auroc(), "pro": pixels.pro()}


def measure_own(method: str, model: str, size: int, train: Path, data: Path, root: Path, x: torch.Tensor) -> dict[str, Any]:
    started = time.process_time()
    fitted = fit_detector(train, root / method, model=model, method=method, image_size=size, device="cpu", false_alarms=RATE)
    fit = time.process_time() - started
    scored = score_images(fitted.path, data / "test", root / f"{method}-scores", masks=data / "masks", device="cpu")
    detector = load_detector(fitted.path)
    extractor = detector.extractor(device="cpu")
    batches = x.split(BATCH)

    def work(number: int) -> float:
        started = time.process_time()
        detector.measure(extractor.forward_grid(batches[number], detector.rule))
        return time.process_time() - started

    bank = len(detector.normal.bank) if method == "patchcore" else 0
    return {"arm": f"densefeat {method}", **scored.metrics, "work": work, "fit": fit, "bank": bank, "size": detector.size}


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--model", default="densefeat_densenet_bc100_k12", show_default=True)
@click.option("--size", default=64, show_default=True, help="Pixels of the square input.")
@click.option(
    "--images", type=click.IntRange(40), default=120, show_default=True, help="Good images; some of them are held out."
)
@click.option("--peer", type=click.Path(exists=True, dir_okay=False), help="A Python with anomalib.")
@click.option("--share", default=0.02, show_default=True, help="Of the positions, in anomalib's bank.")
@benchmark_options()
def main(data: Path, model: str, size: int, images: int, peer: str | None, share: float, file: Path | None) -> None:
    """Measure and print."""
    extractor = FeatureExtractor(model, device="cpu", image_size=size)
    extractor.preprocessing = extractor.preprocessing.see_whole()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train = sorted((data / "train/good").iterdir())[:images]
        (root / "good").mkdir()
        for path in train:
            shutil.copy(path, root / "good")
        tests = sorted(path for path in (data / "test").rglob("*") if path.is_file())
        x = extractor.prepare(tests)
        rows = [measure_own(method, model, size, root / "good", data, root, x) for method in ("patchcore", "padim")]
        if peer is not None:
            store = open_store(root / "patchcore-scores/scores")
            files = match_masks(store.keys.tolist(), data / "masks")
            sides = zip(files, store["width"].tolist(), store["height"].tolist(), strict=True)
            masks = [
                np.zeros((size, size), bool) if mask is None else shrink_mask(read_mask(mask, (width, height)) != 0, size)
                for mask, width, height in sides
            ]
            assert store.keys.tolist() == [path.relative_to(data / "test").as_posix() for path in tests]
            learnt = np.array(train)[~choose_held_out(len(train), RATE)].tolist()  # the peer learns from the same
            np.savez(root / "images.npz", train=extractor.prepare(learnt).numpy(), test=x.numpy())
            running = Peer(peer, root / "images.npz", root / "peer.npz", model, share)
            found = np.load(root / "peer.npz")
            bank, dims = found["bank"].tolist()
            rows.append({"arm": "anomalib PatchCore", **judge_peer(found, masks), "work": running.work,
                         "fit": float(found["fit"]), "bank": bank, "size": 4 * dims * bank})  # fmt: skip
        whole = [number for number, batch in enumerate(x.split(BATCH)) if len(batch) == len(x[:BATCH])]
        for number in (0, *whole):  # the first is taken twice, and then compiled
            for row in rows:
                row.setdefault("times", []).append(row["work"](number) / len(x[:BATCH]))
    for row in rows:
        del row["work"]
        row["seconds"] = float(np.median(row.pop("times")[1:]))
    for row in rows:
        row |= {"rate": 1 / row["seconds"], "ratio": rows[-1]["seconds"] / row["seconds"], "megabytes": row["size"] / 1e6}
        row |= {name: 100 * row[name] for name in ("image_auroc", "pixel_auroc", "pro")}
    report = Report(f"anomalies: {model}, blocks 2 and 3, {size}×{size}, {len(train)} good images, {len(tests)} to score", file)
    columns = (
        "arm=arm | AUROC images=image_auroc:.2f | AUROC pixels=pixel_auroc:.2f | PRO=pro:.2f | images/s=rate:.2f"
        " | ratio=ratio:.2f | fit, s=fit:.1f | bank=bank:,d | MB=megabytes:.1f"
    )
    report.add("found", rows, columns)


if __name__ == "__main__":
    main()
