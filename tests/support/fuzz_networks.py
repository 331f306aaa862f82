"""Small probes, runs and weights, and what commands do with them, for fuzzing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from densefeat.heads import HeadedNet
from densefeat.images import Preprocessing
from densefeat.labels import Targets
from densefeat.loading import load_network, read_recorded_recipe, read_results, read_run
from densefeat.nets import load_weights, read_checkpoint_records
from densefeat.probing import LinearHead, load_probe
from densefeat.probing.knn import KnnHead
from densefeat.probing.probe_file import FILE, Probe, save_probe
from densefeat.report.card import read_card
from densefeat.store import open_store
from densefeat.training import load_recipe, newest_checkpoint, restore_checkpoint, save_checkpoint
from densefeat.training.run_folder import RunFolder
from support.fuzz_inputs import NAMES, try_all
from support.fuzz_stores import write_extracted
from support.runs import FAST
from support.tiny_net import TINY, tiny_state

_PREPROCESSING = Preprocessing(16, 0.9, "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
_CLASSES = ["a", "b é", "c"]
_WIDTH = 48  # of the first two blocks of the tiny network


def write_probes(folder: Path) -> None:
    write_extracted(folder)
    provenance, random = open_store(folder / "store").provenance, np.random.default_rng(0)
    weight, bias = random.standard_normal((3, _WIDTH)).astype(np.float32), random.standard_normal(3).astype(np.float32)
    units = random.standard_normal((9, _WIDTH)).astype(np.float32)
    neighbours = KnnHead(units, Targets("single", tuple(_CLASSES), np.arange(9) % 3), 4)
    for name, head in (("linear", LinearHead(weight, bias)), ("neighbours", neighbours)):
        (folder / name).mkdir()
        probe = Probe("single", tuple(_CLASSES), ("block1", "block2"), provenance, head, {"test": {"top1": 50.0}})
        save_probe(folder / name / FILE, probe)


def read_probe(folder: Path, file: Path) -> tuple[object, ...]:
    probe = load_probe(file)
    size = probe.head.weight.shape[1] if isinstance(probe.head, LinearHead) else probe.head.features.shape[1]
    scores = probe.head.scores(np.ones((2, size), np.float32))
    return probe.task, probe.classes, probe.columns, probe.provenance, probe.told, scores.tolist()


def use_probe(folder: Path, file: Path) -> None:
    """Score an image as predict does."""
    probe = load_probe(file)
    features = probe.extractor(folder / "tiny.safetensors", device="cpu")([folder / "images" / NAMES[0]])
    probe.scores({name: values.numpy() for name, values in features.items()})


def write_runs(folder: Path) -> None:
    """A run with timm's classifier and one with a head of ours."""
    torch.manual_seed(0)
    networks = {
        "plain": timm.create_model(TINY, num_classes=3),
        "headed": HeadedNet(timm.create_model(TINY, num_classes=0), "mlp", 4, 3),
    }
    for name, network in networks.items():
        run = RunFolder(folder / name)
        run.path.mkdir()
        run.export(network, _PREPROCESSING, _CLASSES, "single")
        run.write_results({"val": {"top1": 50.0, "images": 4}, "step": 8, "kept_step": 4})


def write_runs_and_recipes(folder: Path) -> None:
    write_runs(folder)
    for run in list(folder.iterdir()):
        shutil.copy(FAST, run / "recipe.yaml")


def read_trained(_: Path, file: Path) -> tuple[object, ...]:
    loaded = load_network(str(file.parent), head=True)
    preprocessing = Preprocessing.for_model(loaded.model)
    results = read_results(file.parent)
    with torch.inference_mode():
        logits = loaded.model(torch.ones(1, 3, 16, 16)).tolist()
    return loaded.classes, loaded.task, logits, preprocessing, [results.get(name) for name in ("val", "step", "kept_step")]


def use_run(folder: Path, file: Path) -> None:
    path = file.parent
    try_all(
        lambda: load_network(str(path), head=True),
        lambda: load_network(str(path)),
        lambda: read_run(path),
        lambda: read_results(path),
        lambda: read_recorded_recipe(path),
        lambda: read_card(str(path)),
    )


def write_resumed_run(folder: Path) -> None:
    run = RunFolder(folder)
    run.open(load_recipe(str(FAST)), None)
    for step in (3, 6):
        run.log("train", step, epoch=0.5, loss=1.5, top1=20.0, lr=0.1)
        run.log("val", step, epoch=0.5, loss=1.5, top1=20.0)
        save_checkpoint(run.checkpoints, {"step": step, "model": tiny_state()})
    run.write_results({"val": {"top1": 50.0}, "step": 6})
    for events in folder.glob("*tfevents*"):
        events.unlink()


def resume_run(folder: Path, _: Path) -> tuple[object, ...]:
    """Read what a training reads of the folder that it resumes in."""
    run = RunFolder(folder)
    run.check(load_recipe(str(FAST)))
    path, _messages = newest_checkpoint(run.checkpoints)
    assert path
    state: dict[str, Any] = {}
    restore_checkpoint(path, state.update)
    results = run.results() or {}
    run.rewind(3)
    run.metrics()
    return state["step"], str(sum(map(torch.sum, state["model"].values()))), results.get("val"), results.get("step")


def is_resumable(found: tuple[object, ...], good: tuple[object, ...]) -> bool:
    """Check that a training resumes at one of both checkpoints, and that what results it finds are right."""
    return found[0] in (3, 6) and found[1] == good[1] and found[2:] in ((None, None), good[2:])


def write_weights(folder: Path) -> None:
    state = tiny_state()
    torch.save({"state_dict": state, "classes": list("abcdefghij"), "epoch": 3}, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model_ema": {"module": state}, "args": {"lr": 0.1}}, folder / "ema.pth")
    save_file(state, folder / "plain.safetensors", {"classes": json.dumps(list("abcdefghij"))})
    shutil.copy(folder / "plain.safetensors", folder / "other.bin")  # the name does not decide


def use_weights(_: Path, file: Path) -> None:
    try_all(
        lambda: load_weights(timm.create_model(TINY), file),
        lambda: repr(load_network(TINY, file, head=True).classes),
        lambda: read_checkpoint_records(file),
    )
