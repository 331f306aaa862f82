"""``python -m densefeat.training RECIPE.yaml [key=value …] --out RUN``: train or fine-tune on a machine with few packages."""

import argparse
import sys

from densefeat.base import Interrupted, keep_freed_memory, printable, settle_threads

settle_threads()  # before the imports that load torch
keep_freed_memory()

from densefeat.errors import DensefeatError  # noqa: E402
from densefeat.training.job import Trained, format_result, train  # noqa: E402
from densefeat.training.recipe_files import load_recipe, recipe_commands  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m densefeat.training", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    arguments = parser.parse_intermixed_args()
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps {arguments.steps}: give 1 or more")
    if arguments.minutes is not None and not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes:g}: give a number above 0")
    try:
        print(*map(printable, format_result(_run(arguments))), sep="\n")
    except DensefeatError as error:
        print(printable(f"densefeat: {error}"), file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupt:
        print(f"densefeat: {interrupt}", file=sys.stderr)
        return interrupt.exit_code
    return 0


def _run(arguments: argparse.Namespace) -> Trained:
    call = arguments.out, arguments.device, arguments.steps, arguments.minutes
    if "densefeat finetune" in recipe_commands(arguments.recipe):
        from densefeat.finetuning import finetune, load_finetuning  # needs packages that training does without

        return finetune(load_finetuning(arguments.recipe, arguments.overrides), *call)
    return train(load_recipe(arguments.recipe, arguments.overrides), *call)


if __name__ == "__main__":
    sys.exit(main())
