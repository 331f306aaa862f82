"""Run commands on real disks that are too small: ``unshare --user --map-root-user --mount python small_disks.py FOLDER``.

Reads JSON from stdin, ``[[arguments, …], …]``, and writes JSON to the file ``results.json`` in FOLDER: for each command and each size of
the disk, up to the first on which it succeeds, ``{"command", "kib", "code", "errors", "files"}``: what is free, exit code, lines on
stderr, and files that are there.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.commands import run_command
from support.tiny_net import TINY  # registers it  # noqa: F401

SIZES = (0, 4, 16, 60, 200, 800, 3000)  # KiB that are free
_LARGE = 64_000  # KiB


def run_on_small_disks(command: list[str], disk: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for kib in SIZES:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_LARGE}k", "none", disk], check=True)
        try:
            (disk / ".fill").write_bytes(bytes(1024 * (_LARGE - kib)))
            done = run_command(*command, cwd=disk)
            files = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file() and path.name != ".fill")
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
        results.append({"command": command, "kib": kib, "code": done.exit_code, "errors": done.stderr, "files": files})
        if not done.exit_code:
            break
    return results


def main(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    results = [result for command in json.load(sys.stdin) for result in run_on_small_disks(command, disk)]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
