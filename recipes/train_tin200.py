"""Train the bundled network: DenseNet-BC (L=100, k=12) on Tiny ImageNet (200 classes) at 32×32, from Parquet tables of images.

    python -m densefeat_recipes.train_tin200 --train train.parquet --val val.parquet --out runs/tin200

Writes log.jsonl, checkpoint.pt (the same command again goes on from it) and, at the end, model.safetensors (float16).
Images are decoded once into memory; augmentation (4-pixel pad and crop, mirror) runs on the device, in batches.
The schedule goes from small images to full size: most of the learning happens at a fraction of the arithmetic.
"""

import io
import itertools
import json
import os
import time
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from densefeat.nets.dense_net import DenseNet

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


def train_batches(images, labels, schedule, batch_size, start):
    """(step, x, y) from step ``start`` on; order and augmentation depend on the seed and the position alone."""
    steps_per_epoch = len(images) // batch_size
    sizes = [size for size, epochs in schedule for _ in range(round(epochs * steps_per_epoch))]
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


def save_atomically(save, path: Path) -> None:
    beside = path.with_name(path.name + ".partial")
    save(beside)
    os.replace(beside, path)


def parse_schedule(text: str) -> list[tuple[int, float]]:
    return [(int(size), float(epochs)) for size, epochs in (part.split(":") for part in text.split(","))]


@click.command()
@click.option("--train", "train_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--val", "val_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--schedule", default="16:4,24:3,32:2", show_default=True, help="image size : epochs, in order")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--lr", default=0.15, show_default=True, help="the one-cycle schedule's peak")
@click.option("--weight-decay", default=2e-4, show_default=True)
@click.option("--steps", type=int, help="Stop after so many steps: a trial, which reads no more images than it needs.")
def main(train_path, val_path, out, device, schedule, batch_size, lr, weight_decay, steps) -> None:
    """Train, evaluate, write."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    limit = batch_size * steps if steps else None
    images, labels = (t.to(device) for t in decode_table(train_path, limit))
    val_images, val_labels = (t.to(device) for t in decode_table(val_path, limit))
    model = DenseNet(12, (16, 16, 16), stem_type="cifar", num_classes=200).to(device)
    if torch.device(device).type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    schedule = parse_schedule(schedule)
    total = sum(round(epochs * (len(images) // batch_size)) for _, epochs in schedule)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=0.2)

    checkpoint, start, spent = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start, spent = state["step"], state["seconds"]
    began = time.monotonic() - spent

    def log(**entry) -> None:
        entry["seconds"] = round(time.monotonic() - began, 1)
        print(json.dumps(entry), flush=True)
        with open(out / "log.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")

    def save(step: int) -> None:
        state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
        state.update(step=step, seconds=time.monotonic() - began)
        save_atomically(lambda path: torch.save(state, path), checkpoint)

    log(
        event="start",
        step=start,
        of=total,
        device=device,
        torch=torch.__version__,
        lr=lr,
        weight_decay=weight_decay,
        batch_size=batch_size,
        schedule=schedule,
        threads=torch.get_num_threads(),
    )
    losses = []
    for step, x, y in itertools.islice(train_batches(images, labels, schedule, batch_size, start), steps):
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if (step + 1) % 200 == 0:
            log(event="train", step=step + 1, size=x.shape[-1], loss=round(torch.stack(losses).mean().item(), 4))
            losses.clear()
            save(step + 1)
        if (step + 1) % 2000 == 0:
            log(event="val", step=step + 1, **evaluate(model, val_images[:2000], val_labels[:2000]))

    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_atomically(lambda path: save_file(tensors, path), out / "model.safetensors")
    model.load_state_dict(load_file(out / "model.safetensors"))
    log(event="end", images=len(val_images), **evaluate(model, val_images, val_labels))


if __name__ == "__main__":
    main()
