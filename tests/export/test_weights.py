"""Weights and folders for the hub, read again by densefeat, timm and the hub's own client; runs as sources."""

import json
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch import nn

import densefeat
from densefeat.errors import UsageError, WeightsError
from densefeat.export import export_model
from densefeat.export.metadata import describe_network
from densefeat.export.source import load_source
from densefeat.heads.modules import HeadedNet
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.transforms import Preprocessing
from densefeat.loading.load import load_network
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED, randomize_statistics

STRUCTURE = dict(growth_rate=4, block_config=(2, 2))
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomize_statistics(timm.create_model("densefeat_densenet40_k12", num_classes=3, **STRUCTURE)).eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_safetensors_read_again(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "network.safetensors"
    result = export_model(model, "safetensors", path)
    assert result.differences.largest == {"output": 0.0}
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["densefeat"]) == result.metadata
        assert set(file.keys()) == set(model.state_dict())
    ours = timm.create_model("densefeat_densenet40_k12", num_classes=3, **STRUCTURE).eval()
    densefeat.load_weights(ours, path)
    timms = timm.create_model("densefeat_densenet40_k12", num_classes=3, checkpoint_path=str(path), **STRUCTURE).eval()
    with torch.no_grad():
        assert torch.equal(ours(images()), model(images()))
        assert torch.equal(timms(images()), model(images()))


@pytest.mark.parametrize("to", ["safetensors", "hub-folder"])
def test_damage_of_exported_weights_is_noticed(to: str, tmp_path: Path) -> None:
    out = tmp_path / ("w.safetensors" if to == "safetensors" else "hub")
    export_model(BUNDLED, to, out)
    file = out / "model.safetensors" if out.is_dir() else out
    data = file.read_bytes()
    file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(WeightsError, match="safetensors: damaged, or changed by another program"):
        load_network(str(out)) if out.is_dir() else load_network(BUNDLED, out)
    if out.is_dir():
        (out / "config.json").write_text((out / "config.json").read_text().replace("0.485", "0.495"))
        with pytest.raises(WeightsError, match="config.json': damaged"):
            load_network(str(out))


def test_weights_of_the_bundled_network(tmp_path: Path, trained: nn.Module) -> None:
    """--weights takes them. The licence is recorded for published weights and not for a file."""
    first = export_model(BUNDLED, "safetensors", tmp_path / "a.safetensors").metadata["weights"]
    second = export_model(BUNDLED, "safetensors", tmp_path / "b.safetensors", weights=tmp_path / "a.safetensors").metadata[
        "weights"
    ]
    assert first["license"] == "apache-2.0"
    assert second["license"] is None
    assert second["source"] == "a.safetensors"  # without this machine's folders
    assert load_network(BUNDLED, tmp_path / "b.safetensors").classes == load_network(BUNDLED).classes
    extractor = densefeat.FeatureExtractor(BUNDLED, weights=tmp_path / "b.safetensors", device="cpu", backend="reference")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in extractor.model.state_dict().items())


def test_hub_folder(tmp_path: Path, trained: nn.Module) -> None:
    folder = tmp_path / "network"
    result = export_model(BUNDLED, "hub-folder", folder, image_size=48)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert result.differences.largest == {"output": 0.0}
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images()), trained(images()))
    assert Preprocessing.for_model(loaded) == Preprocessing.for_model(trained, 48)
    assert densefeat.FeatureExtractor(str(folder), device="cpu").preprocessing.size == 48
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == BUNDLED
    assert config["num_classes"] == 200
    assert config["densefeat"] == result.metadata
    assert config["label_names"] == load_network(BUNDLED).classes
    assert config["label_names"][0] == "n01443537"
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["zh-plus/tiny-imagenet"]
    assert "27.66 %" in card.content  # recorded with the weights
    assert "scores = model(" in card.content
    assert "from a clone of its repository: pip install -e ." in card.content
    assert str(Path(__file__).parents[2]) not in card.content


def test_a_card_has_no_figure_that_nobody_recorded(tmp_path: Path, model: nn.Module) -> None:
    export_model(model, "hub-folder", tmp_path / "network")
    card = ModelCard.load(tmp_path / "network/README.md")
    assert card.data.license is None
    assert card.data.datasets is None
    assert card.data.metrics is None
    assert "not recorded; settle it before this is published" in card.text
    assert "## Results" not in card.text
    loaded = timm.create_model(f"local-dir:{tmp_path / 'network'}", pretrained=True).eval()  # its structure is in config.json
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))


