"""Graphs in int8: quantised by NNCF on images of the user's, and compared with the plain network on others of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from densefeat.base import count_usable_cores
from densefeat.errors import DensefeatError, UsageError
from densefeat.export.check import Runner
from densefeat.extraction import HELD_OUT, Decoding, choose_for_int8, count_for_int8
from densefeat.features import check_nncf, quantize_convolutions
from densefeat.images import Preprocessing, open_source

FORMATS = ("onnx", "openvino")
_FEWEST = 8  # images to calibrate on
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Int8:
    """What a graph in int8 is made by: images uint8 ``(N, H, W, 3)`` to calibrate on, and others to compare on.

    ``min_cosine``: of each output to the plain network's, the least median.
    """

    images: torch.Tensor
    held_out: torch.Tensor
    min_cosine: float

    def quantize(self, to: str, model: Any, to_input: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """Quantise the convolutions of a converted model.

        An OpenVINO model takes one image at a time from then on, and can be reshaped to another fixed number: its CPU plugin
        computes int8 wrongly where any length is open (2026.4).
        """
        inputs = [image.contiguous().numpy() for image in to_input(self.images).split(1)]
        if to == "openvino":
            model.reshape(list(inputs[0].shape))
            return quantize_convolutions(model, {node.get_type_name() for node in model.get_ops()}, inputs)
        types = {node.op_type for node in model.graph.node}
        return quantize_convolutions(model, types, [{"images": image} for image in inputs])

    def describe(self, to: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return what changes in a graph's metadata."""
        facts: dict[str, Any] = {"precision": "int8", "calibrated_on": len(self.images)}
        if to == "openvino":
            facts["input"] = metadata["input"] | {"shape": ["1", *metadata["input"]["shape"][1:]]}
            facts["outputs"] = [output | {"shape": [1, *output["shape"][1:]]} for output in metadata["outputs"]]
        return facts

    def compare(
        self,
        run: Runner,
        plain: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        to_input: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, tuple[float, float]]:
        """Run a file on the images held out: for each output the median and the least cosine to the plain network's.

        Raises DensefeatError where a median is below ``min_cosine``.
        """
        parts: dict[str, list[torch.Tensor]] = {}
        for pixels in self.held_out.split(1):
            for (name, expected), output in zip(plain(pixels).items(), run(to_input(pixels)), strict=True):
                parts.setdefault(name, []).append(torch.cosine_similarity(output.flatten(1), expected.flatten(1)))
        found = {name: torch.cat(values) for name, values in parts.items()}
        cosines = {name: (float(values.median()), float(values.min())) for name, values in found.items()}
        worst = min(cosines, key=lambda name: cosines[name])
        if not cosines[worst][0] >= self.min_cosine:
            raise DensefeatError(
                f"int8: {describe_cosines(cosines)}: {worst} is below --min-cosine {self.min_cosine:g}: export without --int8,"
                " or name images for --calibration that are more like those to come"
            )
        return cosines


def describe_cosines(cosines: dict[str, tuple[float, float]]) -> str:
    """Format the cosines of :meth:`Int8.compare`."""
    told = ", ".join(f"{name} {median:.4f} ({least:.4f})" for name, (median, least) in cosines.items())
    return f"cosine to the plain network, median (least): {told}"


def check_int8_arguments(to: str, int8: bool, calibration: str | Path | None, min_cosine: float, learnt: str | None) -> None:
    """Raise UsageError for arguments that do not go together. ``learnt``: "probe" or "detector", if the model is one."""
    if not int8:
        if calibration is not None:
            raise UsageError("--calibration is for --int8: give that, too")
        return
    if to not in FORMATS:
        raise UsageError(f"--int8 is for {' and '.join(FORMATS)}, not {to}")
    if learnt is not None:
        raise UsageError(f"--int8 is for networks, and this is a {learnt}: its graph is float32")
    if calibration is None:
        raise UsageError("--int8 needs images like those to come: name them by --calibration")
    if not 0 <= min_cosine <= 1:
        raise UsageError(f"min cosine {min_cosine}: give a number from 0 to 1")
    check_nncf()


def read_int8_images(place: str | Path, preprocessing: Preprocessing, min_cosine: float) -> Int8:
    """Read images to calibrate on, chosen evenly, and others to compare on. Raises UsageError where they are too few."""
    sample = choose_for_int8(str(place), open_source(place), count_for_int8(preprocessing) + HELD_OUT)
    decoding = Decoding(preprocessing.geometry(), rule=preprocessing.pixels)
    (_, images), (_, held_out) = (part.read_pixels(decoding, count_usable_cores()) for part in sample.split(HELD_OUT))
    if len(images) < _FEWEST or not len(held_out):
        raise UsageError(
            f"{len(images)} images of {str(place)!r} can be read to calibrate int8 on, and {len(held_out)} to compare: at least"
            f" {_FEWEST} and 1 are needed"
        )
    _log.info("int8: calibrating on %d images of %s", len(images), place)
    images, held_out = (pixels.permute(0, 2, 3, 1).contiguous() for pixels in (images, held_out))
    return Int8(images, held_out, min_cosine)
