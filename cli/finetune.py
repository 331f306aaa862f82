"""``densefeat finetune``."""

from pathlib import Path

import click


@click.command(epilog="Example: densefeat finetune --data photos/ --model densefeat_densenet_bc100_k12 --out runs/photos")
@click.option("--data", required=True, help="Folder of classes, or with train/ and val/ of such; a list with labels (.csv);"
              " Parquet, tar shards, hf:NAME:SPLIT.")  # fmt: skip
@click.option("--val", help="Validation images, likewise.  [default: DATA/val, or a fifth of each class]")
@click.option("--model", help="A name of densefeat models, any of timm's, or the folder of a run.  [default: the recipe's]")
@click.option("--weights", help="A checkpoint file of your own for MODEL.  [default: the published ones]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--recipe", default="finetune_folder", show_default=True, help="A name of densefeat recipes, or a .yaml file.")
@click.option("--mode", help="head: the network stays as it is, bit for bit; full; blocks:3-4.  [default: the recipe's]")
@click.option("--head", type=click.Choice(["linear", "mlp", "cross-layer"]), help="[default: the recipe's]")
@click.option("--label-column", help="Of lists and tables (default: label), or the extension of tar members (default: cls).")
@click.option("--epochs", type=float, help="[default: the recipe's]")
@click.option("--image-size", type=int, help="Pixels of the square input.  [default: the weights' own]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many, with a checkpoint; the same command goes on.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def finetune(
    data: str, val: str | None, out: Path, recipe: str, overrides: tuple[str, ...],
    device: str | None, steps: int | None, **given: str | float | None,
) -> None:  # fmt: skip
    """Fine-tune a network on labelled images of your own; KEY=VALUE changes any other line of the recipe.

    Writes weights and a configuration that timm, densefeat extract, predict and evaluate take as a model: the folder OUT. The
    same command goes on where it stopped. On several GPUs: torchrun --nproc-per-node=8 -m densefeat finetune …
    """
    import json

    from densefeat.training import load_finetuning, report, train

    values = {"train": data, "val": val, **given}
    filled = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    result = train(load_finetuning(recipe, [*filled, *overrides]), out, device, steps)
    for line in report(result):
        click.echo(line)
