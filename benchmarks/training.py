"""Images per second in training: our DenseNet against timm's code for the same network, by the same steps.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --network densenet121 --precision bf16 --batch-size 256

Every way is built and stepped as `densefeat train` does it (the same recipe: optimizer, autocast, channels_last), on one batch
of noise that lies on the device. timm's is timm's DenseNet class with our convolutions, norms and classifier in the places of
its own, so with our weights, in timm's forward pass: that way it also is the CIFAR networks that timm does not have. Before
anything is timed, all have the same parameters and, in float64 and training mode, the same logits.

A mode is eager, compile (torch.compile) or cuda_graph (forward and backward as CUDA graphs). The ways take turns within each
round, after one to warm up; the table has medians over the rounds, ratios to timm in the same mode of the same round.
"""

import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import click
import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.models import generate_default_cfgs, register_model
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn

from densefeat.nets import VARIANTS
from densefeat.training import Part, Recipe, State, World, load_recipe
from densefeat.training.loop import backward
from densefeat.training.losses import Loss
from densefeat.training.state import build
from densefeat.training.watch import Watch

RECIPES = Path(__file__).parents[1] / "recipes"
PREFIX, TIMM_PREFIX = "densefeat_", "timms_"
NETWORKS = {  # name: recipe, pixels of a side, classes
    "densenet_bc100_k12": ("cifar10_fast", 32, 10),
    "densenet40_k12": ("cifar10_fast", 32, 10),
    "densenet121": ("imagenet_densenet121", 224, 1000),
}
MODES = ("eager", "compile", "cuda_graph")
CODES = ("timm", "ours", "memory_efficient")
WAYS = tuple(f"{code}:{mode}" for mode in MODES for code in CODES)
PLACES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)

default_cfgs = generate_default_cfgs({TIMM_PREFIX + name: {} for name in NETWORKS})  # where timm looks for them


def register(name: str) -> None:
    """timm's code for a network of ours, under a name that a recipe can give."""
    _, structure = VARIANTS[PREFIX + name]
    own = {key: structure[key] for key in ("growth_rate", "block_config")}

    def create(num_classes: int, **_: Any) -> nn.Module:
        ours = timm.create_model(PREFIX + name, num_classes=num_classes)
        return transplanted(ours, TimmDenseNet(num_classes=num_classes, **own))

    create.__name__ = TIMM_PREFIX + name
    register_model(create)


def transplanted(ours: nn.Module, timms: nn.Module) -> nn.Module:
    """``timms`` with our layers in the places of the same names, and nothing where we have none."""
    layers = dict(ours.named_modules())
    for name, module in list(timms.named_modules()):
        if isinstance(module, PLACES):
            timms.set_submodule(name, copy.deepcopy(layers.get(name, nn.Identity())))
    return timms


def recipe_of(network: str, way: str, precision: str, batch_size: int) -> Recipe:
    code, mode = way.split(":")
    name, size, _ = NETWORKS[network]
    values = {
        "model": (TIMM_PREFIX if code == "timm" else PREFIX) + network,
        "memory_efficient": code == "memory_efficient", "proj_drop_rate": 0.0, "image_size": size,
        "compile": mode == "compile", "cuda_graph": mode == "cuda_graph", "precision": precision, "batch_size": batch_size,
    }  # fmt: skip
    return load_recipe(str(RECIPES / f"{name}.yaml"), [f"{key}={json.dumps(value)}" for key, value in values.items()])


def check_same(network: str) -> int:
    """The number of parameters, the same in all codes; SystemExit where they or the logits differ."""
    _, size, classes = NETWORKS[network]
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, counts = [], []
    for code in CODES:
        recipe = recipe_of(network, f"{code}:eager", "float64", len(x))
        state = build(recipe, classes, size, 1, 100, World(0, 1, torch.device("cpu")))
        logits.append(state.model(state.formatted(x)).detach())
        counts.append(sum(parameter.numel() for parameter in state.model.parameters()))
    if len(set(counts)) > 1:
        raise SystemExit(f"{network}: {dict(zip(CODES, counts, strict=True))} parameters")
    for code, other in zip(CODES, logits, strict=True):
        if not torch.allclose(other, logits[0], rtol=1e-9, atol=1e-9):
            raise SystemExit(f"{network}: the logits of {code} are up to {(other - logits[0]).abs().max():.2g} from timm's")
    return counts[0]


