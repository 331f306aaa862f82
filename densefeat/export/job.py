"""Export a network to a file of another tool, and measure the file against the plain network before it is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from densefeat.base import output_errors
from densefeat.errors import DensefeatError, OutputError, UsageError
from densefeat.export.check import BatchShape, Differences, measure_differences
from densefeat.export.formats import GRAPHS, WEIGHTS_FORMATS, check_hub_source, check_installed
from densefeat.export.metadata import describe_interface, describe_network
from densefeat.export.module import ExportedNet, Outputs, make_reference
from densefeat.export.source import ExportSource, load_source
from densefeat.export.staging import list_places, stage_files
from densefeat.export.tracing import TracedNet, trace, trace_fixed
from densefeat.images import Preprocessing
from densefeat.loading import is_run_folder

_FORMATS = GRAPHS | WEIGHTS_FORMATS
_INPUTS = ("float", "pixels")
STEPS = 4  # number of calls of ``advance``


@dataclass(frozen=True)
class Exported:
    """The result of an export: ``path``, its ``metadata``, and how far its outputs differ from the plain network's."""

    path: Path
    metadata: dict[str, Any]
    differences: Differences


def export_model(
    model: str | nn.Module,
    to: str,
    out: str | Path,
    outputs: str | None = None,
    blocks: str | int | Sequence[int] = "all",
    tap: str = "norm",
    pool: str | Sequence[str] = "avg",
    weights: str | Path | None = None,
    image_size: int | None = None,
    input: str = "float",
    advance: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write a network to ``out``, run the file in its own runtime, and keep it if it computes the same.

    - ``onnx``: one file (``.onnx``); ``openvino``: ``.xml`` and ``.bin`` beside it; ``torch-export``: ``.pt2``. The images
      are ``images``, the outputs have the names that :class:`densefeat.FeatureExtractor` gives them. Any number of images,
      and any size, multiples of 32, or one size, as the network allows: ``metadata["input"]["sizes"]``, ``kind`` and
      ``smallest``.
    - ``safetensors``: the weights, for ``--weights`` and timm's ``checkpoint_path``.
    - ``hub-folder``: a folder as timm pushes it to the hub: ``config.json``, ``model.safetensors``, ``README.md``.

    All contain preprocessing, provenance and outputs as JSON in their metadata.

    Args:
        model: A name, a run's folder, or a module (which is copied).
        outputs: ``"features"``, pooled; ``"maps"``; ``"logits"``. None: logits of a run's folder, unless blocks, tap or pool
            are given, and features of other networks. Outputs, blocks, tap, pool and input apply to graphs.
        blocks, tap, pool, weights, image_size: As in :class:`densefeat.FeatureExtractor`.
        input: ``"float"``: normalised ``(N, 3, H, W)``, float32; ``"pixels"``: resized ``(N, H, W, 3)``, uint8, RGB.
        advance: Called after each of :data:`STEPS` steps, with 1.

    Raises:
        UsageError: Arguments that are unknown or do not fit; a missing package; ``out`` exists, or its folder does not.
        OutputError: The network cannot be converted or written, or the file computes something else. Nothing is left.
    """
    out = Path(out)
    blocks = blocks if isinstance(blocks, str | int) else tuple(blocks)
    wanted = Outputs(outputs or "features", blocks, tap, pool if isinstance(pool, str) else tuple(pool))
    if outputs is None and to in GRAPHS and wanted == Outputs() and isinstance(model, str) and is_run_folder(model):
        wanted = Outputs("logits")
    _check_arguments(to, wanted, input)
    places = list_places(to, out)
    check_installed(to)
    with stage_files(*places) as (path, *_), torch.no_grad():
        source = load_source(model, weights, head=to in GRAPHS and wanted.kind == "logits")
        preprocessing = Preprocessing.for_model(source.model, image_size)
        advance(1)
        if to in GRAPHS:
            metadata, differences = _write_graph(to, source, preprocessing, wanted, input, path, out, advance)
        else:
            metadata, differences = _write_weights(to, source, preprocessing, path, out, advance)
        advance(1)
    return Exported(out, metadata, differences)


def _check_arguments(to: str, outputs: Outputs, input: str) -> None:
    """Raise UsageError for every mistake that shows before the network is loaded."""
    if to not in _FORMATS:
        raise UsageError(f"format {to!r}: choose one of {', '.join(_FORMATS)}")
    if input not in _INPUTS:
        raise UsageError(f"input {input!r}: choose one of {', '.join(_INPUTS)}")
    if to in WEIGHTS_FORMATS and (outputs, input) != (Outputs(), "float"):
        raise UsageError(f"format {to!r} is of weights alone: outputs, blocks, tap, pool and input are for {', '.join(GRAPHS)}")
    outputs.check()


def _write_graph(
    to: str,
    source: ExportSource,
    preprocessing: Preprocessing,
    outputs: Outputs,
    input: str,
    path: Path,
    out: Path,
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], Differences]:
    """Trace, convert and write a network to ``path``, and measure the file; errors name ``out``."""
    net = ExportedNet(source.model, outputs, preprocessing if input == "pixels" else None).eval()
    normalize = partial(_normalize_pixels, preprocessing)
    to_input = (lambda pixels: pixels) if input == "pixels" else normalize
    reference = make_reference(source.model, outputs)
    shared_metadata = describe_network(source, preprocessing, with_classes=outputs.kind == "logits")

    def convert_and_measure(traced: TracedNet) -> tuple[dict[str, Any], Differences]:
        metadata = shared_metadata | describe_interface(to, net, outputs, traced)
        with _converter_errors(to, source):
            converted = GRAPHS[to].convert(traced, net.names, metadata)
            with output_errors(out):
                GRAPHS[to].save(converted, path)
            runtime, run = GRAPHS[to].open(path)
            return metadata, measure_differences(runtime, run, lambda x: reference(normalize(x)), to_input, traced.batches())

    traced = trace(net, to_input, preprocessing.size)
    advance(1)
    try:
        results = convert_and_measure(traced)
    except OutputError as error:  # some converters do not support variable sizes, or turn what depends on them into constants
        if traced.sizes == "fixed" or isinstance(error.__cause__, OSError):
            raise
        results = convert_and_measure(trace_fixed(net, to_input, preprocessing.size))
    advance(1)
    return results


def _write_weights(
    to: str, source: ExportSource, preprocessing: Preprocessing, path: Path, out: Path, advance: Callable[[int], None]
) -> tuple[dict[str, Any], Differences]:
    """Write a network's tensors to ``path``, and measure the network that they are loaded into; errors name ``out``."""
    if to == "hub-folder":
        check_hub_source(source)
    metadata = describe_network(source, preprocessing)
    with _converter_errors(to, source), output_errors(out):
        WEIGHTS_FORMATS[to].write(source, preprocessing, metadata, path)
    advance(1)
    runtime, run = WEIGHTS_FORMATS[to].open(source, path)
    advance(1)
    normalize = partial(_normalize_pixels, preprocessing)
    batches = [BatchShape(count, preprocessing.size, preprocessing.size) for count in (1, 3)]
    return metadata, measure_differences(runtime, run, lambda x: {"output": source.model(normalize(x))}, normalize, batches)


def _normalize_pixels(preprocessing: Preprocessing, pixels: torch.Tensor) -> torch.Tensor:
    """Turn uint8 ``(N, H, W, 3)`` into normalised ``(N, 3, H, W)``, float32, as in FeatureExtractor."""
    return preprocessing.normalize(pixels.permute(0, 3, 1, 2).contiguous())


@contextmanager
def _converter_errors(to: str, source: ExportSource) -> Iterator[None]:
    """Turn whatever a converter or a runtime raises into an OutputError of one line."""
    try:
        yield
    except DensefeatError:
        raise
    except Exception as error:  # converters raise errors of many types
        first: BaseException = error
        while first.__cause__ is not None:  # torch's exporter wraps the reason in advice
            first = first.__cause__
        reason = shorten(str(first), 300) or "no message"
        raise OutputError(f"{source.name} cannot be written as {to} ({type(first).__name__}: {reason})") from error
