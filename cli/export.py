"""``densefeat export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from densefeat.export import Exported


@click.command(epilog="Example: densefeat export densefeat_densenet_bc100_k12 --to onnx --out network.onnx")
@click.argument("model")
@click.option("--to", required=True, type=click.Choice(["onnx", "torch-export", "openvino", "safetensors", "hub-folder"]),
              help="Graphs: onnx, torch-export, openvino; weights alone: safetensors, hub-folder.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="File (.onnx, .pt2, .xml, .safetensors) or folder to write; it must not exist.")  # fmt: skip
@click.option("--outputs", type=click.Choice(["features", "maps", "logits"]), default="features", show_default=True,
              help="Of a graph: pooled features of blocks, their maps, or the classifier's.")  # fmt: skip
@click.option("--blocks", default="all", show_default=True, help="Blocks by number, as in 2,4.")
@click.option("--tap", type=click.Choice(["norm", "raw"]), default="norm", show_default=True,
              help="norm: what the next stage reads; raw: the block's own output.")  # fmt: skip
@click.option("--pool", default="avg", show_default=True,
              help="avg, max, gem (gem:P for another power than 3); or several: avg,max.")  # fmt: skip
@click.option("--input", type=click.Choice(["float", "pixels"]), default="float", show_default=True,
              help="float: normalised (N, 3, H, W); pixels: resized uint8 (N, H, W, 3), normalised in the graph.")  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint file instead of the published weights.")
@click.option("--image-size", type=int,
              help="Pixels of the square input; with open sizes, of the preprocessing alone.  "
                   "[default: the weights' own]")  # fmt: skip
def export(**options: Any) -> None:
    """MODEL, a name of `densefeat models`, any timm model or a run's folder, as a file of another tool.

    What was written is run in its own runtime on photographs' pixels, and kept where its outputs are the plain network's.
    """
    from densefeat.base import progress_bar, raise_on_sigterm
    from densefeat.export import STEPS, export_model

    with raise_on_sigterm(), progress_bar("exporting", STEPS, "steps") as advance:
        result = export_model(**options, advance=advance)
    for line in _told(result):
        click.echo(line)


def _told(result: "Exported") -> list[str]:
    """What was written, how it is to be used, and how exact it is."""
    facts, differences = result.metadata, result.differences
    outputs = [f"{output['name']} {'×'.join(map(str, output['shape']))}" for output in facts.get("outputs", [])]
    lines = [f"wrote {result.path}: {facts['model']}" + (f" ({', '.join(outputs)})" if outputs else "")]
    if "input" in facts:
        images = facts["input"]
        opset = f"; opset {facts['opset']}" if "opset" in facts else ""
        lines.append(f"input: {images['dtype']} {'×'.join(images['shape'])}, sizes: {_sizes_told(images['sizes'])}{opset}")
    largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.largest.items())
    batches = ", ".join(map(str, differences.batches))
    measured = f"{differences.runtime}; images {batches}"
    what = "largest difference from the plain network given the same pixels, relative to its largest value"
    return [*lines, f"{what}: {largest} ({measured})"]


def _sizes_told(sizes: dict[str, Any]) -> str:
    kind, smallest = sizes["kind"], sizes["smallest"]
    return f"{smallest} by {smallest} alone" if kind == "fixed" else f"{kind}, from {smallest} pixels"
