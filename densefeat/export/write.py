"""A network as a file of another tool, measured against the plain network before it takes its place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

import densefeat.export.hub_folder as hub_folder
import densefeat.export.onnx_file as onnx_file
import densefeat.export.openvino_file as openvino_file
import densefeat.export.torch_file as torch_file
import densefeat.export.weights_file as weights_file
from densefeat.base import output_errors
from densefeat.errors import DensefeatError, OutputError, UsageError
from densefeat.export.check import Batch, Differences, measure
from densefeat.export.described import described, interface
from densefeat.export.module import ExportedNet, Outputs, reference
from densefeat.export.source import Source, load_source
from densefeat.export.staging import staged
from densefeat.export.traced import Traced, trace, trace_fixed
from densefeat.features import openvino_obstacle as missing_openvino
from densefeat.images import Preprocessing

_GRAPHS = {"onnx": onnx_file, "torch-export": torch_file, "openvino": openvino_file}
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml", "safetensors": ".safetensors", "hub-folder": ""}
_INPUTS = ("float", "pixels")
STEPS = 4  # that are told of


@dataclass(frozen=True)
class Exported:
    """What was written: ``path``, its ``metadata``, and how far its outputs are from the plain network's."""

    path: Path
    metadata: dict[str, Any]
    differences: Differences