class Run:
    """A state and its one batch; ``state.step`` counts as in a run of an epoch of 1000 steps, so the rate stays low."""

    def __init__(self, network: str, way: str, precision: str, batch_size: int, device: torch.device) -> None:
        _, size, self.classes = NETWORKS[network]
        recipe = recipe_of(network, way, precision, batch_size)
        self.state: State = build(recipe, self.classes, size, 1000, 1000 * round(recipe.epochs), World(0, 1, device))
        generator = torch.Generator().manual_seed(0)
        dtype = torch.float64 if precision == "float64" else torch.float32
        x = torch.randn(batch_size, 3, size, size, generator=generator, dtype=dtype)
        y = torch.randint(self.classes, (batch_size,), generator=generator)
        self.parts: list[Part] = [(x.to(device), y.to(device))]
        self.loss = Loss("single", self.classes, recipe.label_smoothing)
        self.watch = Watch(self.state.model, self.loss.guess, gradients=not self.state.scaler.is_enabled())

    def step(self) -> None:
        """As ``fit`` does it."""
        state = self.state
        state.set_lr()
        self.watch.note(state.step, backward(state, self.parts, self.loss))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.step += 1

    def seconds(self, steps: int) -> float:
        wait_for(self.state.world.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        report = self.watch.look()  # waits for the device
        wait_for(self.state.world.device)
        taken = time.perf_counter() - began
        if report:
            raise SystemExit(f"{self.state.recipe.model}: loss {report['loss']} at step {report['step']}")
        return taken


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(runs: dict[str, Run], batch_size: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Medians of the rounds, after one to warm up."""
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for i in range(rounds + 1):
        for way in list(runs)[:: 1 if i % 2 else -1]:
            seconds[way].append(runs[way].seconds(steps))
    rows = []
    for way, (_, *values) in seconds.items():
        code, mode = way.split(":")
        row = {"code": code, "mode": mode, "images_per_second": statistics.median(batch_size * steps / own for own in values)}
        if f"timm:{mode}" in runs:
            timms = seconds[f"timm:{mode}"][1:]
            row["ratio"] = statistics.median(timm / own for own, timm in zip(values, timms, strict=True))
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("mode", "code", box=None, pad_edge=False)
    table.add_column("images/s", justify="right")
    table.add_column("to timm's", justify="right")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        table.add_row(row["mode"], row["code"], f"{row['images_per_second']:,.1f}", ratio)
    Console(width=120).print(table)


def chosen_ways(ways: str | None, on_gpu: bool) -> list[str]:
    names = list(WAYS if on_gpu else WAYS[: len(CODES)]) if ways is None else list(dict.fromkeys(ways.split(",")))
    if unknown := sorted(set(names) - set(WAYS)):
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(WAYS)}", param_hint="--ways")
    if not on_gpu and any(name.endswith(":cuda_graph") for name in names):
        raise click.BadParameter("cuda_graph: only with --device cuda", param_hint="--ways")
    return names


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
@click.option("--network", default="densenet_bc100_k12", show_default=True, type=click.Choice(list(NETWORKS)))
@click.option("--ways", help="CODE:MODE, by commas, as timm:eager,ours:eager.  [default: all; on a CPU, the eager ones]")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bf16", "fp16", "float64"]))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of each way in a round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers to this file too.")
def main(
    device: str, network: str, ways: str | None, precision: str, batch_size: int, steps: int, rounds: int, file: Path | None
) -> None:
    """Measure and print."""
    place = torch.device(device)
    on_gpu = place.type == "cuda"
    names = chosen_ways(ways, on_gpu)
    for name in NETWORKS:
        register(name)
    machine = torch.cuda.get_device_name(place) if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, timm {timm.__version__}; {machine}")
    parameters = check_same(network)
    print(f"{network}: {parameters:,} parameters; batches of {batch_size}, {precision}; same parameters and logits")
    runs = {way: Run(network, way, precision, batch_size, place) for way in names}
    rows = measure(runs, batch_size, steps, rounds)
    print_table(rows)
    if file:
        told: dict[str, Any] = {"torch": torch.__version__, "timm": timm.__version__, "machine": machine, "network": network}
        told |= {"parameters": parameters, "precision": precision, "batch_size": batch_size, "steps": steps, "rounds": rounds}
        file.write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
