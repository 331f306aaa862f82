"""How much memory this process grows by while it decodes each file of a folder, as JSON. Read by tests as a script."""

import json
import os
import sys
from pathlib import Path

import imagecodecs  # noqa: F401  (loaded before the forks: their growth is the images' alone)
import pydicom.encaps
import pydicom.filereader  # noqa: F401
import tifffile  # noqa: F401
import torchvision.io  # noqa: F401

from densefeat.images import decode_pixels


def read_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_growth(data: bytes, decoder: str) -> int:
    """Decode in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = read_peak()
        decode_pixels(data, decoder)
        os.write(writer, str(read_peak() - before).encode())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(writer)
    with open(reader) as answer:
        return int(answer.read())


if __name__ == "__main__":
    folder, decoder = sys.argv[1:]
    print(json.dumps({path.name: measure_growth(path.read_bytes(), decoder) for path in sorted(Path(folder).iterdir())}))
