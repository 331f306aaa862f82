"""What many loose files cost before the first image is read: listing, starting, resuming, updating; beside find and os.walk.

    python benchmarks/listing.py

A folder of hard links to a few tiny JPEGs, a thousand in a folder inside, in the file system's cache. Each row is a process of
its own, timed once it has imported what it needs; times and peak memory of the same process for 2,000 files are taken off.
"start" and "resume" end when the first part is opened, before its first batch. Nobody waits for a network that embeds all the
images: the job is stopped in its first part, and the others are written by the store's own writer, with the real keys and
vectors of 8 random numbers. The command then finds them, and closes the store ("close"); "again" finds nothing left to do.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from densefeat.bench import Report, benchmark_options
from densefeat.images import open_source, printable_keys
from densefeat.store import EmbeddingWriter, Layout, PartRecord, read_manifest, save_part

IN_FOLDER, LINKS = 1000, 50_000  # files of a folder, and names of a file: ext4 allows 65,000
FEW = 2000  # files of the job that is taken off: enough to stop it twice before its end
MODEL = ("--model", "densefeat_densenet_bc100_k12", "--blocks", "1", "--device", "cpu", "--batch-size", "8")
IMPORTS = "import os, sys; from densefeat.images import open_source"
JOB_IMPORTS = IMPORTS + "; import densefeat.extraction.job; from densefeat_cli.main import main"
WALK = "for folder, _, names in os.walk(sys.argv[1]):\n        for name in names: os.stat(os.path.join(folder, name))"
LIST = "open_source(sys.argv[1]).fingerprint()"
STAMP = "source = open_source(sys.argv[1]); source.fingerprint(); source.stamps()"
CHILD = """
{imports}
import resource, time
file = sys.argv.pop()
cpu, wall = time.process_time(), time.perf_counter()
open(file, "w").close()  # the imports are done
try:
    {work}
finally:
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    lines = open("/proc/self/status").read().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    print(wall, cpu, peak, file=open(file, "w"))
"""
COLUMNS = "step=step: | s=wall:.2f | CPU, s=cpu:.2f | files/s of CPU=rate:,.0f | peak, MB=peak:,.0f | bytes a file=bytes:,.0f"
Measured = dict[str, float]  # seconds ``wall`` and ``cpu``, megabytes ``peak``


def make_folder(folder: Path, count: int) -> None:
    """Make so many hard links to a few JPEGs of 32 pixels."""
    generator, originals = np.random.default_rng(0), folder.with_name("originals")
    originals.mkdir(exist_ok=True)
    files = [originals / f"{count}-{i}.jpg" for i in range(-(-count // LINKS))]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    for number in range(count):
        inner = folder / f"{number // IN_FOLDER:04}"
        if number % IN_FOLDER == 0:
            inner.mkdir(parents=True)
        os.link(files[number % len(files)], inner / f"{number:08}.jpg")


def run_measured(imports: str, work: str, *arguments: object) -> Measured:
    """Run Python in a process of its own; measure from when it has imported what it needs."""
    with tempfile.NamedTemporaryFile("r") as result:
        code = CHILD.format(imports=imports, work=work)
        command = [sys.executable, "-c", code, *map(str, arguments), result.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall, cpu, peak = map(float, Path(result.name).read_text().split())
    return {"wall": wall, "cpu": cpu, "peak": peak * 1024 / 1e6}


def run_find(folder: Path) -> Measured:
    began, before = time.perf_counter(), os.times()
    subprocess.run(["find", folder, "-type", "f", "-printf", "%p %s %T@\n"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": time.perf_counter() - began, "cpu": cpu}


def read_process(process: int) -> tuple[float, float]:
    """Return the CPU seconds of a process so far, and its peak memory in megabytes."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak * 1024 / 1e6


