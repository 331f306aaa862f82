"""Graphs: networks of every family in every format, run in their own runtimes on other batches and sizes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from densefeat import FeatureExtractor
from densefeat.errors import OutputError, UsageError
from densefeat.export import export_model
from densefeat.export.staging import _move
from densefeat.nets.weights import state_sha256
from support.graphs import SUFFIX, read_metadata, run_file
from support.helpers import BUNDLED, randomize_statistics, relative_difference

FAMILIES = {  # structures of two and of more stages; tracing takes longer with each stage
    "densenet": ("densefeat_densenet121", dict(growth_rate=8), (3, 2), (2, 3, 2, 2)),
    "densenet-efficient": ("densefeat_densenet121", dict(growth_rate=4, memory_efficient=True), (2, 2), (2, 2, 2)),
    "densenet-cifar": ("densefeat_densenet40_k12", dict(growth_rate=4), (2, 2), (2, 2, 2)),
    "delugenet": ("densefeat_delugenet92", dict(block_widths=(4, 8, 8, 16)), (3, 2), (2, 3, 2, 2)),
    "delugenet-cifar": ("densefeat_delugenet146", dict(block_widths=(4, 8, 8), memory_efficient=True), (3, 2), (3, 2, 2)),
}
ONE_QUICK = ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in ("torch-export", "openvino"))]
QUICK = [("densenet", "onnx"), ("delugenet-cifar", "openvino")]
SLOW = [(family, to) for family in FAMILIES for to in SUFFIX if (family, to) not in QUICK]


def small(family: str, deep: bool = False, **arguments: Any) -> nn.Module:
    """A network of two stages, or of three or four, whose norms have statistics as a trained network's."""
    name, structure, short, long = FAMILIES[family]
    block_config = long if deep else short
    if "block_widths" in structure:
        structure = structure | {"block_widths": structure["block_widths"][: len(block_config)]}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, block_config=block_config, **structure, **arguments)
    return randomize_statistics(model).eval()


