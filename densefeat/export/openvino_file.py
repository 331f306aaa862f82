"""OpenVINO IR: converted from what torch.export traced, run at float32 on the CPU."""

import json
from pathlib import Path
from typing import Any

import torch

from densefeat.export.check import Run
from densefeat.export.traced import Traced
from densefeat.features.engines.openvino import engine as backend


def _convert(traced: Traced, names: list[str], metadata: dict[str, Any]) -> Any:
    """OpenVINO's model; ``metadata`` is the entry ``densefeat`` of its ``rt_info``, as JSON."""
    openvino = backend.load()
    model = openvino.convert_model(traced.program)
    model.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(metadata), ["densefeat"])
    return model


def _save(converted: Any, path: Path) -> None:
    """``NAME.xml`` and ``NAME.bin``, float32."""
    backend.load().save_model(converted, path, compress_to_fp16=False)


def _open_file(path: Path) -> tuple[str, Run]:
    """The runtime's name and version, and the file in it."""
    openvino = backend.load()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = backend.core().compile_model(path, "CPU", settings)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        results = compiled(images.contiguous().numpy())
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return f"OpenVINO {openvino.__version__.partition('-')[0]} at f32", run
