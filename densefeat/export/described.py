"""What the metadata of every format say, as JSON."""

from collections.abc import Sequence
from typing import Any

import torch

from densefeat.export.module import ExportedNet, Outputs
from densefeat.export.onnx_file import OPSET
from densefeat.export.source import Source
from densefeat.export.traced import Traced
from densefeat.images.transforms import Preprocessing
from densefeat.version import __version__


def described(source: Source, preprocessing: Preprocessing) -> dict[str, Any]:
    """What every format's metadata have."""
    steps = {"colour": "RGB", "formula": "(pixel / 255 - mean) / std"}
    facts = {
        "made_by": f"densefeat {__version__}",
        "model": source.name,
        "weights": source.weights,
        "preprocessing": preprocessing.to_json() | steps,
    }
    names = source.config.get("label_names")
    return facts | ({"label_names": list(names)} if names else {})


def interface(to: str, net: ExportedNet, asked: Outputs, traced: Traced) -> dict[str, Any]:
    """A graph's input and outputs, in words."""
    shapes = output_shapes(traced)
    facts = {
        "input": input_facts(net, traced),
        "outputs": [{"name": name, "shape": shape_in_words(shape)} for name, shape in zip(net.names, shapes, strict=True)],
        "kind": asked.kind,
    }
    if asked.kind != "logits":
        facts |= {"tap": asked.tap, "pool": list(net.pools)}
    return facts | ({"opset": OPSET} if to == "onnx" else {})


def input_facts(net: ExportedNet, traced: Traced) -> dict[str, Any]:
    fixed = traced.sizes == "fixed"
    sides = [f"{traced.size}"] * 2 if fixed else ["height", "width"]
    return {
        "name": "images",
        "dtype": "uint8" if net.takes_pixels else "float32",
        "layout": "NHWC" if net.takes_pixels else "NCHW",
        "shape": ["batch", *sides, "3"] if net.takes_pixels else ["batch", "3", *sides],
        "sizes": f"{traced.size} by {traced.size}" if fixed else f"{traced.sizes}, from {traced.smallest} pixels",
        "preprocessing_in_graph": net.takes_pixels,
    }


def output_shapes(traced: Traced) -> list[torch.Size]:
    values = {node.name: node.meta["val"] for node in traced.program.graph.nodes if "val" in node.meta}
    return [values[name].shape for name in traced.program.graph_signature.user_outputs]


def shape_in_words(shape: Sequence[Any]) -> list[int | str]:
    """Lengths, the first being the batch; what depends on the images' size stays open."""
    return ["batch", *(length if isinstance(length, int) else "open" for length in shape[1:])]
