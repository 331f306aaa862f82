"""What a process of our own sets, and what of it the user has set."""

import os
import subprocess
import sys

import pytest

GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
SCRIPT = """
import os, resource, sys, threading

if sys.argv[1] == "settled":
    from densefeat.base import keep_freed_memory, settle_threads

    settle_threads()
    keep_freed_memory()

def work():
    for _ in range(10):
        b"x" * 40_000_000  # from 32 MB on, glibc takes every block from the system again

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

count_faults()
thread = threading.Thread(target=count_faults)
thread.start()
thread.join()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def run_script(how: str, **variables: str) -> tuple[int, int, str]:
    """Return the page faults of the main thread and of another one, and how often OpenMP's threads would spin."""
    unset = ("MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=kept | variables, capture_output=True, text=True, check=True
    )
    main, thread, spins = process.stdout.split()
    return int(main), int(thread), spins


@pytest.mark.skipif(not GLIBC, reason="without glibc")
def test_freed_memory_is_kept() -> None:
    default, settled = run_script("default"), run_script("settled")
    assert default[2] == "None"
    assert settled[2] == "1000"
    for before, after in zip(default[:2], settled[:2], strict=True):
        assert after < 0.3 * before


@pytest.mark.skipif(not GLIBC, reason="without glibc")
@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_sets_of_memory_stays(variable: str) -> None:
    value = "glibc.malloc.tcache_count=7" if variable == "GLIBC_TUNABLES" else "131072"
    own, settled = run_script("default", **{variable: value}), run_script("settled", **{variable: value})
    for before, after in zip(own[:2], settled[:2], strict=True):
        assert after > 0.9 * before


@pytest.mark.parametrize(("variable", "spins"), [("OMP_WAIT_POLICY", "None"), ("GOMP_SPINCOUNT", "ACTIVE")])
def test_what_the_user_sets_of_threads_stays(variable: str, spins: str) -> None:
    assert run_script("settled", **{variable: "ACTIVE"})[2] == spins


@pytest.mark.slow
def test_programs_settle_before_torch_is_loaded_and_the_library_does_not() -> None:
    code = """
import os, sys
import densefeat
from densefeat.base import choose_device
assert "torch" in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}

    def run(text: str) -> str:
        return subprocess.run([sys.executable, "-c", text], env=kept, capture_output=True, text=True, check=True).stdout.strip()

    assert run(code) == "None"
    for program in ("densefeat_cli.main", "densefeat.training.__main__"):
        # an audit hook sees every import: what is set when torch's library is
        start = f"""
import os, sys
seen = []
def look(event, arguments):
    if event == "import" and arguments[0] == "torch":
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
sys.addaudithook(look)
sys.argv = ["program", "bench", "--arms", "hooks", "--device", "cpu", "--images", os.devnull]
import {program} as program
try:
    program.main()
except SystemExit:
    import torch
print(seen[0])
"""
        silent = start.replace("print(seen[0])", "sys.stdout.write(str(seen[0]))")
        assert run(silent).splitlines()[-1] == "1000", program
