"""Which device is chosen, and which are refused."""

import pytest
import torch

from densefeat import UsageError
from densefeat.base.devices import choose_device
from densefeat.base.ranks import Ranks

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_named_device_is_used(device: str | torch.device) -> None:
    assert choose_device(device) == choose_device(device, Ranks(5, 8, 1)) == torch.device("cpu")


@NO_GPU
@pytest.mark.parametrize("device", ["auto", None])
def test_the_cpu_is_used_without_a_gpu(device: str | None) -> None:
    assert choose_device(device).type in ("cpu", "mps")


@pytest.mark.parametrize(("device", "problem"), [("tpu!", ": no such kind of device"), ("cuda:99", " cannot be used")])
def test_unknown_and_missing_devices_are_refused(device: str, problem: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}'{problem}; this machine has cpu"):
        choose_device(device, Ranks(1, 2, 1))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, device: empty(size))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_each_process_of_a_machine_gets_a_gpu() -> None:
    assert choose_device("cuda", Ranks(5, 8, 1)) == torch.device("cuda", 1)
    assert choose_device("cuda:0", Ranks(5, 8, 1)) == torch.device("cuda", 0)
    assert choose_device("cuda", Ranks()) == choose_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="process 2 of this machine has no GPU for itself"):
        choose_device("cuda", Ranks(6, 8, 2))
