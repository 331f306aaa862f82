"""The metadata of exported files, as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from densefeat.export.answer import ProbeAnswer
from densefeat.export.formats import OPSET
from densefeat.export.module import ExportedNet, Outputs
from densefeat.export.source import DetectorSource, ExportSource, ProbeSource
from densefeat.export.tracing import TracedNet
from densefeat.images import Preprocessing
from densefeat.version import __version__


def describe_network(source: ExportSource, preprocessing: Preprocessing, with_classes: bool = True) -> dict[str, Any]:
    """Describe the network, as all formats do. ``with_classes``: include the names of the classes, where they are known."""
    facts = {
        "made_by": f"densefeat {__version__}",
        "model": source.name,
        "weights": source.weights,
        "preprocessing": _describe_preprocessing(preprocessing),
    }
    names = source.loaded.classes if with_classes else None
    task = {"task": "multi"} if with_classes and source.loaded.task == "multi" else {}
    return facts | ({"label_names": names} if names else {}) | task


def describe_probe(source: ProbeSource, answer: ProbeAnswer) -> dict[str, Any]:
    """Describe a probe: its task and classes, its file, temperature, and the features that its head uses, side by side.

    ``features``: by column "all", or a list of the channels that they are of; None where they are made of several channels.
    """
    probe = source.probe
    protocol = probe.told.get("protocol")
    facts = {
        "file_sha256": source.sha256,
        "protocol": protocol.get("name") if isinstance(protocol, dict) else None,
        "columns": list(probe.columns),
        "temperature": answer.temperature,
        "features": None
        if answer.head.uses is None
        else {
            name: "all" if len(channels) == answer.widths[name] else channels.tolist()
            for name, channels in answer.head.uses.items()
        },
    }
    names = {"label_names": list(probe.classes)} if probe.classes else {}
    return names | {"task": probe.task, "probe": facts}


def describe_detector(source: DetectorSource) -> dict[str, Any]:
    """Describe a detector of anomalies: its file, its method, its threshold and the pixels between positions."""
    detector = source.detector
    facts = {
        "file_sha256": source.sha256,
        "method": detector.method,
        "threshold": detector.alarms.threshold,
        "false_alarms": detector.alarms.rate,
        "held_out": len(detector.alarms.held_out),
        "stride": detector.rule.stride,
    }
    return {"detector": facts}


def _describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Describe the preprocessing as numbers, as ``steps`` that start at an image file's pixels, and in words."""
    resize, crop, words = _describe_geometry(preprocessing)
    numbers = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    rule = preprocessing.pixels
    by, noted = ({}, "") if rule.keeps_photographs else ({"by": rule.to_json()}, ", by the rule in pixels")
    steps: list[dict[str, Any]] = [
        {"step": "upright", "by": "EXIF orientation"},
        {"step": "convert", "to": "RGB, 8 bits", "alpha": "over white", **by},
        {"step": "resize", **resize, "filter": preprocessing.interpolation, "antialias": True},
        {"step": "crop", "size": preprocessing.size, "offset": "(side - size) / 2, rounded half to even", **crop},
        {"step": "normalize", "divide_by": 255, **numbers},
    ]
    in_words = (
        f"turn upright by EXIF; RGB, transparency over white{noted}; resize {words} with Pillow's"
        f" antialiased {preprocessing.interpolation} filter; crop the central {preprocessing.size} by {preprocessing.size};"
        " (pixel / 255 - mean) / std"
    )
    own = {"colour": "RGB", "formula": "(pixel / 255 - mean) / std", "steps": steps, "in_words": in_words}
    return preprocessing.to_json() | own


def _describe_geometry(preprocessing: Preprocessing) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Describe the resize and the crop of timm's evaluation transform, and the resize in words."""
    scaled = math.floor(preprocessing.size / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        return {"height": scaled, "width": scaled}, {}, f"to {scaled} by {scaled}, whatever the shape,"
    if preprocessing.crop_mode == "border":
        fill = [round(255 * value) for value in preprocessing.mean]
        return (
            {"longer_side": scaled, "shorter_side": "rounded"},
            {"pad": fill},
            f"the longer side to {scaled}, pad with {fill},",
        )
    words = f"the shorter side to {scaled}, the longer in proportion, truncated,"
    return {"shorter_side": scaled, "longer_side": "truncated"}, {}, words


def describe_interface(to: str, net: ExportedNet, outputs: Outputs, traced: TracedNet) -> dict[str, Any]:
    """Describe the input and the outputs of a graph."""
    shapes = _read_output_shapes(traced)
    facts = {
        "input": _describe_input(net, traced),
        "outputs": [{"name": name, "shape": _describe_shape(shape)} for name, shape in zip(net.names, shapes, strict=True)],
        "kind": outputs.kind if net.answer is None else "answer",
    }
    if not outputs.by_classifier:
        facts |= {"tap": outputs.tap, "pool": list(net.pools)}
    return facts | ({"opset": OPSET} if to == "onnx" else {})


def _describe_input(net: ExportedNet, traced: TracedNet) -> dict[str, Any]:
    fixed = traced.sizes == "fixed"
    sides = [f"{traced.size}"] * 2 if fixed else ["height", "width"]
    return {
        "name": "images",
        "dtype": "uint8" if net.takes_pixels else "float32",
        "layout": "NHWC" if net.takes_pixels else "NCHW",
        "shape": ["batch", *sides, "3"] if net.takes_pixels else ["batch", "3", *sides],
        "sizes": {"kind": traced.sizes, "smallest": traced.size if fixed else traced.smallest},
        "preprocessing_in_graph": net.takes_pixels,
    }


def _read_output_shapes(traced: TracedNet) -> list[torch.Size]:
    values = {node.name: node.meta["val"] for node in traced.program.graph.nodes if "val" in node.meta}
    return [values[name].shape for name in traced.program.graph_signature.user_outputs]


def _describe_shape(shape: Sequence[Any]) -> list[int | str]:
    """Lengths by dimension: "batch" first, "open" where a length depends on the size of the images."""
    return ["batch", *(length if isinstance(length, int) else "open" for length in shape[1:])]
