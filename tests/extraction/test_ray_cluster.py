"""The same job on a real local Ray: the same store, also when an actor is killed in mid-run."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import densefeat
from densefeat import DensefeatError, UsageError
from densefeat.extraction.ray_cluster import ActorSettings, PartActor
from support.helpers import BUNDLED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # its own, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def folder(photo_folder: Path) -> Path:
    for i in range(20):
        shutil.copytree(photo_folder / "china", photo_folder / f"copy{i:02}")
    (photo_folder / "copy07/02.jpg").write_bytes((photo_folder / "china/02.jpg").read_bytes()[:999])
    return photo_folder


def actor_processes() -> list[int]:
    """Of the pool's actors, as Ray titles them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"MapWorker(MapBatches(PartActor))" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def kill_an_actor(records: Path, killed: list[int]) -> None:
    """As soon as it has finished two parts."""
    deadline = time.monotonic() + 120
    while len(list(records.glob("part-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in actor_processes()[:1]:
        os.kill(process, signal.SIGKILL)
        killed.append(process)


def test_same_store_although_an_actor_is_killed(cluster: None, folder: Path, tmp_path: Path) -> None:
    alone = densefeat.extract(folder, tmp_path / "alone", BUNDLED, part_rows=10, batch_size=4)
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(tmp_path / "ray/work/records", killed))
    killer.start()
    result = densefeat.extract(folder, tmp_path / "ray", BUNDLED, part_rows=10, batch_size=4, engine="ray")
    killer.join()
    assert killed
    assert (result.rows, result.failures, result.extracted) == (alone.rows, 1, 132)
    ours, local = densefeat.open_store(tmp_path / "ray"), densefeat.open_store(tmp_path / "alone")
    assert ours.schema.equals(local.schema)
    assert list(ours.keys) == list(local.keys)
    assert ours.failures == local.failures
    for name in local.shapes:
        assert np.abs(ours[name] - local[name]).max() < 1e-5
    assert sorted(os.listdir(tmp_path / "ray")) == sorted(os.listdir(tmp_path / "alone"))
    again = densefeat.extract(folder, tmp_path / "ray", BUNDLED, part_rows=10, engine="ray")
    assert again.extracted == 0


def test_limits_hold_and_the_local_engine_goes_on(cluster: None, folder: Path, tmp_path: Path) -> None:
    for i in range(20):
        (folder / f"copy{i:02}/00.jpg").write_bytes(b"")
    with pytest.raises(DensefeatError, match="stopped after"):
        densefeat.extract(folder, tmp_path / "ray", BUNDLED, part_rows=10, engine="ray", max_failures=3)
    result = densefeat.extract(folder, tmp_path / "ray", BUNDLED, part_rows=10)
    assert (result.rows, result.failures) == (111, 21)


@pytest.mark.usefixtures("without_bf16")
def test_a_machine_that_would_emulate_the_precision_is_refused(trained: torch.nn.Module) -> None:
    absent: Any = None
    options = {"precision": "bf16", "device": "cpu", "backend": "reference"}
    settings = ActorSettings(trained, None, options, absent, absent, "float32", absent, 8, 1, 1, None)
    with pytest.raises(UsageError, match="a machine of this cluster would emulate bf16: extract in fp32"):
        PartActor(settings)
