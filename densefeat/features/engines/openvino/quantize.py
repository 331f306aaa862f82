"""Calibration by NNCF: a folded network as a graph whose convolutions read int8, by the values that some images lead to."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from densefeat.errors import BackendError
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.finite import find_broken_blocks
from densefeat.features.engines.folded import FoldedNetwork
from densefeat.features.engines.quantized import QuantizedNetwork

_FLOATS = {  # norms, pools, sums and classifiers stay in float32: their types in OpenVINO, and in ONNX
    "Add", "Multiply", "AvgPool", "MaxPool", "ReduceMean", "Concat", "BatchNormInference", "MatMul",
    "Mul", "AveragePool", "GlobalAveragePool", "BatchNormalization", "Gemm",
}  # fmt: skip


def check_nncf() -> None:
    """Raise BackendError where networks cannot be calibrated here; using one that is calibrated needs OpenVINO alone."""
    if importlib.util.find_spec("nncf") is None:
        raise BackendError("precision 'int8' is calibrated by NNCF, which is not installed: pip install 'densefeat[int8]'")


def quantize_network(network: FoldedNetwork, spec: EngineSpec, images: Sequence[torch.Tensor]) -> QuantizedNetwork:
    """Quantise the convolutions: weights by channel, what they read by the range that it takes on ``images``.

    Args:
        network: The folded network.
        spec: The blocks and the tap.
        images: Normalised, float32 ``(1, C, H, W)`` each.

    Raises:
        BackendError: NNCF is not installed, or a weight is NaN or infinite.
    """
    check_nncf()
    if any(find_broken_blocks(network, spec)):
        raise BackendError("precision 'int8': the network has weights that are not finite")
    from densefeat.features.engines.openvino.graph import build_graph  # imports openvino

    with _silence():
        import openvino

        model = build_graph(network, spec).make_model(True, True, images[0].shape)
        types = {node.get_type_name() for node in model.get_ops()}
        quantized = quantize_convolutions(model, types, [image.contiguous().numpy() for image in images])
        with TemporaryDirectory() as folder:
            file = Path(folder, "network.xml")
            openvino.save_model(quantized, file, compress_to_fp16=False)
            return QuantizedNetwork(file.read_bytes(), file.with_suffix(".bin").read_bytes())


def quantize_convolutions(model: Any, types: set[str], inputs: Sequence[Any]) -> Any:
    """Quantise the convolutions of a model of OpenVINO or ONNX, by NNCF, and return the new model.

    ``types``: of all its nodes. ``inputs``: as its runtime takes them, each of one image.
    """
    with _silence():
        import nncf

        scope = nncf.IgnoredScope(types=sorted(_FLOATS & types))
        return nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs), ignored_scope=scope)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep NNCF's progress bars and remarks, and one of torch's that it brings about, off the terminal."""
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
