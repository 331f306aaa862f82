"""The arguments of a job, checked before the network or an image is opened: this needs neither torch nor timm."""

from dataclasses import dataclass
from pathlib import Path

from densefeat.base import Ranks, check_output_name
from densefeat.errors import UsageError
from densefeat.extraction.limits import FailureLimit
from densefeat.store import DTYPES, Layout, check_store_file, check_store_folder

_EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class RunOptions:
    """The options of how a job runs. None of it changes the rows, except that ``batch_size`` may change their rounding."""

    batch_size: int | str
    workers: int | None
    on_error: str
    max_failures: str | int | None
    overwrite: bool
    update: bool
    engine: str
    memory: int | None = None


def is_single_file(out: Path) -> bool:
    """Tell whether a job writes a single Parquet file rather than a folder."""
    return out.suffix == ".parquet" and not out.is_dir()


def check_arguments(
    images: str | Path,
    out: str | Path,
    options: RunOptions,
    part_rows: int | None = None,
    max_pixels: int | None = None,
    dtype: str = "float32",
    max_tiles: int | None = None,
) -> None:
    """Refuse arguments out of their range or at odds with each other, and an output that cannot be written.

    Raises UsageError for the arguments, OutputError for the output.
    """
    if isinstance(options.batch_size, str) and options.batch_size != "auto":
        raise UsageError(f"batch size {options.batch_size!r}: give a number or auto")
    numbers = {
        "batch size": options.batch_size,
        "workers": options.workers,
        "part rows": part_rows,
        "max pixels": max_pixels,
        "max tiles": max_tiles,
        "memory": options.memory,
    }
    for name, value in numbers.items():
        if isinstance(value, int) and value < 1:
            raise UsageError(f"{name} {value}: give at least 1")
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if options.engine not in _EXECUTORS:
        raise UsageError(f"engine {options.engine!r}: choose one of {', '.join(_EXECUTORS)}")
    if options.overwrite and options.update:
        raise UsageError("--overwrite starts over, --update adds to what is there: give one of them")
    FailureLimit.parse(options.on_error, options.max_failures)
    check_output_name(out)
    _check_output(Path(out), images, options, part_rows)


def _check_output(out: Path, images: str | Path, options: RunOptions, part_rows: int | None) -> None:
    """Refuse an output that cannot be written, that does not go with the options, or that holds something else."""
    ranks = Ranks.from_environment()
    if options.engine == "ray" and ranks.world > 1:
        raise UsageError("--engine ray under torchrun: use one of them")
    if not is_single_file(out):
        check_store_folder(Layout(out))
        return
    if options.update or part_rows or ranks.world > 1 or options.engine == "ray":
        raise UsageError(
            f"output {str(out)!r} is a single file: --update, --part-rows, several processes and --engine ray need a folder"
        )
    check_store_file(out, images)
