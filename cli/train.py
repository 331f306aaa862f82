"""``densefeat train``."""

from pathlib import Path

import click


@click.command(epilog="Example: densefeat train cifar10_fast train=cifar-10-batches-py val=cifar-10-batches-py lr=0.05")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/NAME OF THE RECIPE]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many, with a checkpoint; the same command goes on.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, device: str | None, steps: int | None) -> None:
    """Train a network from scratch as a recipe says: its name (see densefeat recipes) or a YAML file's path.

    The same command goes on where it stopped, after Ctrl-C, kill -9 or preemption (SIGTERM, SIGUSR1). On several GPUs:
    torchrun --nproc-per-node=8 -m densefeat train RECIPE …
    """
    from densefeat.training import load_recipe, report, train

    chosen = load_recipe(recipe, overrides)
    result = train(chosen, out or Path("runs") / Path(recipe).stem, device, steps)
    for line in report(result):
        click.echo(line)
