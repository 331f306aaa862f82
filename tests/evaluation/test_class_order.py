"""The order of classes for weights that do not name them: as timm, torchvision or the checkpoint has it, or said to be assumed."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import nn
from torchvision.datasets import ImageFolder

from densefeat import UsageError
from densefeat.evaluation.accuracy import evaluate, open_for_network
from densefeat.evaluation.class_order import describe_other_order, read_classes, sort_names
from densefeat.loading import load_network
from support.tiny_net import TINY

NAMES = ["a", "B", "c", "f9", "f10", "f100", "G", "h", "Z", "z1"]
TEXT = ["B", "G", "Z", "a", "c", "f10", "f100", "f9", "h", "z1"]
NATURAL = ["a", "B", "c", "f9", "f10", "f100", "G", "h", "Z", "z1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of each class, each class a brightness of its own."""
    for number, name in enumerate(NAMES):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (24 * number + 10 + i,) * 3).save(tmp_path / "in" / name / f"{i}.png")
    return tmp_path / "in"


def write_weights(path: Path, order: list[str], **records: Any) -> Path:
    """Weights of the tiny network that tell brightness, with outputs in this order."""
    torch.manual_seed(0)
    model = timm.create_model(TINY).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images = [Image.new("RGB", (32, 32), (24 * number + 12,) * 3) for number in range(len(NAMES))]
    with torch.inference_mode():
        centres = model.forward_head(
            model.forward_features(torch.stack([transform(image) for image in images])), pre_logits=True
        )
        head = model.get_classifier()
        assert isinstance(head, nn.Linear)
        for place, name in enumerate(order):  # the nearest centre has the highest score
            centre = centres[NAMES.index(name)] - centres.mean(0)
            head.weight[place] = 2 * centre
            head.bias[place] = -(centre @ centre) - 2 * centre @ centres.mean(0)
    torch.save({"state_dict": model.state_dict(), **records}, path)
    return path


@pytest.fixture
def measure(tmp_path: Path, data: Path) -> Callable[..., dict[str, Any]]:
    def run(order: list[str], options: dict[str, Any] | None = None, **records: Any) -> dict[str, Any]:
        weights = write_weights(tmp_path / "w.pth", order, **records)
        return evaluate(TINY, str(data), weights=weights, **(options or {})).to_json()

    return run


def test_the_orders_are_those_of_timm_and_torchvision(data: Path) -> None:
    by_timm = find_images_and_targets(str(data))[1]
    assert sort_names(NAMES, "natural") == sorted(by_timm, key=by_timm.__getitem__) == NATURAL
    assert sort_names(NAMES, "text") == ImageFolder(data).classes == TEXT


@pytest.mark.parametrize(("order", "name"), [(TEXT, "text"), (NATURAL, "natural")])
def test_an_order_is_followed_where_it_is_given(order: list[str], name: str, measure: Callable[..., dict[str, Any]]) -> None:
    found = measure(order, {"class_order": name})
    assert (found["top1"], found["class_order"], found["notes"]) == (100.0, name, [])
    assert [row["class"] for row in found["per_class"]] == order


def test_an_assumed_order_is_said_and_a_better_one_suggested(measure: Callable[..., dict[str, Any]]) -> None:
    found = measure(TEXT)
    assert (found["top1"], found["class_order"]) == (100.0, "assumed")
    assert found["notes"] == [
        "the weights do not name their classes, which are taken in text order (B, G, Z, …): if that is wrong,"
        " give --class-order natural (timm), or --classes FILE"
    ]
    found = measure(NATURAL)
    assert found["top1"] < 30
    assert "and would be 100.00 % if the outputs stood for these classes in another order" in found["notes"][1]


SHUFFLED = ["f10", "Z", "a", "f9", "B", "z1", "h", "c", "G", "f100"]


@pytest.mark.parametrize(
    "records",
    [
        {"class_to_idx": {name: number for number, name in enumerate(SHUFFLED)}},
        {"classes": SHUFFLED},
        {"hyper_parameters": {"lr": 0.1, "class_names": SHUFFLED}},
        {"meta": {"CLASSES": tuple(SHUFFLED)}},
        {"meta": {"dataset_meta": {"classes": SHUFFLED}}},
        {"names": dict(enumerate(SHUFFLED))},
        {"meta": {"categories": SHUFFLED}},
        {"config": {"id2label": {str(number): name for number, name in enumerate(SHUFFLED)}}},
    ],
)
def test_classes_in_the_checkpoint_are_followed(records: dict[str, Any], measure: Callable[..., dict[str, Any]]) -> None:
    found = measure(SHUFFLED, **records)
    assert (found["top1"], found["class_order"], found["notes"]) == (100.0, "weights", [])


