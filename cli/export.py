"""``densefeat export``."""

from typing import TYPE_CHECKING, Any

import click

from densefeat import base, export
from densefeat_cli.options import (
    blocks_option,
    epilog,
    image_size_option,
    model_argument,
    out_option,
    pool_option,
    tap_option,
    weights_option,
)
from densefeat_cli.output import print_line

if TYPE_CHECKING:
    from densefeat.export import Exported


@click.command(epilog=epilog("export densefeat_densenet_bc100_k12 --to onnx --out network.onnx"))
@model_argument
@click.option("--to", required=True, type=click.Choice(["onnx", "torch-export", "openvino", "safetensors", "hub-folder"]),
              help="Graphs: onnx, torch-export, openvino; weights alone: safetensors, hub-folder.")  # fmt: skip
@out_option("File (.onnx, .pt2, .xml, .safetensors) or folder to write; it must not exist.")
@click.option("--outputs", type=click.Choice(["features", "maps", "logits", "answer"]),
              help="Outputs of a graph: pooled features of blocks, their maps, the classifier's logits, or its scores, "
              "probabilities and label.  [default: answer of a probe or a detector, which have no other; logits of a run's "
              "folder, unless --blocks, --tap or --pool is given; else features]")  # fmt: skip
@blocks_option
@tap_option
@pool_option()
@click.option("--input", type=click.Choice(["float", "pixels"]), default="float", show_default=True,
              help="float: normalised (N, 3, H, W); pixels: resized uint8 (N, H, W, 3), normalised in the graph.")  # fmt: skip
@click.option("--ood/--no-ood", default=True, show_default=True,
              help="Whether a probe's graph tells outliers: that reads whole blocks, and so may need more layers.")  # fmt: skip
@click.option("--int8", is_flag=True, help="Quantise the convolutions of an onnx or openvino graph, by NNCF.")
@click.option("--calibration", metavar="IMAGES", help="Images like those to come, by which --int8 quantises.")
@click.option("--min-cosine", type=float, default=0.99, show_default=True, metavar="C",
              help="The least median cosine of each output in int8 to float32's, on some of these images.")  # fmt: skip
@weights_option
@image_size_option
def export_command(**options: Any) -> None:
    """Write MODEL, a name of `densefeat models`, any timm model, or a folder of a run, a probe or a detector, for another tool.

    A probe or a detector of anomalies becomes one graph, from images to its answer, without the layers that it does not need.
    The file is run in its own runtime on the pixels of photographs, and kept if its outputs are those of the plain network.
    """
    export.list_places(options["to"], options["out"])  # before anything is loaded
    with base.raise_on_sigterm(), base.progress_bar("exporting", export.STEPS, "steps") as advance:
        result = export.export_model(**options, advance=advance)
    for line in _format_result(result):
        print_line(line)


def _format_result(result: "Exported") -> list[str]:
    """Format lines on the file, on its input, and on how exact its outputs are."""
    facts, differences = result.metadata, result.differences
    outputs = [f"{output['name']} {'×'.join(map(str, output['shape']))}" for output in facts.get("outputs", [])]
    lines = [f"wrote {result.path}: {facts['model']}" + (f" ({', '.join(outputs)})" if outputs else "")]
    if "input" in facts:
        images = facts["input"]
        opset = f"; opset {facts['opset']}" if "opset" in facts else ""
        lines.append(f"input: {images['dtype']} {'×'.join(images['shape'])}, sizes: {_format_sizes(images['sizes'])}{opset}")
    if differences is None:
        cosines = export.describe_cosines(result.cosines or {})
        return [*lines, f"int8: calibrated on {facts['calibrated_on']} images; {cosines}"]
    largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.largest.items())
    measured = f"{differences.runtime}; images {', '.join(map(str, differences.batches))}"
    title = "largest difference from the plain network given the same pixels, relative to its largest value"
    return [*lines, f"{title}: {largest} ({measured})", *_format_savings(result)]


def _format_savings(result: "Exported") -> list[str]:
    """Format lines on the arithmetic of a probe's graph, and its speed."""
    arithmetic, speed = result.arithmetic, result.speed
    if arithmetic is None:
        return []
    whole, left = f"{arithmetic.network / 1e9:.4g} GMAC", f"{arithmetic.graph / 1e9:.4g} GMAC"
    share = f"{arithmetic.graph / arithmetic.network:.0%}"
    line = f"arithmetic of an image: {left} in the graph, {whole} in the whole network ({share})"
    if speed is None:
        return [f"{line}: the probe needs all its layers"]
    times = f"{1e3 * speed.graph / speed.images:.3g} ms an image against {1e3 * speed.network / speed.images:.3g} ms"
    rounds = f"medians of {speed.rounds} rounds in turn, {speed.images} images a pass"
    ratio = speed.network / speed.graph
    return [line, f"{ratio:.2f} times as fast as a graph of all blocks in {result.differences.runtime}: {times} ({rounds})"]


def _format_sizes(sizes: dict[str, Any]) -> str:
    kind, smallest = sizes["kind"], sizes["smallest"]
    return f"{smallest} by {smallest} alone" if kind == "fixed" else f"{kind}, from {smallest} pixels"
