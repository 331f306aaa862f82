"""The formats of exported networks: how each is written and opened.

Graph formats hold a traced network and run in a runtime of their own. Weights formats hold tensors, which densefeat or timm
load into the network that they build.
"""

import copy
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from densefeat.base import save_tensors
from densefeat.errors import UsageError
from densefeat.export.card import format_card
from densefeat.export.check import Runner
from densefeat.export.source import ExportSource
from densefeat.export.tracing import TracedNet
from densefeat.features import convert_program, find_openvino_obstacle, get_openvino_core
from densefeat.images import Preprocessing
from densefeat.loading import CONFIG, WEIGHTS, write_config
from densefeat.nets import load_weights

OPSET = 18  # the opset in which torch's exporter writes its translations
_MAX_ONNX = 2**31 - 2**24  # bytes of weights: a protobuf file holds at most 2 GiB
_TORCH_METADATA = "densefeat.json"  # name of the extra file in torch.export's archive


@dataclass(frozen=True)
class GraphFormat:
    """A format for traced networks.

    ``convert``: traced network, output names and metadata to the converter's model. ``save``: that model to a path. ``open``:
    a path to the runtime's name with version, and a function that runs the file.
    """

    convert: Callable[[TracedNet, list[str], dict[str, Any]], Any]
    save: Callable[[Any, Path], None]
    open: Callable[[Path], tuple[str, Runner]]


@dataclass(frozen=True)
class WeightsFormat:
    """A format for a network's tensors. ``write``: network, preprocessing and metadata to a path; ``open``: as in graphs."""

    write: Callable[[ExportSource, Preprocessing, dict[str, Any], Path], None]
    open: Callable[[ExportSource, Path], tuple[str, Runner]]


def check_installed(to: str) -> None:
    """Raise UsageError, which says what to install, where a format's packages are missing."""
    packages = ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ()
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UsageError(f"format {to!r} needs {', '.join(missing)}: pip install 'densefeat[export]'")
    if to == "openvino" and (reason := find_openvino_obstacle()):
        raise UsageError(f"format {to!r}: {reason}")


def _convert_to_onnx(traced: TracedNet, names: list[str], metadata: dict[str, Any]) -> Any:
    """Make an ONNX model that contains its weights, with ``metadata`` as JSON in the entry ``densefeat`` of ``metadata_props``.

    Raises UsageError for weights of more than 2 GiB.
    """
    import onnx  # an optional package

    weights = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
    if weights > _MAX_ONNX:
        raise UsageError(f"{weights:,} bytes of weights: an ONNX file holds 2 GiB; choose torch-export or openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own code; the result is run and measured
        exported: Any = torch.onnx.export(
            traced.program, (), dynamo=True, input_names=["images"], output_names=names, opset_version=OPSET, verbose=False
        )
    model = exported.model_proto
    _name_dimensions(model.graph, traced.symbols)
    for node in model.graph.node:
        del node.metadata_props[:]  # torch's notes on the source lines, with paths of this machine
    model.metadata_props.add(key="densefeat", value=json.dumps(metadata))
    model.producer_name = "densefeat"
    onnx.checker.check_model(model)
    return model


def _name_dimensions(graph: Any, symbols: dict[str, str]) -> None:
    """Replace torch's symbols by ``batch``, ``height`` and ``width``, and drop the shapes of values in between."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in symbols:
                dimension.dim_param = symbols[dimension.dim_param]
            elif dimension.dim_param:  # a formula of the symbols
                dimension.ClearField("dim_param")


def _save_onnx(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _open_onnx(path: Path) -> tuple[str, Runner]:
    import onnxruntime  # an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.contiguous().numpy()})]

    return f"ONNX Runtime {onnxruntime.__version__}", run


def _convert_to_torch(traced: TracedNet, names: list[str], metadata: dict[str, Any]) -> tuple[Any, str]:  # noqa: ARG001
    """Return torch.export's program, whose outputs are a dict by name, and its metadata as JSON."""
    return traced.program, json.dumps(metadata)


def _save_torch(converted: tuple[Any, str], path: Path) -> None:
    program, metadata = converted
    content = io.BytesIO()  # torch's own errors of writing do not say what is wrong
    torch.export.save(program, content, extra_files={_TORCH_METADATA: metadata})
    path.write_bytes(content.getbuffer())


def _open_torch(path: Path) -> tuple[str, Runner]:
    """Reading such a file can run code: open only what this process has written."""
    module = torch.export.load(path).module()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(module(images).values())

    return f"torch {torch.__version__}", run


def _convert_to_openvino(traced: TracedNet, names: list[str], metadata: dict[str, Any]) -> Any:
    """Make an OpenVINO model with ``metadata`` as JSON in the entry ``densefeat`` of its ``rt_info``."""
    model = convert_program(traced.program)
    model.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(metadata), ["densefeat"])
    return model


