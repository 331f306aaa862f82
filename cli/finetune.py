"""``densefeat finetune``."""

import json
from pathlib import Path

import click

from densefeat import finetuning, training
from densefeat_cli.options import (
    ImageInput,
    base_option,
    epilog,
    fitted_stats_option,
    image_size_option,
    in_chans_option,
    label_column_option,
    labelled_option,
    minutes_option,
    model_option,
    out_option,
    rule_options,
    steps_option,
    training_device_option,
    weights_option,
)
from densefeat_cli.output import print_line


@click.command(epilog=epilog("finetune --data photos/ --model densefeat_densenet_bc100_k12 --out runs/photos"))
@labelled_option(purpose="Labelled images, or a folder with train/, val/ and test/ of such")
@click.option("--val", type=ImageInput(), help="Validation images, likewise.  [default: DATA/val, or a fifth of each class]")
@click.option(
    "--test", type=ImageInput(), help="Images to score once at the end, likewise.  [default: DATA/test, if there is one]"
)
@model_option(note="  [default: the recipe's]")
@weights_option
@out_option("Folder to write: the run.")
@click.option("--recipe", default="finetune_folder", show_default=True, help="A name of `densefeat recipes`, or a .yaml file.")
@click.option("--mode", help="head: the network keeps its weights, bit for bit; full; blocks:3-4.  [default: the recipe's]")
@click.option("--head", type=click.Choice(["linear", "mlp", "cross-layer"]), help="[default: the recipe's]")
@label_column_option()
@base_option
@click.option("--group-column", metavar="NAME", help="Column whose equal values, such as a patient's, are not split.")
@click.option("--epochs", type=float, help="[default: the recipe's]")
@image_size_option
@rule_options
@in_chans_option
@fitted_stats_option
@training_device_option
@steps_option
@minutes_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def finetune_command(
    data: str, val: str | None, out: Path, recipe: str, overrides: tuple[str, ...],
    device: str | None, steps: int | None, minutes: float | None, **options: str | float | Path | None,
) -> None:  # fmt: skip
    """Fine-tune a network on labelled images of your own; KEY=VALUE changes any other line of the recipe.

    Writes weights and a configuration to the folder OUT, which timm and densefeat extract, predict and evaluate take as a
    model. The same command resumes where it stopped. On several GPUs: torchrun --nproc-per-node=8 -m densefeat finetune …
    """
    values = {"train": data, "val": val, **options}
    lines = [
        f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in values.items() if value is not None
    ]
    chosen = finetuning.load_finetuning(recipe, [*lines, *overrides])
    result = finetuning.finetune(chosen, out, device, steps, minutes)
    for line in training.format_result(result):
        print_line(line)