def make_images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def assert_same(outputs: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        assert outputs[name].shape == tuple(value.shape)
        assert relative_difference(outputs[name], value) < 1e-5, name


@pytest.mark.parametrize(("family", "to"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_features_of_any_batch_and_size(tmp_path: Path, family: str, to: str) -> None:
    model, path = small(family), tmp_path / f"network{SUFFIX[to]}"
    result = export_model(model, to, path)
    assert result.path == path
    assert max(result.differences.largest.values()) < 1e-5
    assert result.metadata["input"]["sizes"]["kind"] == "any"
    smallest = result.metadata["input"]["sizes"]["smallest"]
    plain = FeatureExtractor(model, device="cpu", backend="reference")
    for shape in [(2, smallest, smallest), (1, smallest + 3, smallest + 1), (3, 97, 131), (7, 64, 65), (33, 66, 70)]:
        images = make_images(*shape)
        assert_same(run_file(to, path, images), plain.forward(images))


def check_pixels(path: Path, make: Callable[[], Any], blocks: tuple[int, ...], to: str, photographs: list[Image.Image]) -> None:
    """Compare a graph that takes pixels with the extractor."""
    export_model(make(), to, path, input="pixels", pool=("avg", "gem:4"), blocks=blocks)
    extractor = FeatureExtractor(make(), device="cpu", backend="reference", pool=("avg", "gem:4"), blocks=blocks)
    geometry = extractor.preprocessing.geometry()
    pixels = torch.stack([geometry(photograph) for photograph in photographs]).permute(0, 2, 3, 1).contiguous()
    assert_same(run_file(to, path, pixels), extractor(photographs))


@pytest.mark.parametrize("to", ONE_QUICK)
def test_photographs_as_pixels(tmp_path: Path, to: str, photographs: list[Image.Image]) -> None:
    check_pixels(tmp_path / f"network{SUFFIX[to]}", lambda: small("densenet-cifar"), (2,), to, photographs)


@pytest.mark.slow
def test_photographs_as_pixels_by_the_bundled_network(tmp_path: Path, photographs: list[Image.Image]) -> None:
    check_pixels(tmp_path / "network.onnx", lambda: BUNDLED, (1, 3), "onnx", photographs)


@pytest.mark.slow
@pytest.mark.parametrize("to", ONE_QUICK)
def test_maps(tmp_path: Path, to: str) -> None:
    model = small("delugenet-cifar", deep=True)
    path = tmp_path / f"network{SUFFIX[to]}"
    export_model(model, to, path, outputs="maps", tap="raw", blocks="2,3", image_size=48)
    images = make_images(5, 70, 90)
    plain = FeatureExtractor(model, device="cpu", backend="reference", pool="none", tap="raw", blocks="2,3")
    assert_same(run_file(to, path, images), plain.forward(images))


@pytest.mark.parametrize("to", ONE_QUICK)
@pytest.mark.parametrize("family", [pytest.param("densenet", marks=pytest.mark.slow), "delugenet-cifar"])
def test_logits(tmp_path: Path, family: str, to: str) -> None:
    model = small(family)
    path = tmp_path / f"network{SUFFIX[to]}"
    export_model(model, to, path, outputs="logits")
    images = make_images(4, 70, 97)
    with torch.no_grad():
        assert_same(run_file(to, path, images), {"logits": model(images)})


@pytest.mark.parametrize("to", ONE_QUICK)
def test_metadata(tmp_path: Path, to: str) -> None:
    path = tmp_path / f"network{SUFFIX[to]}"
    result = export_model(BUNDLED, to, path, blocks=1, pool="max")
    facts = read_metadata(to, path)
    assert facts == result.metadata
    assert facts["model"] == f"{BUNDLED}.tin200"
    assert facts["weights"]["license"] == "apache-2.0"
    assert facts["preprocessing"]["size"] == 32
    assert facts["preprocessing"]["interpolation"] == "bicubic"
    assert facts["preprocessing"]["colour"] == "RGB"
    assert facts["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert "label_names" not in facts  # features are of no class
    assert facts["input"]["layout"] == "NCHW"
    assert facts["outputs"] == [{"name": "block1", "shape": ["batch", 216]}]
    assert (facts["kind"], facts["tap"], facts["pool"]) == ("features", "norm", ["max"])
    here = str(Path(__file__).parents[2]).encode()
    assert not [file for file in tmp_path.iterdir() if here in file.read_bytes()]


def test_onnx_names_its_dimensions_and_opset(tmp_path: Path) -> None:
    result = export_model(small("densenet"), "onnx", tmp_path / "network.onnx", outputs="maps")
    model = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert [output.name for output in model.graph.output] == ["block1", "block2"]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert result.metadata["opset"] == 18


@pytest.mark.slow
def test_only_the_layers_that_are_read(tmp_path: Path) -> None:
    """Weights of later blocks are no part of the files."""
    model = small("densenet")
    kept = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.startswith(("features.conv0", "features.norm0", "features.denseblock1", "features.transition1.norm"))
    )
    export_model(model, "onnx", tmp_path / "a.onnx", blocks=1)
    export_model(model, "torch-export", tmp_path / "a.pt2", blocks=1)
    program = torch.export.load(tmp_path / "a.pt2")
    assert sum(p.numel() for p in program.parameters()) == kept
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert sum(int(np.prod(each.dims)) for each in graph.initializer) < 1.5 * kept


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_unchanged(tmp_path: Path, training: bool) -> None:
    model = small("densenet-cifar").train(training)
    model.features.norm5.eval()
    before, modes = state_sha256(model), [module.training for module in model.modules()]
    export_model(model, "torch-export", tmp_path / "network.pt2", blocks=1)
    assert state_sha256(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    images = make_images(2, 32, 32)
    plain = FeatureExtractor(model, device="cpu", backend="reference", blocks=1)  # evaluates, whatever the mode
    assert_same(run_file("torch-export", tmp_path / "network.pt2", images), plain.forward(images))


class Unshuffled(nn.Module):
    """A network that takes multiples of 32 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "input_size": (3, 64, 64),
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        }
        self.feature_info = [dict(num_chs=8, reduction=32, module="conv")]
        self.conv = nn.Conv2d(3 * 32 * 32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pixel_unshuffle(x, 32)).mean((2, 3))


@pytest.mark.parametrize("to", SUFFIX)
def test_multiples_of_32_where_the_network_requires_them(tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    model = Unshuffled().eval()
    path = tmp_path / f"network{SUFFIX[to]}"
    assert export_model(model, to, path).metadata["input"]["sizes"] == {"kind": "multiples of 32", "smallest": 64}
    images = make_images(3, 96, 160)
    with torch.no_grad():
        assert_same(run_file(to, path, images), {"conv": model(images)})


@pytest.mark.slow
@pytest.mark.parametrize("to", ONE_QUICK)
def test_other_networks_of_timm(tmp_path: Path, to: str) -> None:
    """A transformer takes one size."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3).eval()
    path = tmp_path / f"network{SUFFIX[to]}"
    facts = export_model(model, to, path, image_size=64).metadata
    assert facts["input"]["sizes"] == {"kind": "fixed", "smallest": 64}
    assert facts["input"]["shape"] == ["batch", "3", "64", "64"]
    images = make_images(5, 64, 64)
    assert_same(run_file(to, path, images), FeatureExtractor(model, device="cpu").forward(images))


class Ranked(nn.Module):
    """A network with an operation that neither ONNX nor OpenVINO knows."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = Unshuffled().pretrained_cfg
        self.feature_info = [dict(num_chs=8, reduction=1, module="conv")]
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(self.conv(x).mean((2, 3))[:, :, None].expand(-1, -1, 8))


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_operation_that_a_format_does_not_know(tmp_path: Path, to: str) -> None:
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    with pytest.raises(OutputError, match=f"^Ranked cannot be written as {to} .*linalg_eigh") as raised:
        export_model(Ranked().eval(), to, tmp_path / f"network{SUFFIX[to]}", outputs="logits")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert (root.level, root.filters, root.handlers) == before  # a converter must not hide the warnings of others


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    with pytest.raises(UsageError, match=r"network.safetensors' exists: remove it"):
        export_model(small("densenet-cifar"), "safetensors", path, advance=lambda _: path.write_text("mine"))
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_all_files_or_none(tmp_path: Path) -> None:
    """The second file cannot be moved: a folder has its name, and no file replaces a folder."""
    paths, places = [tmp_path / name for name in ("a", "b")], [tmp_path / name for name in ("there", "there.bin")]
    for path in paths:
        path.write_text(path.name)
    places[0].mkdir()
    with pytest.raises(IsADirectoryError):
        _move(paths, places)
    assert not places[1].exists()
    assert places[0].is_dir()


@pytest.mark.parametrize("to", ONE_QUICK)
def test_nothing_is_left_of_a_file_that_computes_something_else(tmp_path: Path, to: str) -> None:
    """NaN equals nothing, not even itself."""
    model = small("densenet-cifar")
    model.features.conv0.weight.data[0] = float("nan")
    with pytest.raises(OutputError, match=r"block1 differs from the plain one's by nan.*nothing was written"):
        export_model(model, to, tmp_path / f"network{SUFFIX[to]}", pool="avg")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_stay(tmp_path: Path) -> None:
    (tmp_path / "network.bin").write_text("mine")
    with pytest.raises(UsageError, match=r"network.bin' exists: remove it"):
        export_model(BUNDLED, "openvino", tmp_path / "network.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["network.bin"]
    with pytest.raises(UsageError, match="there is no folder .*absent': make it first"):
        export_model(BUNDLED, "onnx", tmp_path / "absent/network.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(to="tflite"), "format 'tflite': choose one of onnx"),
        (dict(out="network.pb"), r"network.pb': give a name that ends in .onnx"),
        (dict(outputs="everything"), "outputs 'everything': choose one of features"),
        (dict(input="float16"), "input 'float16': choose one of float, pixels"),
        (dict(outputs="logits", blocks=2), "blocks and tap are for features and maps"),
        (dict(outputs="maps", pool="max"), "outputs 'maps': pool is for features"),
        (dict(pool="none"), "pool 'none': ask for outputs 'maps'"),
        (dict(pool="median"), "pool 'median': give one or more of"),
        (dict(blocks=9), "blocks 9: this network has 1 to 3"),
        (dict(image_size=8), "at least 32 pixels"),
        (dict(model="densefeat_densenet"), "unknown model 'densefeat_densenet'"),
        (dict(to="safetensors", out="a.safetensors", pool="max"), "format 'safetensors' is of weights alone"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = dict(model=BUNDLED, to="onnx", out="network.onnx") | arguments
    with pytest.raises(UsageError, match=message):
        export_model(**options | {"out": tmp_path / options["out"]})
    assert list(tmp_path.iterdir()) == []


def test_no_logits_without_a_classifier(tmp_path: Path) -> None:
    model = small("densenet-cifar")
    model.reset_classifier(0)
    with pytest.raises(UsageError, match="has no classifier: ask for features"):
        export_model(model, "onnx", tmp_path / "network.onnx", outputs="logits")


@pytest.mark.slow
def test_a_whole_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_statistics(timm.create_model("densefeat_densenet121")).eval()
    to, path = "onnx", tmp_path / "network.onnx"
    assert export_model(model, to, path).metadata["input"]["sizes"]["kind"] == "any"
    images = make_images(3, 97, 131)
    found, expected = run_file(to, path, images), FeatureExtractor(model, device="cpu", backend="reference").forward(images)
    assert list(found) == list(expected)
    assert max(relative_difference(found[key], value) for key, value in expected.items()) < 1e-4
