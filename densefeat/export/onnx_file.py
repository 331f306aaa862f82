"""ONNX: written by torch's exporter, run by ONNX Runtime."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from densefeat.errors import UsageError
from densefeat.export.check import Run
from densefeat.export.traced import Traced

OPSET = 18  # the one that torch's translations are written in
_LARGEST = 2**31 - 2**24  # bytes of weights: a file of protobuf's ends at 2 GiB


def _convert(traced: Traced, names: list[str], metadata: dict[str, Any]) -> Any:
    """ONNX's model, weights within; ``metadata`` is the entry ``densefeat`` of its ``metadata_props``, as JSON.

    Raises UsageError for weights of more than 2 GiB.
    """
    import onnx

    weights = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
    if weights > _LARGEST:
        raise UsageError(f"{weights:,} bytes of weights: an ONNX file holds 2 GiB; choose torch-export or openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself: what it made is run and measured
        made: Any = torch.onnx.export(
            traced.program, (), dynamo=True, input_names=["images"], output_names=names, opset_version=OPSET, verbose=False
        )
    model = made.model_proto
    _name_dimensions(model.graph, traced.symbols)
    for node in model.graph.node:
        del node.metadata_props[:]  # torch's notes on where in the code each came from
    model.metadata_props.add(key="densefeat", value=json.dumps(metadata))
    model.producer_name = "densefeat"
    onnx.checker.check_model(model)
    return model


def _save(converted: Any, path: Path) -> None:
    path.write_bytes(converted.SerializeToString())


def _name_dimensions(graph: Any, symbols: dict[str, str]) -> None:
    """``batch``, ``height`` and ``width`` for torch's own letters; of values between, shapes are left to whoever reads."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in symbols:
                dimension.dim_param = symbols[dimension.dim_param]
            elif dimension.dim_param:  # a formula of the above
                dimension.ClearField("dim_param")


def _open_file(path: Path) -> tuple[str, Run]:
    """The runtime's name and version, and the file in it."""
    import onnxruntime

    opened = _session(path, onnxruntime)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in opened.run(None, {"images": images.contiguous().numpy()})]

    return f"ONNX Runtime {onnxruntime.__version__}", run


def _session(path: Path, onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
