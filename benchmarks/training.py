"""Training: images per second beside timm's code for the same network, and the runs whose numbers the docs quote.

    python benchmarks/training.py speed
    python benchmarks/training.py speed --device cuda --network densenet121 --precision bf16 --batch-size 256
    python benchmarks/training.py results --data DATA --runs runs/ --minutes 9
    python benchmarks/training.py results --minutes 0    (trains nothing: the table alone)

The command results needs no installed densefeat, only this repository.
"""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.layers import BatchNormAct2d
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from densefeat.base import atomic_file  # noqa: E402
from densefeat.bench import Report, benchmark_options, rate_rows, time_rounds  # noqa: E402
from densefeat.loading import RECIPE, RESULTS  # noqa: E402
from densefeat.nets import VARIANTS  # noqa: E402
from densefeat.training.run_folder import METRICS, RunFolder  # noqa: E402


@click.group()
def main() -> None:
    """Measure or train, and print."""


# ---------------------------------------------------------------- speed

NETWORKS = {"densenet_bc100_k12": (32, 10), "densenet40_k12": (32, 10), "densenet121": (224, 1000)}  # pixels of a side, classes
CODES = ("timm", "ours", "memory_efficient")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def build(network: str, code: str) -> nn.Module:
    """The network in training mode, with the same weights in every code.

    timm's is timm's DenseNet with our layers in the places of its own: so it can also be the CIFAR networks.
    """
    classes = NETWORKS[network][1]
    torch.manual_seed(0)
    ours = timm.create_model(f"densefeat_{network}", num_classes=classes, memory_efficient=code == "memory_efficient")
    if code != "timm":
        return ours.train()
    structure = VARIANTS[f"densefeat_{network}"][1]
    timms = TimmDenseNet(num_classes=classes, **{key: structure[key] for key in ("growth_rate", "block_config")})
    layers = dict(ours.named_modules())
    for name, module in list(timms.named_modules()):
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d | nn.Linear):
            layer = copy.deepcopy(layers.get(name, nn.Identity()))
            if isinstance(layer, nn.BatchNorm2d):  # timm's norms contain the ReLU
                norm = BatchNormAct2d(layer.num_features)
                norm.load_state_dict(layer.state_dict())
                layer = norm
            timms.set_submodule(name, layer)
    return timms.train()


