"""Models are registered with timm whichever of the two is imported first, and by whichever of our modules."""

import subprocess
import sys

import pytest

LISTED = "import timm; assert timm.is_model('densefeat_densenet121'), timm.list_models('densefeat*')"


@pytest.mark.parametrize(
    "imports",
    [
        "import timm; import densefeat",
        "import densefeat; import timm",
        "import densefeat; from timm.models import create_model",
        "import densefeat.nets.deluge_net",
        "from densefeat import DelugeNet",
        "from densefeat.nets.zoo import VARIANTS",
        "from densefeat import FeatureExtractor",
        "import densefeat; import densefeat.images",
    ],
)
def test_models_are_registered(imports: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"{imports}\n{LISTED}"], check=True)


def test_importing_densefeat_loads_neither_torch_nor_timm() -> None:
    code = "import sys, densefeat, densefeat.store, densefeat.base; print('torch' in sys.modules, 'timm' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.split() == ["False", "False"]