@pytest.mark.parametrize("records", [{"classes": NAMES[:4]}, {"classes": ["a"] * 10}, {"classes": 5}, {"names": {}}])
def test_records_of_something_else_are_not(records: dict[str, Any], measure: Callable[..., dict[str, Any]]) -> None:
    assert measure(TEXT, **records)["class_order"] == "assumed"


@pytest.mark.parametrize(
    ("order", "name", "records"),
    [
        (NATURAL, "natural", {"arch": TINY, "args": argparse.Namespace(data_dir="x", class_map="")}),
        (NATURAL, "natural", {"arch": TINY, "args": {"data_dir": "x", "class_map": ""}}),
        (TEXT, "text", {"lr_scheduler": {}, "args": {"data_path": "x"}}),
    ],
)
def test_programs_are_known_by_what_they_save(
    order: list[str], name: str, records: dict[str, Any], measure: Callable[..., dict[str, Any]]
) -> None:
    found = measure(order, **records)
    assert (found["top1"], found["class_order"], found["notes"]) == (100.0, name, [])


def test_a_file_of_classes(tmp_path: Path, measure: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(SHUFFLED) + "\n")
    found = measure(SHUFFLED, {"classes": tmp_path / "classes.txt"}, classes=NAMES)
    assert (found["top1"], found["class_order"]) == (100.0, "file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "x\nb c\n10\n\n"),
        ("b.json", json.dumps(["x", "b c", 10])),
        ("c.json", json.dumps({"10": 2, "x": 0, "b c": 1})),
        ("d.json", json.dumps({"2": "10", "0": "x", "1": "b c"})),
        ("e.txt", "\ufeffx\r\nb c\r\n10"),
    ],
)
def test_files_of_classes(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_classes(tmp_path / name) == ["x", "b c", "10"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "give one class a line"),
        ("a.txt", "x\n\ny", "give one class a line"),
        ("a.txt", "x\nx", "no class twice"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", '{"x": 0, "y": 2}', "the number of each class"),
        ("a.json", '{"x": [0]}', "the number of each class"),
        ("a.txt", b"\xff", "'utf-8' codec can't decode"),
        ("none.txt", None, "No such file"),
    ],
)
def test_files_that_hold_no_classes(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=f"classes '.*{name}': .*{re.escape(message)}"):
        read_classes(tmp_path / name)


def test_a_file_that_contradicts_the_networks_own_classes_is_refused(tmp_path: Path, data: Path) -> None:
    model = timm.create_model(TINY)
    model.pretrained_cfg["label_names"] = TEXT
    loaded = load_network(model)
    (tmp_path / "classes.txt").write_text("\n".join(reversed(TEXT)))
    with pytest.raises(UsageError, match="classes '.*': the network has them in another order, which it names"):
        open_for_network(loaded, str(data), classes=tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("\n".join(TEXT))
    assert open_for_network(loaded, str(data), classes=tmp_path / "classes.txt").labelled.classes == TEXT


def test_an_order_beside_names_is_refused(tmp_path: Path, measure: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="class_order 'text': the classes are named by weights, in their order: leave it out"):
        measure(TEXT, {"class_order": "text"}, classes=TEXT)
    with pytest.raises(UsageError, match="class_order 'size': choose one of text, natural"):
        measure(TEXT, {"class_order": "size"})


@pytest.mark.parametrize(
    ("confusion", "best"),
    [
        ([[0, 9], [9, 1]], "94.74"),
        ([[9, 1], [2, 8]], None),  # right
        ([[5, 5], [5, 5]], None),  # guessing
        ([[1, 4], [4, 0]], None),  # too few images to tell
        (np.roll(np.eye(6, dtype=int) * 10, 1, axis=1), "100.00"),
    ],
)
def test_outputs_in_another_order(confusion: Any, best: str | None) -> None:
    note = describe_other_order(np.array(confusion))
    assert note is None if best is None else note is not None and f"would be {best} %" in note
