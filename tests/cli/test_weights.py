"""``densefeat weights convert``: what it prints, its errors, and that commands follow the file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from densefeat.nets import MAKERS
from densefeat.store import open_store
from densefeat_cli.weights import convert
from support.cifar_nets import CifarNet
from support.commands import run_command
from support.helpers import randomize_statistics
from support.tiny_net import TINY

BC100 = "densefeat_densenet_bc100_k12"
MEAN, STD = (np.array(values) / 255 for values in ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]))  # of andreasveit's train.py


def write_cifar10(folder: Path, network: nn.Module) -> None:
    """Write CIFAR-10's files with 40 test images, of which a network, by its own normalisation, names three quarters."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    x = (pixels / 255 - MEAN[:, None, None]) / STD[:, None, None]
    with torch.no_grad():
        labels = network(torch.from_numpy(x).float()).argmax(1)
    labels[30:] = (labels[30:] + 1) % 10
    folder.mkdir()
    files = {"batches.meta": {b"label_names": [f"class {i}".encode() for i in range(10)]}}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        files[name] = {b"labels": labels.tolist(), b"data": pixels.reshape(40, -1)}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, 2))


def test_a_network_for_cifar_is_evaluated_without_being_told(folder: Path) -> None:
    """The published weights of the name have 200 classes and another mean."""
    torch.manual_seed(0)
    theirs = randomize_statistics(CifarNet("andreasveit")).eval()
    theirs.fc.weight.data *= 20  # predictions far apart
    torch.save({"state_dict": theirs.state_dict()}, "best.pth.tar")
    write_cifar10(Path("cifar"), theirs)
    finished = run_command("weights", "convert", "best.pth.tar", "--out", "c10.safetensors", "--model", BC100, check=True)
    assert finished.stdout == (
        f"wrote c10.safetensors: {BC100}, 3 channels, 10 classes; 32 pixels, mean 0.49137,0.48235,0.44667,"
        " std 0.24706,0.24353,0.26157 (stated by andreasveit)\n"
    )
    for weights in ("c10.safetensors", "best.pth.tar"):  # known by its keys, too
        command = ["evaluate", BC100, "--weights", weights, "--data", "cifar", "--device", "cpu", "--json", "e.json"]
        run_command(*command, check=True)
        assert json.loads(Path("e.json").read_text())["top1"] == 75


def test_extraction_from_one_channel(folder: Path) -> None:
    """The features of a one-channel network on grey images, whose black and white are -1024 and 1024."""
    torch.manual_seed(0)
    network = randomize_statistics(timm.create_model(TINY, in_chans=1, num_classes=2)).eval()
    torch.save(network.state_dict(), "w.pt")
    convert_command = ["weights", "convert", "w.pt", "--out", "w.safetensors", "--model", TINY]
    finished = run_command(*convert_command, "--mean", "0.5", "--std", "0.00048828125", check=True)
    assert "1 channel, 2 classes; 32 pixels, mean 0.5, std 0.00048828 (stated by you)" in finished.stdout
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    Path("images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(f"images/{i}.png")
    command = ["extract", "--images", "images", "--out", "store", "--model", TINY, "--weights", "w.safetensors"]
    run_command(*command, "--device", "cpu", "--blocks", "3", check=True)
    with torch.no_grad():
        wanted = network.forward_features(torch.from_numpy(pixels[:, None] / 255 * 2048 - 1024).float()).mean((2, 3))
    np.testing.assert_allclose(open_store("store")["block3"], wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_every_maker_is_offered() -> None:
    (option,) = [parameter for parameter in convert.params if parameter.name == "made_by"]
    assert list(option.type.choices) == list(MAKERS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.pt", "--out", "o.safetensors"], 1, "weights nowhere.pt: no such file"),
        (["w.pt", "--out", "o.pt"], 2, "output 'o.pt': give a name that ends in .safetensors"),
        (["w.pt"], 2, "Missing option '--out'"),
        (["w.pt", "--out", "o.safetensors", "--mean", "a"], 2, "'a' is no list of numbers such as 0.5 or 0.485,0.456,0.406"),
        (["w.pt", "--out", "o.safetensors", "--mean", "0.5"], 2, "mean and std belong together"),
        (["w.pt", "--out", "o.safetensors", "--classes", "none.txt"], 2, "classes 'none.txt': No such file"),
        (["w.pt", "--out", "o.safetensors", "--model", TINY], 2, "for images of 1 channels, whose mean and deviation"),
        (["w.pt", "--out", "w.pt.safetensors", "--model", TINY, "--made-by", "torchxrayvision"], 0, ""),
    ],
)
def test_errors(folder: Path, arguments: list[str], code: int, message: str) -> None:
    torch.save(timm.create_model(TINY, in_chans=1, num_classes=18).state_dict(), "w.pt")
    finished = run_command("weights", "convert", *arguments)
    assert (finished.exit_code, message in finished.stderr) == (code, True), finished.stderr
