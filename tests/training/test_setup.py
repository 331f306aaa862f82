"""Networks that training starts from."""

import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from densefeat import WeightsError
from densefeat.training.job import train
from densefeat.training.setup import TrainingSetup
from densefeat.training.world import World
from support.runs import tiny_recipe, write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(tiny_recipe(folder, epochs=0.5), folder / "run", "cpu")
    return folder / "run"


def start(folder: Path, weights: str | Path, **changes: object) -> dict[str, torch.Tensor]:
    """Return the network before the first step."""
    setup = TrainingSetup(tiny_recipe(folder, weights=weights, **changes))
    data = setup.open_data(World(0, 1, torch.device("cpu")), lambda _: None)
    return setup.make_model(len(data.labelled.classes)).state_dict()


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_weights_of_a_run_of_the_same_classes(run: Path, place: str, tmp_path: Path) -> None:
    state, saved = start(tmp_path, run / place), load_file(run / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in state.items())


@pytest.mark.parametrize("place", ["", "model.safetensors"])
@pytest.mark.parametrize("what", ["number", "names"])
def test_a_classifier_of_other_classes_is_left_out(
    run: Path, place: str, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, object] = {"data": "images"}
    for name in ("train", "val"):
        file = changes[name] = write_table(tmp_path / f"other-{name}.parquet", 66, classes=7 if what == "number" else 10)
        if what == "names":
            table = pq.read_table(file)
            text = table.schema.metadata[b"huggingface"].replace(b"class 9", b"another")
            pq.write_table(table.replace_schema_metadata({"huggingface": text}), file)
    with caplog.at_level(logging.INFO, "densefeat"):
        state = start(tmp_path, run / place, **changes)
    saved = load_file(run / "model.safetensors")
    assert {name for name, value in state.items() if not torch.equal(value, saved[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert len(state["classifier.bias"]) == (7 if what == "number" else 10)
    assert "of other classes left out" in caplog.text


def test_published_weights(tmp_path: Path) -> None:
    state = start(tmp_path, "published", model="densefeat_densenet_bc100_k12")
    fresh = start(tmp_path, "null", model="densefeat_densenet_bc100_k12")
    assert not torch.equal(state["features.conv0.weight"], fresh["features.conv0.weight"])
    published = timm.create_model("densefeat_densenet_bc100_k12", pretrained=True).state_dict()
    assert all(torch.equal(value, published[name]) for name, value in state.items() if "classifier" not in name)


@pytest.mark.parametrize(
    ("weights", "message"),
    [("nowhere.safetensors", "nowhere.safetensors"), ("published", "nobody has published weights")],
)
def test_weights_that_are_not_there(weights: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        start(tmp_path, weights)
