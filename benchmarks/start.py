"""What happens before a command reads its first image: how long it takes, and whose imports it is.

    python benchmarks/start.py --images photos/

Each measurement is a process of its own. Imports are told by the time that each library's modules take themselves, as
``python -X importtime`` writes it, which makes them slower; those of a library that another one imports count as its own.
"before the first image" ends where the part that the first batch goes to is opened.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import click

from densefeat.bench import Report, benchmark_options, list_images, measure_rounds

COUNTS = (1, 100)
SHOWN = 14
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)")


def time_command(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def extract_arguments(images: Path, out: Path, model: str) -> list[str]:
    return ["-m", "densefeat", "extract", "--images", str(images), "--out", str(out), "--model", model, "--overwrite"]


def time_first_part(images: Path, out: Path, model: str) -> float:
    """Return the seconds until an extraction opens its first part; the rest of it is left to end."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *extract_arguments(images, out, model)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not any(out.glob("work/*part-*")):
            if process.poll() is not None:
                raise click.ClickException("the extraction ended before its first part")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def count_imports(arguments: list[str]) -> list[dict[str, object]]:
    """Run a command once; return a row for each library that it imports: milliseconds and modules, the slowest first."""
    finished = subprocess.run([sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    times, modules = Counter[str](), Counter[str]()
    for microseconds, module in IMPORT.findall(finished.stderr):
        library = module.partition(".")[0]
        times[library] += int(microseconds)
        modules[library] += 1
    names = [name for name, _ in times.most_common()]
    shown = {name: [name] for name in names[:SHOWN]} | {f"{len(names[SHOWN:])} others": names[SHOWN:]}
    return [
        {"library": title, "ms": sum(times[name] for name in group) / 1e3, "modules": sum(modules[name] for name in group)}
        for title, group in shown.items()
    ]


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Photographs.")
@click.option("--model", default="densefeat_densenet_bc100_k12", show_default=True)
@benchmark_options(rounds=5)
def main(images: Path, model: str, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"the start of densefeat extract, {model}", file)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "rows")
        arms = {
            "--help": partial(time_command, "-m", "densefeat", "--help"),
            "import torch": partial(time_command, "-c", "import torch"),
            "import timm": partial(time_command, "-c", "import timm"),
            "import densefeat.extraction.job": partial(time_command, "-c", "import densefeat.extraction.job"),
        }
        chosen = list_images(images)
        for count in COUNTS:
            (folder := Path(name, str(count))).mkdir()
            for number in range(count):
                original = chosen[number % len(chosen)]
                shutil.copyfile(original, folder / f"{number:03}{original.suffix}")
            arms[f"extract of {count}, before the first image"] = partial(time_first_part, folder, out, model)
            arms[f"extract of {count}, whole"] = partial(time_command, *extract_arguments(folder, out, model))
        seconds = measure_rounds(arms, rounds, warmups=1)
        rows = [
            {"step": step, "median": statistics.median(own), "least": min(own), "most": max(own)}
            for step, own in seconds.items()
        ]
        report.add("seconds", rows, "step=step: | median=median:.2f | least=least:.2f | most=most:.2f")
        imports = count_imports(extract_arguments(Path(name, "1"), out, model))
        report.add("imports by library", imports, "library=library: | ms=ms:,.0f | modules=modules:,")


if __name__ == "__main__":
    main()
