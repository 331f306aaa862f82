"""What imports load: models are registered with timm in any order of imports; stores are used without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.stores import write_store

CHECK = "import timm; assert timm.is_model('densefeat_densenet121'), timm.list_models('densefeat*')"
USE_STORE = """
import sys, densefeat, densefeat.search, densefeat.store
store = densefeat.open_store(sys.argv[1])
store["block1"]
densefeat.store.convert(store, "npz", sys.argv[1] + ".npz")
densefeat.search.find_neighbours(store, keys=[store.keys[0]])
densefeat.search.find_duplicates(store, 0.9)
assert not {"torch", "timm", "torchvision"} & set(sys.modules)
"""
slow = pytest.mark.slow  # a process each, for the same property


@pytest.mark.parametrize(
    "imports",
    [
        "import densefeat; import timm",
        pytest.param("import timm; import densefeat", marks=slow),
        pytest.param("import densefeat; from timm.models import create_model", marks=slow),
        pytest.param("import densefeat.nets.deluge_net", marks=slow),
        pytest.param("from densefeat import DelugeNet", marks=slow),
        pytest.param("from densefeat.nets.zoo import VARIANTS", marks=slow),
        pytest.param("from densefeat import FeatureExtractor", marks=slow),
        pytest.param("import densefeat; import densefeat.images", marks=slow),
    ],
)
def test_models_are_registered(imports: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"{imports}\n{CHECK}"], check=True)


def test_a_store_is_read_converted_and_searched_without_torch(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    subprocess.run([sys.executable, "-c", USE_STORE, tmp_path / "s"], check=True)
