"""Checkpoints are complete or absent, damage is noticed, and no code in them runs."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from densefeat.errors import OutputError, WeightsError
from densefeat.nets import load_torch_file
from densefeat.training.checkpoints import (
    _MAX_KEPT,
    _list_checkpoints,
    newest_checkpoint,
    remove_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((3,), float(step))}


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 900, 100_000_000):
        save_checkpoint(tmp_path, state(step))
    assert len(_list_checkpoints(tmp_path)) == _MAX_KEPT
    path, messages = newest_checkpoint(tmp_path)
    assert path is not None
    assert load_torch_file(path, "checkpoint")["weights"].tolist() == [100_000_000.0] * 3
    assert not messages
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "grow"])
def test_damage_is_noticed(tmp_path: Path, harm: str) -> None:
    save_checkpoint(tmp_path, state(1))
    newest = save_checkpoint(tmp_path, state(2))
    content = bytearray(newest.read_bytes())
    if harm == "flip":
        content[700] ^= 4
    newest.write_bytes({"flip": content, "cut": content[:-1], "empty": b"", "grow": content + b"x"}[harm])
    path, messages = newest_checkpoint(tmp_path)
    assert path is not None
    assert load_torch_file(path, "checkpoint")["step"] == 1
    assert messages == [f"checkpoint {newest.name} is damaged and was renamed to .damaged"]


def test_all_damaged_or_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    save_checkpoint(tmp_path, state(1)).write_bytes(b"")
    (tmp_path / "step-00000009.pt").write_bytes(b"another file")
    path, messages = newest_checkpoint(tmp_path)
    assert path is None
    assert len(messages) == 1


def test_the_first_stays_and_rejected_ones_go(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, state(0))
    names = [save_checkpoint(tmp_path, state(step)).name for step in (4, 8, 12)]
    assert [path.name for path in _list_checkpoints(tmp_path)] == [names[2], names[1], first.name]
    path, _ = newest_checkpoint(tmp_path, {names[2], first.name})
    assert path is not None
    assert path.name == names[1]
    assert not (tmp_path / names[2]).exists()
    path, _ = newest_checkpoint(tmp_path, {names[1], first.name})
    assert path == first


def test_a_damaged_one_replaces_no_other(tmp_path: Path) -> None:
    for _ in range(3):
        save_checkpoint(tmp_path, state(1)).write_bytes(b"")
        assert newest_checkpoint(tmp_path)[0] is None
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".damaged", ".damaged-1", ".damaged-2"]


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, state(1)).write_bytes(b"")
    newest_checkpoint(folder)
    own = save_checkpoint(folder, state(2))
    (folder / f".{own.name}.abcdefgh.partial").write_bytes(b"half")
    others = {"step-00000009.pt", "thesis.pt", own.name.replace("2", "3", 1)}
    (folder / "thesis.pt").write_bytes(b"")
    (folder / "step-00000009.pt").write_bytes(b"")
    (folder / own.name.replace("2", "3", 1)).symlink_to(tmp_path)
    remove_checkpoints(folder)
    assert {path.name for path in folder.iterdir()} == others
    (tmp_path / "link").symlink_to(folder)
    save_checkpoint(folder, state(2))
    remove_checkpoints(tmp_path / "link")
    assert {path.name for path in folder.iterdir()} == others | {own.name}
    remove_checkpoints(tmp_path / "no")
    save_checkpoint(tmp_path / "own", state(1))
    remove_checkpoints(tmp_path / "own")
    assert not (tmp_path / "own").exists()


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_checkpoint(tmp_path, {"step": 1, "harm": Harm()})
    with pytest.raises(
        WeightsError, match=r"checkpoint '.*\.pt': refused, its pickle holds more than tensors \(.*mkdir\)"
    ) as caught:
        restore_checkpoint(path, dict)
    assert "weights_only" not in str(caught.value)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("content", [{"step": 1}, {"step": 1, "model": {"weight": torch.ones(2)}}, {"step": 1, "model": 7}])
def test_a_state_that_does_not_fit(tmp_path: Path, content: dict) -> None:
    model = torch.nn.Linear(1, 1)
    path = save_checkpoint(tmp_path, content)
    with pytest.raises(
        WeightsError, match=r"checkpoint '.*\.pt': does not hold the state of this run \(.*\): name another --out"
    ):
        restore_checkpoint(path, lambda state: model.load_state_dict(state["model"]))


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {"step": 1, "weight": torch.zeros(2**20)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(WeightsError, match=r"checkpoint '.*\.pt': refused, a compressed archive .* that unpack to 4,"):
        restore_checkpoint(path, dict)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file' cannot be written: File exists"):
        save_checkpoint(tmp_path / "file", state(1))
