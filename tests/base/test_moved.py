"""Names of earlier documentation still import."""

import importlib

import pytest

import densefeat
from densefeat.base.moved import _NEW_NAMES


@pytest.mark.parametrize("name", _NEW_NAMES)
def test_old_names_give_the_new_ones(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    room, _, new = _NEW_NAMES[name].rpartition(".")
    assert getattr(importlib.import_module(module), attribute) is getattr(importlib.import_module(room), new)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(ImportError, match="cannot import name 'draw'"):
        from densefeat.heads.kinds import draw  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("densefeat.heads.nothing")
    with pytest.raises(ModuleNotFoundError, match="import from densefeat or densefeat.probing"):
        importlib.import_module("densefeat.probe")
    assert callable(densefeat.probe)