def check_same(network: str) -> int:
    """The number of parameters, the same in all codes; raises ClickException where the logits differ in float64."""
    x = torch.randn(2, 3, *[NETWORKS[network][0]] * 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = [build(network, code).double() for code in CODES]
    logits = [model(x).detach() for model in models]
    if not all(torch.allclose(each, logits[0], rtol=1e-9, atol=1e-9) for each in logits):
        raise click.ClickException(f"{network}: the codes' logits differ")
    return sum(parameter.numel() for parameter in models[0].parameters())


def make_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> Callable[[], None]:
    """One step of SGD with momentum in channels_last, as the recipes train."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        with torch.autocast(x.device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@main.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
@click.option("--network", default="densenet_bc100_k12", show_default=True, type=click.Choice(list(NETWORKS)))
@click.option("--compile", "compiled", is_flag=True, help="By torch.compile, all of them.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of each code in a round.")
@benchmark_options(rounds=5)
def speed(
    device: str, network: str, compiled: bool, precision: str, batch_size: int, steps: int, rounds: int, file: Path | None
) -> None:
    """Images per second in training, on one batch of noise that lies on the device, beside timm's code."""
    size, classes = NETWORKS[network]
    parameters = check_same(network)
    x = torch.randn(batch_size, 3, size, size).to(device, memory_format=torch.channels_last)
    y = torch.randint(classes, (batch_size,)).to(device)
    works = {}
    for code in CODES:
        model: Any = build(network, code).to(device, memory_format=torch.channels_last)
        works[code] = partial(repeat, make_step(torch.compile(model) if compiled else model, x, y, precision), steps)
    report = Report(f"{network}: {parameters:,} parameters; batches of {batch_size}, {precision}; same logits", file, device)
    rows = rate_rows(time_rounds(works, rounds, device), "timm", batch_size * steps)
    report.add("training steps", rows, "code=arm | images/s=rate:,.1f | ratio to timm (range)=ratio")


def repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


# ---------------------------------------------------------------- results

FILES = {  # training and validation images
    "cifar10": ("cifar10-train.parquet", "cifar10-test.parquet"),
    "tin200": ("tinyimagenet32-train.parquet", "tinyimagenet32-val.parquet"),
}
CURVES, DEVICE = "curves.png", "device.json"  # the latter: what the last slice ran on
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # exit codes; the second: before there was anything to save
HEAD = """\
# Results

Written by `python benchmarks/training.py results` from the files beside it: each run's recipe, metrics, scores and curves. One
run each, of the seed in its recipe. The 32×32 images are JPEG-compressed, so errors run above those on original pixels.

| run | network | epochs | images | top-1, % | error, % | training, min | device |
|---|---|---:|---:|---:|---:|---:|---|
"""


RUNS = {  # recipe, data, overrides
    "tin200": ("tin200", "tin200"),
    "cifar10_fast_densenet_bc100_k12": ("cifar10_fast", "cifar10"),
    "cifar10_fast_densenet40_k12": ("cifar10_fast", "cifar10", "model=densefeat_densenet40_k12"),
    "cifar10_fast_delugenet146": ("cifar10_fast", "cifar10", "model=densefeat_delugenet146", "proj_drop_rate=0.0"),
    # the ten epochs that the full protocol begins with: the same images at the same rate
    "cifar10_densenet40_k12_ten_epochs": ("cifar10_densenet40_k12", "cifar10", "epochs=10", "milestones=[]"),
    **{f"cifar10_{name}": (f"cifar10_{name}", "cifar10") for name in ("densenet_bc100_k12", "densenet40_k12", "delugenet146")},
}


def run_training(name: str, out: Path, data: Path, device: str, steps: int | None, end: float) -> int:
    """The exit code of a training process, which SIGTERM stops at ``end`` of the monotonic clock.

    It runs in ``data``, so that the recipe in the run's folder names files and no folders of this machine.
    """
    recipe, images, *overrides = RUNS[name]
    train, val = FILES[images]
    command = [sys.executable, "-m", "densefeat.training", str(ROOT / "recipes" / f"{recipe}.yaml"), *overrides]
    command += [f"train={train}", f"val={val}", "--out", str(out), "--device", device]
    command += [] if device.startswith("cuda") else ["cuda_graph=false"]
    command += [] if steps is None else ["--steps", str(steps)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=data, env=environment, start_new_session=True)  # Ctrl-C reaches it once, through us
    try:
        return process.wait(max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where SIGTERM or Ctrl-C stops this process
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode


def copy_run(out: Path, target: Path, device: str) -> None:
    """Copy what a run's folder has so far."""
    if not (out / RECIPE).exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in (RECIPE, METRICS, RESULTS, CURVES):
        (target / name).unlink(missing_ok=True)
        if (out / name).exists():
            shutil.copyfile(out / name, target / name)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    (target / DEVICE).write_text(json.dumps({"device": name, "torch": torch.__version__}) + "\n", encoding="utf-8")


def format_run(folder: Path) -> str:
    """A line of the table; for a run that is not complete, its last evaluation and how far it is."""
    recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    metrics, results = RunFolder(folder).metrics(), RunFolder(folder).results()
    trained = [line for line in metrics if line["event"] == "train"]
    evaluated: list[dict[str, Any]] = [line for line in metrics if line["event"] == "val"]
    scores = results["val"] if results else evaluated[-1] if evaluated else None
    epochs = f"{recipe['epochs']:g}"
    if results is None:
        epochs = f"incomplete: {metrics[-1]['epoch'] if metrics else 0:.1f} of {epochs}"
        epochs += f", judged at {evaluated[-1]['epoch']:.1f}" if evaluated else ""
    cells = [folder.name, recipe["model"], epochs]
    cells += [f"{scores['images']:,}", f"{scores['top1']:.2f}", f"{100 - scores['top1']:.2f}"] if scores else [""] * 3
    device = json.loads((folder / DEVICE).read_text(encoding="utf-8"))["device"] if (folder / DEVICE).exists() else ""
    cells += [f"{trained[-1]['seconds'] / 60:.1f}" if trained else "", device]
    return f"| {' | '.join(cells)} |\n"


def write_table(results: Path) -> str:
    """Write README.md of all runs in ``results``; draws the curves of runs whose machine could not."""
    folders = [results / name for name in RUNS if (results / name / RECIPE).exists()]
    for folder in folders:
        if not (folder / CURVES).exists():
            RunFolder(folder).draw_curves()
    table = "".join(map(format_run, folders))
    results.mkdir(parents=True, exist_ok=True)
    with atomic_file(results / "README.md") as temporary:
        temporary.write_text(HEAD + table, encoding="utf-8")
    return table


def raise_exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Folder of the files.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are kept.")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results", help="Where to copy them.")
@click.option("--minutes", type=click.FloatRange(0), default=9.0, show_default=True, help="Of this slice.")
@click.option("--only", type=click.Choice(list(RUNS)), multiple=True, help="This run.  [default: all]")
@click.option("--device", help="cpu, cuda.  [default: a GPU where there is one]")
@click.option("--steps", type=click.IntRange(1), help="Of each run in this slice.  [default: all]")
def results(
    data: Path, runs: Path, results: Path, minutes: float, only: tuple[str, ...], device: str | None, steps: int | None
) -> None:
    """Train in slices of some minutes, copy each run to benchmarks/results/RUN, and write the table README.md beside them.

    DATA has the 32×32 images of CIFAR-10 and Tiny ImageNet as Parquet in the datasets layout. The same command continues where
    the last one stopped, run after run; when the minutes are over, the run in progress saves a checkpoint.
    """
    end = time.monotonic() + 60 * minutes
    signal.signal(signal.SIGTERM, raise_exit)  # without it the training process would go on alone
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    due = [name for name in RUNS if minutes and (not only or name in only) and not (runs / name / RESULTS).exists()]
    if missing := [data / file for name in due for file in FILES[RUNS[name][1]] if not (data / file).exists()]:
        raise click.BadParameter(f"there is no {missing[0]}", param_hint="--data")
    failed = []
    for name in due:
        if time.monotonic() >= end:
            break
        print(name, flush=True)
        out = (runs / name).absolute()
        code = run_training(name, out, data, device, steps, end)
        copy_run(out, results / name, device)
        print(write_table(results), end="", flush=True)
        if code not in (0, *STOPPED):
            failed.append(f"{name} (exit code {code})")
    write_table(results)
    if failed:
        raise click.ClickException(f"{', '.join(failed)}: see above")


if __name__ == "__main__":
    main()
