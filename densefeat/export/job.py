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
from densefeat.export.answer import Answer
from densefeat.export.check import BatchShape, Differences, Runner, measure_differences
from densefeat.export.formats import GRAPHS, WEIGHTS_FORMATS, check_hub_source, check_installed
from densefeat.export.int8 import Int8, check_int8_arguments, read_int8_images
from densefeat.export.metadata import describe_interface, describe_network
from densefeat.export.module import ExportedNet, Outputs
from densefeat.export.plan import GraphPlan, check_learnt_arguments, find_learnt, plan_learnt, plan_network
from densefeat.export.savings import Arithmetic, Speed, compare_speed
from densefeat.export.source import ExportSource, load_source
from densefeat.export.staging import ask_system, list_places, stage_files
from densefeat.export.tracing import TracedNet, trace, trace_fixed
from densefeat.images import Preprocessing
from densefeat.loading import is_run_folder
from densefeat.nets import count_flops

_FORMATS = GRAPHS | WEIGHTS_FORMATS
_INPUTS = ("float", "pixels")
_CUT = 0.99  # a graph of less arithmetic than this share of the network's is compared with it
_ANSWERED = 16  # pieces of photographs whose labels are compared
_TIMED = 8  # images a pass where speeds are compared
STEPS = 4  # number of calls of ``advance``


