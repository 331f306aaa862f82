"""``densefeat``: the group of commands, and the messages for errors."""

import importlib
import logging
import sys

import click

from densefeat.base import Ranks, find_full_disk, keep_freed_memory, settle_threads
from densefeat.errors import DensefeatError
from densefeat_cli.options import epilog
from densefeat_cli.output import print_note

_COMMANDS = (
    "anomaly", "bench", "convert", "evaluate", "explain", "export", "extract", "finetune", "info", "look", "map", "models",
    "predict", "probe", "recipes", "report", "search", "segment", "train", "verify", "weights",
)  # fmt: skip

_PLAIN = ("evaluate", "finetune", "train")  # these run the plain network; others decode large images in bounded memory


class _LazyGroup(click.Group):
    """A group that imports the file of a command when the command is called: ``NAME_command`` of ``NAME.py``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"densefeat_cli.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    epilog=epilog("extract --images photos/ --out embeddings/"),
)
@click.version_option(package_name="densefeat")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def densefeat(context: click.Context, debug: bool) -> None:  # noqa: ARG001  (read from the command line)
    """Image embeddings from every block of DenseNet and DelugeNet."""
    settle_threads()  # before a command loads torch
    if context.invoked_subcommand in _PLAIN:
        keep_freed_memory()


class _StderrHandler(logging.Handler):
    """A handler that shows densefeat's log records on stderr, each line once: all on a terminal, elsewhere only warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        visible = record.levelno >= logging.WARNING or sys.stderr.isatty()
        message = record.getMessage()
        if visible and message not in self.shown and Ranks.from_environment().first:  # under torchrun only the first prints
            self.shown.add(message)
            print_note(message)


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for failure, 2 for wrong use, 130 for Ctrl-C. Errors are one line."""
    log = logging.getLogger("densefeat")
    log.setLevel(logging.INFO)
    log.handlers = [_StderrHandler()]
    try:
        sys.exit(densefeat.main(prog_name="densefeat", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, error)
    except (click.Abort, KeyboardInterrupt) as error:
        interrupt = error.__context__ if isinstance(error, click.Abort) else error  # click turns the second into the first
        print_note(str(interrupt) or "interrupted")
        sys.exit(getattr(interrupt, "exit_code", 130))
    except DensefeatError as error:
        _fail(str(error), error.exit_code, error)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not have been imported
            _fail(f"out of memory: try a smaller --batch-size ({error})", 1, error)
        if find_full_disk(error):
            _fail(f"{error}: free some space, then run the same command again", 1, error)
        _fail(f"{type(error).__name__}: {error} (this is a bug: run again with --debug and report it)", 1, error)


def _fail(message: str, exit_code: int, error: BaseException) -> None:
    if "--debug" in sys.argv:
        raise error
    print_note(" ".join(message.split()))
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
