"""``densefeat train``."""

from pathlib import Path

import click

from densefeat import errors, training
from densefeat_cli.options import epilog, minutes_option, out_option, steps_option, training_device_option
from densefeat_cli.output import print_line


@click.command(epilog=epilog("train cifar10_fast train=cifar-10-batches-py val=cifar-10-batches-py lr=0.05"))
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_option("Folder to write: the run.  [default: runs/NAME OF THE RECIPE]", required=False)
@training_device_option
@steps_option
@minutes_option
def train_command(
    recipe: str, overrides: tuple[str, ...], out: Path | None, device: str | None, steps: int | None, minutes: float | None
) -> None:
    """Train a network by a RECIPE: its name (see `densefeat recipes`) or the path of a YAML file.

    The same command resumes where it stopped, after Ctrl-C, kill -9 or preemption (SIGTERM, SIGUSR1). On several GPUs:
    torchrun --nproc-per-node=8 -m densefeat train RECIPE …
    """
    chosen = training.load_recipe(recipe, overrides)
    try:
        result = training.train(chosen, out or Path("runs") / Path(recipe).stem, device, steps, minutes)
    except errors.UnknownRange as error:
        raise errors.UsageError(f"{error}; here without the dashes, as in range=0:4095") from error
    for line in training.format_result(result):
        print_line(line)
