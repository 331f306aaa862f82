"""Train the bundled network: DenseNet-BC (L=100, k=12) on Tiny ImageNet (200 classes) at 32×32, from Parquet tables of images.

    python -m densefeat_recipes.train_tin200 --train train.parquet --val val.parquet --out runs/tin200

Writes log.jsonl, checkpoint.pt (the same command again goes on from it) and, at the end, model.safetensors (float16).
Images are decoded once into memory; augmentation (4-pixel pad and crop, mirror) runs on the device, in batches.
The schedule goes from small images to full size: most of the learning happens at a fraction of the arithmetic.
"""

import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import densefeat  # noqa: F401  (registers the models)
from densefeat.store.atomic import atomic_file

MODEL = "densefeat_densenet_bc100_k12"
SEED = 0
SIZE = 32


def decode_table(path: Path, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A Parquet table in the Hugging Face layout, its first ``limit`` rows: images uint8 (N, 3, 32, 32), labels int64 (N,)."""
    table = pq.read_table(path, columns=["image", "label"])[:limit]
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_pylist())


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) to float32 with ImageNet's channel mean and std."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """4-pixel zero pad, random crop and mirror, each image its own: float (N, 3, 32, 32) to the same shape."""
    n, channels, height, width = images.shape
    top, left = torch.randint(0, 9, (2, n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.where(mirror, torch.arange(width).flip(0), torch.arange(width))
    rows, columns = rows.to(images.device), columns.to(images.device)
    image, channel = torch.arange(n, device=images.device), torch.arange(channels, device=images.device)
    padded = F.pad(images, (4, 4, 4, 4))
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def parse_schedule(text: str, steps_per_epoch: int) -> list[int]:
    """``"16:4,32:2"``, image size and epochs in order, to the image size of each step."""
    parts = [part.split(":") for part in text.split(",")]
    return [int(size) for size, epochs in parts for _ in range(round(float(epochs) * steps_per_epoch))]


def train_batches(
    images: torch.Tensor, labels: torch.Tensor, sizes: list[int], batch_size: int, start: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(step, x, y) from step ``start`` on; order and augmentation depend on the seed and the position alone."""
    steps_per_epoch = len(images) // batch_size
    for step in range(start, len(sizes)):
        epoch, position = divmod(step, steps_per_epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED + epoch))
        rows = order[position * batch_size : (position + 1) * batch_size].to(images.device)
        x = augment(normalize(images[rows]), torch.Generator().manual_seed(SEED + 1_000_003 * step))
        if sizes[step] != SIZE:
            x = F.interpolate(x, size=(sizes[step], sizes[step]), mode="bilinear", antialias=True)
        yield step, x, labels[rows]


@torch.inference_mode()
def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy in per cent, float32."""
    model.eval()
    top = torch.cat([model(normalize(x)).topk(5).indices for x in images.split(250)])
    model.train()
    hits = top == labels[:, None]
    return {"top1": 100 * hits[:, 0].float().mean().item(), "top5": 100 * hits.any(1).float().mean().item()}


class Log:
    """Lines of JSON, to the terminal and a file; ``seconds`` count on where an earlier run stopped."""

    def __init__(self, path: Path, spent: float) -> None:
        self.path, self.began = path, time.monotonic() - spent

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def __call__(self, event: str, **entry: object) -> None:
        line = json.dumps({"event": event, **entry, "seconds": round(self.seconds, 1)})
        print(line, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


class Training:
    """Model, optimizer and one-cycle schedule, with their place in the run."""

    def __init__(self, sizes: list[int], lr: float, weight_decay: float, device: torch.device) -> None:
        self.model = timm.create_model(MODEL).to(device)
        if device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.device, self.sizes, self.step = device, sizes, 0
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=len(sizes), pct_start=0.2)

    def run_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One step of SGD in bf16; returns the loss."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return loss.detach()

    def save(self, path: Path, seconds: float) -> None:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        state = {name: part.state_dict() for name, part in parts.items()}
        with atomic_file(path) as beside:
            torch.save(state | {"step": self.step, "seconds": seconds}, beside)

    def load(self, path: Path) -> float:
        """Go on from a checkpoint; returns the seconds spent before it."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        return state["seconds"]


def export(model: nn.Module, path: Path, classes: list[str]) -> None:
    """Float16 safetensors, the class names in its metadata."""
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    with atomic_file(path) as beside:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, beside, {"classes": json.dumps(classes)})


def class_names(path: Path) -> list[str]:
    """From the schema of a Parquet table in the Hugging Face layout."""
    return json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]["label"]["names"]


@click.command()
@click.option("--train", "train_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--val", "val_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--schedule", default="16:4,24:3,32:1.5", show_default=True, help="Image size : epochs, in order.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=0.2, show_default=True, help="Peak of the one-cycle schedule.")
@click.option("--weight-decay", default=2e-4, show_default=True)
@click.option("--steps", type=int, help="Stop after so many steps: a trial, which reads no more images than it needs.")
def main(
    train_path: Path, val_path: Path, out: Path, device: torch.device, schedule: str, batch_size: int, lr: float,
    weight_decay: float, steps: int | None,
) -> None:  # fmt: skip
    """Train, export, evaluate what was exported."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    limit = batch_size * steps if steps else None
    images, labels = (tensor.to(device) for tensor in decode_table(train_path, limit))
    val_images, val_labels = (tensor.to(device) for tensor in decode_table(val_path, limit))
    sizes = parse_schedule(schedule, len(images) // batch_size)
    training, checkpoint = Training(sizes, lr, weight_decay, device), out / "checkpoint.pt"
    log = Log(out / "log.jsonl", training.load(checkpoint) if checkpoint.exists() else 0.0)
    log("start", step=training.step, of=len(sizes), device=str(device), torch=torch.__version__, lr=lr,
        weight_decay=weight_decay, batch_size=batch_size, schedule=schedule, threads=torch.get_num_threads())  # fmt: skip

    losses = []
    batches = train_batches(images, labels, sizes, batch_size, training.step)
    for step, x, y in itertools.islice(batches, steps):
        losses.append(training.run_step(x, y))
        if training.step % 200 == 0 or training.step == len(sizes):
            log("train", step=training.step, size=sizes[step], loss=round(torch.stack(losses).mean().item(), 4))
            losses.clear()
            training.save(checkpoint, log.seconds)
        if training.step % 2000 == 0:
            log("val", step=training.step, images=2000, **evaluate(training.model, val_images[:2000], val_labels[:2000]))

    training.save(checkpoint, log.seconds)
    export(training.model, out / "model.safetensors", class_names(train_path))
    training.model.load_state_dict(load_file(out / "model.safetensors"))
    log("end", images=len(val_images), **evaluate(training.model, val_images, val_labels))


if __name__ == "__main__":
    main()