def export_model(
    model: str | nn.Module,
    to: str,
    out: str | Path,
    outputs: str = "features",
    blocks: str | int | Sequence[int] = "all",
    tap: str = "norm",
    pool: str | Sequence[str] = "avg",
    weights: str | Path | None = None,
    image_size: int | None = None,
    input: str = "float",
    advance: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write a network to ``out``, run what was written in its own runtime, and keep it where it computes the same.

    - ``onnx``: one file (``.onnx``); ``openvino``: ``.xml`` and ``.bin`` beside it; ``torch-export``: ``.pt2``. The images
      are ``images``, the outputs have the names that :class:`densefeat.FeatureExtractor` gives them. Any number of images,
      and any size, multiples of 32, or one size, as the network lets it: ``metadata["input"]["sizes"]``, ``kind`` and
      ``smallest``.
    - ``safetensors``: the weights, for ``--weights`` and timm's ``checkpoint_path``.
    - ``hub-folder``: a folder as timm pushes it to the hub: ``config.json``, ``model.safetensors``, ``README.md``.

    All have preprocessing, provenance and outputs in their metadata, as JSON.

    Args:
        model: A name, a run's folder, or a network (which is copied).
        outputs: ``"features"``, pooled; ``"maps"``; ``"logits"``. This, and all that follows up to ``pool``, is for graphs.
        blocks, tap, pool, weights, image_size: As in :class:`densefeat.FeatureExtractor`.
        input: ``"float"``: normalised ``(N, 3, H, W)``, float32; ``"pixels"``: resized ``(N, H, W, 3)``, uint8, RGB.
        advance: Called after each of :data:`STEPS` steps, with 1.

    Raises:
        UsageError: Arguments that do not exist or fit; a package that is missing; ``out`` exists, or its folder does not.
        OutputError: It cannot be converted or written, or what was written computes something else: nothing is left.
    """
    out = Path(out)
    asked = Outputs(outputs, _asked_blocks(blocks), tap, pool if isinstance(pool, str) else tuple(pool))
    _check_arguments(to, out, asked, input)
    _check_installed(to)
    places = [out, out.with_suffix(".bin")] if to == "openvino" else [out]
    with staged(*places) as (path, *_), torch.no_grad():
        source = load_source(model, weights, with_head=to in _GRAPHS and outputs == "logits")
        preprocessing = Preprocessing.of(source.model, image_size)
        advance(1)
        if to in _GRAPHS:
            metadata, differences = _write_graph(to, source, preprocessing, asked, input, path, out, advance)
        else:
            metadata, differences = _write_weights(to, source, preprocessing, path, out, advance)
        advance(1)
    return Exported(out, metadata, differences)


def _asked_blocks(blocks: str | int | Sequence[int]) -> str | int | tuple[int, ...]:
    return blocks if isinstance(blocks, str | int) else tuple(blocks)


def _check_arguments(to: str, out: Path, asked: Outputs, input: str) -> None:
    """Raise UsageError for what can be told before any work."""
    if to not in _SUFFIXES:
        raise UsageError(f"format {to!r}: choose one of {', '.join(_SUFFIXES)}")
    if input not in _INPUTS:
        raise UsageError(f"input {input!r}: choose one of {', '.join(_INPUTS)}")
    if not out.name or (_SUFFIXES[to] and out.suffix != _SUFFIXES[to]):
        raise UsageError(f"output {str(out)!r}: give a name{' that ends in ' * bool(_SUFFIXES[to])}{_SUFFIXES[to]}")
    if to not in _GRAPHS and (asked, input) != (Outputs(), "float"):
        raise UsageError(
            f"format {to!r} is of weights alone: outputs, blocks, tap, pool and input are for {', '.join(_GRAPHS)}"
        )
    asked.check()


def _check_installed(to: str) -> None:
    """Raise UsageError naming what to install."""
    packages = ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ()
    if absent := [package for package in packages if find_spec(package) is None]:
        raise UsageError(f"format {to!r} needs {', '.join(absent)}: pip install 'densefeat[export]'")
    if to == "openvino" and (reason := missing_openvino()):
        raise UsageError(f"format {to!r}: {reason}")


def _write_graph(
    to: str,
    source: Source,
    preprocessing: Preprocessing,
    asked: Outputs,
    input: str,
    path: Path,
    out: Path,
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], Differences]:
    """To ``path``, for errors to name ``out``."""
    net = ExportedNet(source.model, asked, preprocessing if input == "pixels" else None).eval()
    given = (lambda pixels: pixels) if input == "pixels" else partial(_prepared, preprocessing)
    plain = reference(source.model, asked)

    def made(traced: Traced) -> tuple[dict[str, Any], Differences]:
        metadata = described(source, preprocessing, asked.kind == "logits") | interface(to, net, asked, traced)
        with _told_as_one_line(to, source):
            converted = _GRAPHS[to].convert(traced, net.names, metadata)
            with output_errors(out):
                _GRAPHS[to].save(converted, path)
            runtime, run = _GRAPHS[to].open_file(path)
            return metadata, measure(runtime, run, lambda x: plain(_prepared(preprocessing, x)), given, traced.batches())

    traced = trace(net, given, preprocessing.size)
    advance(1)
    try:
        results = made(traced)
    except OutputError as error:  # some converters know no open sizes, or make constants of what depends on them
        if traced.sizes == "fixed" or isinstance(error.__cause__, OSError):
            raise
        results = made(trace_fixed(net, given, preprocessing.size))
    advance(1)
    return results


@contextmanager
def _told_as_one_line(to: str, source: Source) -> Iterator[None]:
    """Whatever a converter or a runtime says, as OutputError."""
    try:
        yield
    except DensefeatError:
        raise
    except Exception as error:  # in types of their own
        first: BaseException = error
        while first.__cause__ is not None:  # torch's exporter wraps it in advice
            first = first.__cause__
        reason = shorten(str(first), 300) or "no message"
        raise OutputError(f"{source.name} cannot be written as {to} ({type(first).__name__}: {reason})") from error


def _write_weights(
    to: str, source: Source, preprocessing: Preprocessing, path: Path, out: Path, advance: Callable[[int], None]
) -> tuple[dict[str, Any], Differences]:
    metadata = described(source, preprocessing)
    if to == "hub-folder":
        hub_folder._check_made_by_timm(source)
        with _told_as_one_line(to, source), output_errors(out):
            path.mkdir()
            hub_folder._write(source, preprocessing, path, metadata)
        advance(1)
        runtime, run = hub_folder._open_folder(path)
    else:
        with _told_as_one_line(to, source), output_errors(out):
            weights_file._write_described(source.model, path, metadata)
        advance(1)
        runtime, run = weights_file._open_file(source.model, path)
    advance(1)
    given = partial(_prepared, preprocessing)
    batches = [Batch(count, preprocessing.size, preprocessing.size) for count in (1, 3)]
    return metadata, measure(runtime, run, lambda x: {"output": source.model(given(x))}, given, batches)


def _prepared(preprocessing: Preprocessing, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 ``(N, H, W, 3)`` to normalised ``(N, 3, H, W)``, float32, as FeatureExtractor does."""
    return preprocessing.normalize(pixels.permute(0, 3, 1, 2).contiguous())