def start_and_stop(arguments: list[str], work: Path) -> Measured:
    """Run an extraction until it opens a part, measure that, and stop it."""

    def list_parts() -> set[tuple[str, int]]:
        return {(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(work)} if work.is_dir() else set()

    before, ready = list_parts(), work.parent.with_name(f"{work.parent.name}-ready")
    command = [sys.executable, "-c", CHILD.format(imports=JOB_IMPORTS, work="main()"), *arguments, str(ready)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait(process, ready.exists)
        began, (cpu, _) = time.perf_counter(), read_process(process.pid)
        _wait(process, lambda: any("part-" in name for name, _ in list_parts() - before))
        wall, (cpu_then, peak) = time.perf_counter() - began, read_process(process.pid)
        process.terminate()  # SIGINT is ignored in a shell's background
    ready.unlink()
    return {"wall": wall, "cpu": cpu_then - cpu, "peak": peak}


def _wait(process: "subprocess.Popen[bytes]", reached: Callable[[], bool]) -> None:
    while not reached():
        if process.poll() is not None:
            raise click.ClickException("the extraction ended before it opened a part")
        time.sleep(0.002)


def write_rest(folder: Path, out: Path) -> None:
    """Write the parts that a stopped job has left, with vectors of random numbers."""
    layout, generator = Layout(out), np.random.default_rng(0)
    manifest = read_manifest(layout)
    assert manifest is not None
    keys = printable_keys(open_source(folder).keys())
    schema = pq.read_schema(next(path for path in layout.work.glob("part-*.parquet")))
    (name,) = (field.name for field in schema if pa.types.is_fixed_size_list(field.type))
    field = pa.field(name, pa.list_(pa.field("item", pa.float32(), nullable=False), 8), nullable=False)
    schema = schema.set(schema.get_field_index(name), field)
    for part, start in enumerate(range(0, len(keys), manifest.settings["part_rows"])):
        batch = keys[start : start + manifest.settings["part_rows"]].to_pylist()
        with EmbeddingWriter(layout.unfinished(part), schema) as writer:
            plain = {"path": batch, **{side: [32] * len(batch) for side in ("width", "height")}}
            writer.append(plain, {name: generator.random((len(batch), 8), np.float32)})
        stop = start + len(batch)
        record = PartRecord(part, start, stop, stop, rows=len(batch), bytes=0, skipped=0, failures=())
        save_part(layout, manifest.round_id, record)


def measure(folder: Path, out: Path, count: int) -> dict[str, Measured]:
    """Measure each step for a folder of so many files."""
    make_folder(folder, count)
    arguments = ["extract", "--images", str(folder), "--out", str(out), *MODEL]
    measured = {
        "find": run_find(folder),
        "os.walk and os.stat": run_measured(IMPORTS, WALK, folder),
        "list": run_measured(IMPORTS, LIST, folder),
        "list and stamp": run_measured(IMPORTS, STAMP, folder),
        "start": start_and_stop(arguments, out / "work"),
    }
    measured["resume"] = start_and_stop(arguments, out / "work")
    write_rest(folder, out)
    for name, options in (("close", []), ("again", []), ("update", ["--update"])):
        measured[name] = run_measured(JOB_IMPORTS, "main()", *arguments, *options)
    return measured


def compare(name: str, count: int, own: Measured, few: Measured) -> dict[str, object]:
    """A row of the table: what a step took beyond what it takes for a few files."""
    row: dict[str, object] = {key: own[key] - few[key] for key in own}
    row |= {"step": name, "rate": (count - FEW) / max(own["cpu"] - few["cpu"], 1e-3)}
    return row | ({"bytes": (own["peak"] - few["peak"]) * 1e6 / (count - FEW)} if "peak" in own else {})


@click.command()
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Numbers of files.")
@benchmark_options()
def main(sizes: str, file: Path | None) -> None:
    """Measure and print."""
    report = Report("loose files, before the first image is read", file)
    with tempfile.TemporaryDirectory() as name:
        few = measure(Path(name, "few"), Path(name, "rows-few"), FEW)
        for count in map(int, sizes.split(",")):
            measured = measure(Path(name, str(count)), Path(name, f"rows-{count}"), count)
            rows = [compare(step, count, own, few[step]) for step, own in measured.items()]
            report.add(f"{count:,} files", rows, COLUMNS)
        constant = [{"step": step, **own} for step, own in few.items()]
        report.add(
            f"{FEW:,} files, which were taken off", constant, "step=step: | s=wall:.2f | CPU, s=cpu:.2f | peak, MB=peak:,.0f"
        )


if __name__ == "__main__":
    main()