def test_a_run_is_exported_with_its_results_and_classes(tmp_path: Path, model: nn.Module) -> None:
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).export(model, Preprocessing.for_model(model), CLASSES, "single")
    RunFolder(run).write("results.json", {"test": {"images": 50, "top1": 71.5, "top5": 100.0}, "step": 8})
    export_model(str(run), "hub-folder", tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub/README.md")
    assert "| test | 50 | 71.50 | 100.00 |" in card.text
    assert card.data.metrics == ["accuracy"]
    assert json.loads((tmp_path / "hub/config.json").read_text())["label_names"] == CLASSES
    assert str(tmp_path) not in card.content
    facts = export_model(str(run), "onnx", tmp_path / "run.onnx").metadata
    assert facts["label_names"] == CLASSES
    assert facts["weights"]["source"] == "run/model.safetensors"
    assert (facts["kind"], facts["outputs"]) == ("logits", [{"name": "logits", "shape": ["batch", 3]}])
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        (logits,) = session.run(["logits"], {"images": images().numpy()})
        assert torch.allclose(torch.from_numpy(logits), model(images()), atol=1e-5)


@pytest.mark.parametrize("rule", [PixelRule("p1:p99", icc="ignore", bounds=((3.0, 900.0),)), PixelRule()])
def test_the_pixel_rule_of_a_run_is_exported(tmp_path: Path, model: nn.Module, rule: PixelRule) -> None:
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).export(model, Preprocessing.for_model(model, pixels=rule), CLASSES, "single")
    facts = export_model(str(run), "hub-folder", tmp_path / "hub").metadata["preprocessing"]
    assert ("by" in facts["steps"][1], "by the rule" in facts["in_words"]) == (rule != PixelRule(),) * 2
    export_model(str(run), "safetensors", tmp_path / "run.safetensors")
    loaded = timm.create_model("densefeat_densenet40_k12", num_classes=3, **STRUCTURE).eval()
    densefeat.load_weights(loaded, tmp_path / "run.safetensors")
    for network in (load_network(str(run)).model, load_network(str(tmp_path / "hub")).model, loaded):
        assert Preprocessing.for_model(network).pixels == rule


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"blocks": "2"}, ["block2"]),
        ({"tap": "raw"}, ["block1", "block2"]),
        ({"pool": "max"}, ["block1", "block2"]),
        ({"outputs": "features"}, ["block1", "block2"]),
    ],
)
def test_features_of_a_run_are_there_for_the_asking(tmp_path: Path, model: nn.Module, wanted: dict, names: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).export(model, Preprocessing.for_model(model), CLASSES, "single")
    facts = export_model(str(run), "torch-export", tmp_path / "run.pt2", **wanted).metadata
    assert [output["name"] for output in facts["outputs"]] == names
    assert facts["kind"] == "features"


@pytest.fixture
def headed_run(tmp_path: Path, model: nn.Module) -> Path:
    """The run of a network with a cross-layer head."""
    model.reset_classifier(0)
    torch.manual_seed(1)
    whole = HeadedNet(model, "cross-layer", 16, 3).eval()
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).export(whole, Preprocessing.for_model(whole), CLASSES, "single")
    return run


def test_weights_of_a_run_with_a_head_of_ours(tmp_path: Path, model: nn.Module, headed_run: Path) -> None:
    """timm gets the network without the head, to which the run's figures and classes do not apply."""
    RunFolder(headed_run).write("results.json", {"test": {"images": 50, "top1": 71.5}, "step": 8})
    metadata = export_model(str(headed_run), "hub-folder", tmp_path / "hub").metadata
    card = ModelCard.load(tmp_path / "hub/README.md")
    assert "## Results" not in card.text
    assert card.data.metrics is None
    assert "features = model(" in card.text
    assert "scores" not in card.text
    assert "label_names" not in metadata
    assert "label_names" not in json.loads((tmp_path / "hub/config.json").read_text())
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(images()), model.forward_features(images()))


def test_metadata_of_logits_have_class_names() -> None:
    source = load_source(BUNDLED, None, head=True)
    facts = describe_network(source, Preprocessing.for_model(source.model), with_classes=True)
    assert facts["label_names"] == load_network(BUNDLED).classes
    assert "label_names" not in describe_network(source, Preprocessing.for_model(source.model), with_classes=False)


@pytest.mark.slow
def test_one_size_where_the_converter_needs_it(tmp_path: Path, headed_run: Path) -> None:
    """OpenVINO cannot express a size that is the smaller of two."""
    result = export_model(str(headed_run), "openvino", tmp_path / "run.xml", outputs="logits")
    assert result.metadata["input"]["sizes"] == {"kind": "fixed", "smallest": 32}
    assert result.metadata["label_names"] == CLASSES
    assert result.differences.largest["logits"] < 1e-5
    assert sorted(path.name for path in tmp_path.glob("run.*")) == ["run.bin", "run.xml"]


@pytest.mark.slow
def test_logits_of_a_run_with_a_head_of_ours(tmp_path: Path, headed_run: Path) -> None:
    export_model(str(headed_run), "onnx", tmp_path / "run.onnx", outputs="logits")
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = densefeat.load_run(headed_run)(images())
    assert torch.allclose(torch.from_numpy(session.run(None, {"images": images().numpy()})[0]), expected, atol=1e-5)


def test_a_network_that_timm_cannot_make(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder for the hub is of a network that timm makes by name"):
        export_model(nn.Sequential(nn.Conv2d(3, 4, 3)), "hub-folder", tmp_path / "network")
    assert list(tmp_path.iterdir()) == []
