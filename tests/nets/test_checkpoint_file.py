"""Checkpoint files of strangers: what could run as code is refused, in words that do not say how to run it."""

import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densefeat.errors import WeightsError
from densefeat.nets.checkpoint_file import load_torch_file, read_state_dict


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def save_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "3")


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))


CODE = r"refused, its pickle holds more than tensors \(\S+\), which would run as code; save the state dict alone, best as safetensors"
ARCHIVE = "refused, TorchScript or an archive of torch before 0.4, which would run as code; save the state dict alone"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (save_script, ARCHIVE),
    "named like TorchScript": (lambda path: write_zip(path, "a/constants.pkl", "a/data.pkl", "a/version"), ARCHIVE),
    "the old tar": (write_tar, ARCHIVE),
    "code": (lambda path: torch.save({"x": Harm()}, path), CODE),
    "code, as torch saved before 1.6": (lambda path: torch.save({"x": Harm()}, path, _use_new_zipfile_serialization=False), CODE),
    "code with a long name": (lambda path: path.write_bytes(b"\x80\x02c" + b"m" * 9999 + b"\nf\n)R."), r"refused, its pickle holds more than tensors \(m{200}…\), which"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"x": Harm()})), "neither safetensors nor a torch checkpoint"),
    "a pickle of numbers": (lambda path: path.write_bytes(pickle.dumps({"x": 1}, 5)), "neither safetensors nor a torch checkpoint"),
    "another archive": (lambda path: write_zip(path, "a.txt"), "truncated or not a checkpoint"),
    "200,000 lists": (lambda path: path.write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."), "truncated or not a checkpoint"),
    "JSON of 200,000 lists": (lambda path: path.write_bytes((400_000).to_bytes(8, "little") + b"{" + b"[" * 200_000 + b"]" * 199_998 + b"}"),
                              "(truncated or not a checkpoint|neither safetensors nor)"),
    "text": (lambda path: path.write_text("hello, this is no checkpoint\n" * 9), "truncated or not a checkpoint"),
    "nothing": (lambda path: path.write_bytes(b""), "truncated or not a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_refused_without_advice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pt"
    write, match = FILES[name]
    write(path)
    for read in (read_state_dict, lambda path: load_torch_file(path, f"weights {path}")):
        with pytest.raises(WeightsError, match=rf"^weights {path}: {match}") as caught:
            read(path)
        message = str(caught.value)
        assert not [
            advice for advice in ("weights_only", "Re-running", "trust", "arbitrary", "two options") if advice in message
        ]
        assert len(message) < 1000
    assert not Path("harmed").exists()
