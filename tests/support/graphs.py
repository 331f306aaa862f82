"""Exported graphs, run in their own runtimes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch

SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}


def run_file(to: str, path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Run an exported file without densefeat: outputs by name."""
    if to == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
    if to == "openvino":
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled({"images": images.numpy()})
        return {output.get_any_name(): results[output].copy() for output in compiled.outputs}
    with torch.no_grad():
        return {name: value.numpy() for name, value in torch.export.load(path).module()(images).items()}


def read_metadata(to: str, path: Path) -> dict[str, Any]:
    if to == "onnx":
        (entry,) = onnx.load(path).metadata_props
        assert entry.key == "densefeat"
        return json.loads(entry.value)
    if to == "openvino":
        return json.loads(openvino.Core().read_model(path).get_rt_info(["densefeat"]).astype(str))
    files = {"densefeat.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["densefeat.json"])