def _save_openvino(model: Any, path: Path) -> None:
    """Write ``NAME.xml`` and ``NAME.bin``, float32."""
    import openvino  # an optional package

    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path) -> tuple[str, Runner]:
    import openvino  # an optional package

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = get_openvino_core().compile_model(path, "CPU", settings)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        results = compiled(images.contiguous().numpy())
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return f"OpenVINO {openvino.__version__.partition('-')[0]} at f32", run


def _save_tensors(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    save_tensors(save_file, tensors, path, metadata)


def _write_safetensors(source: ExportSource, preprocessing: Preprocessing, metadata: dict[str, Any], path: Path) -> None:  # noqa: ARG001
    """Write the state dict under the names that densefeat and timm read.

    ``metadata`` is the entry ``densefeat``, as JSON. Class names are also the entry ``classes``, where the loader reads them.
    """
    names = metadata.get("label_names")
    entries = {"densefeat": json.dumps(metadata)} | ({"classes": json.dumps(names)} if names else {})
    _save_tensors(source.model, path, entries)


def _open_safetensors(source: ExportSource, path: Path) -> tuple[str, Runner]:
    """Load the file into a copy of the network whose tensors are all zero."""
    blank = copy.deepcopy(source.model)
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.zero_()
    load_weights(blank, path)
    return f"safetensors {safetensors.__version__}, read by densefeat.load_weights", lambda images: [blank(images)]


def _write_hub_folder(source: ExportSource, preprocessing: Preprocessing, metadata: dict[str, Any], folder: Path) -> None:
    """Write a folder as timm's repositories on the Hugging Face hub are: configuration, weights, model card.

    ``metadata`` is the entry ``densefeat`` of ``config.json``.
    """
    folder.mkdir()
    facts = preprocessing.to_json()
    size, _ = facts.pop("size"), facts.pop("pixels")  # which timm knows nothing of; ``metadata`` has it
    config: dict[str, Any] = {"densefeat": metadata}
    if names := source.loaded.classes:
        config["label_names"] = names
    write_config(
        folder / CONFIG, source.model, config, data_config=facts | {"input_size": (preprocessing.pixels.in_chans, size, size)}
    )
    _save_tensors(source.model, folder / WEIGHTS, {"format": "pt"})  # transformers requires that entry
    (folder / "README.md").write_text(format_card(source, preprocessing, metadata), encoding="utf-8")


def _open_hub_folder(_: ExportSource, folder: Path) -> tuple[str, Runner]:
    """Let timm make the network of the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return f"timm {timm.__version__}", lambda images: [model(images)]


def check_hub_source(source: ExportSource) -> None:
    """Raise UsageError for a network that timm could not make from a folder."""
    if not source.config.get("architecture") or not hasattr(source.model, "num_features"):
        raise UsageError(f"{source.name}: a folder for the hub is of a network that timm makes by name: choose safetensors")


GRAPHS = {
    "onnx": GraphFormat(_convert_to_onnx, _save_onnx, _open_onnx),
    "torch-export": GraphFormat(_convert_to_torch, _save_torch, _open_torch),
    "openvino": GraphFormat(_convert_to_openvino, _save_openvino, _open_openvino),
}
WEIGHTS_FORMATS = {
    "safetensors": WeightsFormat(_write_safetensors, _open_safetensors),
    "hub-folder": WeightsFormat(_write_hub_folder, _open_hub_folder),
}