@dataclass(frozen=True)
class Exported:
    """The result of an export: ``path``, its ``metadata``, and how far its outputs differ from the plain network's.

    ``arithmetic``: of a probe's network, whole and cut. ``speed``: of both, measured where cutting left less to compute.
    ``cosines``, in place of ``differences``, of a graph in int8: of each output to the plain network's, median and least.
    """

    path: Path
    metadata: dict[str, Any]
    differences: Differences | None
    arithmetic: Arithmetic | None = None
    speed: Speed | None = None
    cosines: dict[str, tuple[float, float]] | None = None


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
    ood: bool = True,
    int8: bool = False,
    calibration: str | Path | None = None,
    min_cosine: float = 0.99,
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

    A probe becomes one graph from images to its answer: its network, cut after the last layer that it reads, pooling, and its
    head. So does a detector of anomalies: ``score``, ``p_value``, ``anomalous`` and ``distances``, see
    :class:`densefeat.anomaly.Detector`. Both graphs take images of the recorded size alone.

    Args:
        model: A name, a run's folder, a module (which is copied), or the folder or file of a probe or a detector.
        outputs: ``"features"``, pooled; ``"maps"``; ``"logits"``; ``"answer"``: scores, probabilities and label. None: the
            answer of a probe or a detector, which have no other outputs; logits of a run's folder, unless blocks, tap or pool
            are given; features of other networks. Outputs, blocks, tap, pool and input apply to graphs.
        blocks, tap, pool, weights, image_size: As in :class:`densefeat.FeatureExtractor`. Probes and detectors record
            all but the weights.
        input: ``"float"``: normalised ``(N, 3, H, W)``, float32; ``"pixels"``: resized ``(N, H, W, 3)``, uint8, RGB.
        ood: Whether the graph of a probe tells outliers, if the probe does: without that fewer layers may be needed.
        int8: Whether the convolutions of an ONNX or OpenVINO graph read int8. It then takes images of one size, and of OpenVINO
            one image at a time.
        calibration: Images like those to come, by which they are quantised; a fifth of them, up to 64, are compared.
        min_cosine: The least median cosine, on these, of each output to the plain network's.
        advance: Called after each of :data:`STEPS` steps, with 1.

    Raises:
        UsageError: Arguments that are unknown or do not fit; a missing package; ``out`` exists, or its folder does not.
        OutputError: The network cannot be converted or written, or the file computes something else. Nothing is left.
        DensefeatError: int8 differs from the plain network by more than ``min_cosine`` allows. Nothing is left.
        BackendError: NNCF, which quantises, is not installed.
    """
    out = Path(out)
    blocks = blocks if isinstance(blocks, str | int) else tuple(blocks)
    wanted = Outputs(outputs or "features", blocks, tap, pool if isinstance(pool, str) else tuple(pool))
    learnt = None if isinstance(model, nn.Module) else find_learnt(model)
    if learnt is not None:
        check_learnt_arguments(learnt.kind, to in GRAPHS, wanted, outputs, image_size)
    if not ood and (learnt is None or learnt.kind != "probe"):
        raise UsageError("--no-ood: only the graph of a probe tells outliers, and this is no probe: leave that out")
    if outputs is None and to in GRAPHS and wanted == Outputs() and isinstance(model, str) and is_run_folder(model):
        wanted = Outputs("logits")
    _check_arguments(to, wanted, input)
    check_int8_arguments(to, int8, calibration, min_cosine, learnt.kind if learnt else None)
    places = list_places(to, out)
    check_installed(to)
    with stage_files(*places) as (path, *_), torch.no_grad():
        plan: GraphPlan | None = None
        if learnt is not None:
            plan = plan_learnt(learnt, weights, ood)
            source, preprocessing = plan.source, plan.preprocessing
        else:
            source = load_source(model, weights, head=to in GRAPHS and wanted.by_classifier)
            preprocessing = Preprocessing.for_model(source.model, image_size)
        _check_channels(source, preprocessing)
        images = None if calibration is None else read_int8_images(calibration, preprocessing, min_cosine)
        advance(1)
        if to in GRAPHS:
            plan = plan or plan_network(source, preprocessing, wanted)
            exported = _write_graph(_GraphWriter(to, plan, input == "pixels", path, out, images), advance)
        else:
            exported = _write_weights(to, source, preprocessing, path, out, advance)
        advance(1)
    return exported


def _check_arguments(to: str, outputs: Outputs, input: str) -> None:
    """Raise UsageError for every mistake that shows before the network is loaded."""
    if to not in _FORMATS:
        raise UsageError(f"format {to!r}: choose one of {', '.join(_FORMATS)}")
    if input not in _INPUTS:
        raise UsageError(f"input {input!r}: choose one of {', '.join(_INPUTS)}")
    if to in WEIGHTS_FORMATS and (outputs, input) != (Outputs(), "float"):
        raise UsageError(f"format {to!r} is of weights alone: outputs, blocks, tap, pool and input are for {', '.join(GRAPHS)}")
    outputs.check()


def _check_channels(source: ExportSource, preprocessing: Preprocessing) -> None:
    if preprocessing.pixels.floating:
        raise UsageError(f"{source.name} reads {preprocessing.pixels.in_chans} channels: only networks of three are exported")


@dataclass(frozen=True)
class _GraphWriter:
    """What writing a planned graph needs. ``path``: where it is written; errors name ``out``; ``int8``: None for float32."""

    to: str
    plan: GraphPlan
    takes_pixels: bool
    path: Path
    out: Path
    int8: Int8 | None

    def make_net(self, outputs: Outputs, answer: Answer | None = None) -> ExportedNet:
        preprocessing = self.plan.preprocessing if self.takes_pixels else None
        return ExportedNet(self.plan.source.model, outputs, preprocessing, answer).eval()

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return _normalize_pixels(self.plan.preprocessing, pixels)

    def to_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 ``(N, H, W, 3)`` into images as the graph takes them."""
        return pixels if self.takes_pixels else self.normalize(pixels)

    def compute(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs by the plain network."""
        return self.plan.reference(self.normalize(pixels))

    def make_batch(self, count: int) -> torch.Tensor:
        return BatchShape(count, self.plan.preprocessing.size, self.plan.preprocessing.size).pixels()

    def write(self, traced: TracedNet, names: list[str], metadata: dict[str, Any], path: Path) -> tuple[str, Runner]:
        """Write a graph; return its runtime and a function that runs it."""
        with _converter_errors(self.to, self.plan.source):
            converted = GRAPHS[self.to].convert(traced, names, metadata)
            if self.int8 is not None:
                converted = self.int8.quantize(self.to, converted, self.to_input)
            with output_errors(self.out), ask_system(path.parent):
                GRAPHS[self.to].save(converted, path)
            return GRAPHS[self.to].open(path)

    def export(self, net: ExportedNet, traced: TracedNet) -> Exported:
        """Write the graph, and measure it against the plain network."""
        metadata = self.plan.facts | describe_interface(self.to, net, self.plan.outputs, traced)
        if self.int8 is not None:
            metadata |= self.int8.describe(self.to, metadata)
        runtime, run = self.write(traced, net.names, metadata, self.path)
        if self.int8 is not None:
            with _converter_errors(self.to, self.plan.source):
                cosines = self.int8.compare(run, self.compute, self.to_input)
            return Exported(self.out, metadata, None, cosines=cosines)
        size = self.plan.preprocessing.size
        batches = [*traced.batches(), *([BatchShape(_ANSWERED, size, size)] if self.plan.has_learnt else [])]
        steps = {} if self.plan.answer is None else self.plan.answer.steps
        with _converter_errors(self.to, self.plan.source):
            differences = measure_differences(runtime, run, self.compute, self.to_input, batches, steps)
        if not self.plan.of_probe:
            return Exported(self.out, metadata, differences)
        arithmetic = self.count_arithmetic(traced)
        speed = self.compare_speed(run) if arithmetic.graph < _CUT * arithmetic.network else None
        return Exported(self.out, metadata, differences, arithmetic, speed)

    def count_arithmetic(self, traced: TracedNet) -> Arithmetic:
        one, graph = self.make_batch(1), traced.program.module()
        whole = count_flops(partial(self.plan.source.model, self.normalize(one)))
        return Arithmetic(whole // 2, count_flops(partial(graph, self.to_input(one))) // 2)

    def compare_speed(self, run: Runner) -> Speed:
        """Compare a file with one of the whole network, which is written beside it for that."""
        whole = self.make_net(self.plan.whole())
        traced = trace_fixed(whole, self.to_input, self.plan.preprocessing.size)
        _, run_whole = self.write(traced, whole.names, {}, self.path.with_stem(f"{self.path.stem}-whole"))
        return compare_speed(run_whole, run, self.to_input(self.make_batch(_TIMED)))


def _write_graph(writer: _GraphWriter, advance: Callable[[int], None]) -> Exported:
    """Trace, convert and write a network, and measure the file."""
    plan = writer.plan
    net = writer.make_net(plan.outputs, plan.answer)
    size = plan.preprocessing.size
    traced = (trace_fixed if plan.has_learnt or writer.int8 else trace)(net, writer.to_input, size)
    advance(1)
    try:
        exported = writer.export(net, traced)
    except OutputError as error:  # some converters do not support variable sizes, or turn what depends on them into constants
        if traced.sizes == "fixed" or isinstance(error.__cause__, OSError):
            raise
        exported = writer.export(net, trace_fixed(net, writer.to_input, size))
    advance(1)
    return exported


def _write_weights(
    to: str, source: ExportSource, preprocessing: Preprocessing, path: Path, out: Path, advance: Callable[[int], None]
) -> Exported:
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
    differences = measure_differences(runtime, run, lambda x: {"output": source.model(normalize(x))}, normalize, batches)
    return Exported(out, metadata, differences)


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
