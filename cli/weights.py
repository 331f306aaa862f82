"""``densefeat weights``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat import evaluation, loading
from densefeat_cli.options import OUTPUT_TYPE, PATH_TYPE, ModelName, epilog
from densefeat_cli.output import print_line

if TYPE_CHECKING:
    from densefeat.loading import ConvertedWeights

_MAKERS = ("torchxrayvision", "radimagenet", "radimagenet-keras", "andreasveit", "bamos")


class _Numbers(click.ParamType):
    """Numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(map(float, value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0.5 or 0.485,0.456,0.406", param, ctx)


@click.group(epilog=epilog("weights convert model_best.pth.tar --out densenet.safetensors"))
def weights_command() -> None:
    """Take over the weights of other programs."""


@weights_command.command(
    epilog=epilog(
        "weights convert xrv.pt --out xrv.safetensors",
        "weights convert DenseNet121.pt --out rin.safetensors --made-by radimagenet",
    )
)
@click.argument("file", type=PATH_TYPE)
@click.option("--out", type=OUTPUT_TYPE, required=True, help="File to write, .safetensors; it must not exist.")
@click.option("--model", type=ModelName(), help="The network's name.  [default: the one of `densefeat models` that fits]")
@click.option(
    "--made-by", type=click.Choice(_MAKERS), help="Whose weights these are, where the file does not show it, for their images."
)
@click.option("--mean", type=_Numbers(), help="Mean of pixels scaled to 0..1, one number for each channel.")
@click.option("--std", type=_Numbers(), help="Their deviation, likewise.")
@click.option("--classes", type=PATH_TYPE, metavar="FILE",
              help="The classes in the order of the outputs: one a line, or .json.")  # fmt: skip
def convert(file: Path, classes: Path | None, **options: Any) -> None:
    """Write the weights in FILE as safetensors that say what they expect of images, so that --weights needs no other option.

    FILE is a checkpoint of torch, safetensors or Keras, of any layout in the documentation's table. Nothing in it is run.
    """
    names = evaluation.read_classes(classes) if classes is not None else None
    print_line(_format_result(loading.convert_weights(file, classes=names, **options)))


def _format_result(result: "ConvertedWeights") -> str:
    facts = result.metadata["preprocessing"]
    mean, std = (",".join(f"{value:.5g}" for value in facts[name]) for name in ("mean", "std"))
    channels = f"{len(facts['mean'])} channel{'s' * (len(facts['mean']) > 1)}"
    outputs = f"{result.num_classes} classes" if result.num_classes else "no classifier"
    source = f"stated by {result.stated_by}" if result.stated_by else "of the network's published weights: the file states none"
    return (
        f"wrote {result.path}: {result.metadata['model']}, {channels}, {outputs}; {facts['size']} pixels, mean {mean},"
        f" std {std} ({source})"
    )
