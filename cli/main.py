"""``densefeat``: the group of commands, and how errors reach the person."""

import logging
import os
import sys
from importlib.metadata import version as installed_version

import click

from densefeat_cli.bench import bench
from densefeat_cli.convert import convert
from densefeat_cli.evaluate import evaluate
from densefeat_cli.export import export
from densefeat_cli.extract import extract
from densefeat_cli.finetune import finetune
from densefeat_cli.info import info
from densefeat_cli.map import map_
from densefeat_cli.models import models
from densefeat_cli.predict import predict
from densefeat_cli.probe import probe
from densefeat_cli.recipes import recipes
from densefeat_cli.report import report
from densefeat_cli.search import search
from densefeat_cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(installed_version("densefeat"))
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def densefeat(debug: bool) -> None:
    """Image embeddings from every block of DenseNet and DelugeNet.

    Example: densefeat extract --images photos/ --out embeddings/
    """


densefeat.add_command(extract)
densefeat.add_command(models)
densefeat.add_command(info)
densefeat.add_command(convert)
densefeat.add_command(search)
densefeat.add_command(probe)
densefeat.add_command(finetune)
densefeat.add_command(train)
densefeat.add_command(evaluate)
densefeat.add_command(predict)
densefeat.add_command(recipes)
densefeat.add_command(map_)
densefeat.add_command(report)
densefeat.add_command(export)
densefeat.add_command(bench)


class Told(logging.Handler):
    """What densefeat logs, as lines for the person; where nobody watches, warnings alone."""

    def emit(self, record: logging.LogRecord) -> None:
        watched = record.levelno >= logging.WARNING or sys.stderr.isatty()
        if watched and os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
            click.echo(f"densefeat: {record.getMessage()}", err=True)


def main() -> None:
    """Run the command line; exit code 0, 1 for failure, 2 for wrong use, 130 for Ctrl-C. Errors are one line."""
    log = logging.getLogger("densefeat")
    log.setLevel(logging.INFO)
    log.handlers = [Told()]
    try:
        sys.exit(densefeat.main(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, error)
    except (click.Abort, KeyboardInterrupt) as interrupt:
        told = interrupt.__context__ if isinstance(interrupt, click.Abort) else interrupt  # click turns the one into the other
        click.echo(f"densefeat: {str(told) or 'interrupted'}", err=True)
        sys.exit(getattr(told, "exit_code", 130))
    except Exception as error:
        from densefeat.errors import DensefeatError  # late: importing densefeat takes seconds

        if isinstance(error, DensefeatError):
            _fail(str(error), error.exit_code, error)
        if type(error).__name__ == "OutOfMemoryError":
            _fail(f"out of memory: try a smaller --batch-size ({error})", 1, error)
        _fail(f"{type(error).__name__}: {error} (a bug: run again with --debug and report it)", 1, error)


def _fail(message: str, exit_code: int, error: BaseException) -> None:
    if "--debug" in sys.argv:
        raise error
    click.echo("densefeat: " + " ".join(message.split()), err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
