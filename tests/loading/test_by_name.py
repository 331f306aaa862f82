"""Models by name: known ones, unknown ones, and weights that cannot be had."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from densefeat import UsageError, WeightsError
from densefeat.loading.by_name import create_model
from support.helpers import BUNDLED


def test_bundled_network_and_its_record() -> None:
    model, record = create_model(BUNDLED)
    file = Path(timm.get_pretrained_cfg(BUNDLED).file)
    assert not model.training
    assert record == {
        "model": f"{BUNDLED}.tin200",
        "weights": {
            "source": "densefeat/densenet_bc100_k12.tin200.safetensors",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "license": "apache-2.0",
        },
    }


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.save(timm.create_model("densefeat_delugenet146").state_dict(), tmp_path / "w.pth")
    _, record = create_model("densefeat_delugenet146", tmp_path / "w.pth")
    assert record["weights"]["source"] == str(tmp_path / "w.pth")
    assert record["weights"]["sha256"] == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("densenet_bc100", "did you mean densefeat_densenet_bc100_k12"),
        ("densefeat_densenet122", "did you mean .*densefeat_densenet121"),
        ("densefeat_densenet121.imagenet", "unknown model 'densefeat_densenet121.imagenet'.*densefeat_densenet121"),
        ("", "unknown model ''"),
        ("qqqqqqqqqqqq", "see: densefeat models"),
    ],
)
def test_unknown_names_are_told_the_closest(name: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        create_model(name)


def test_networks_without_published_weights_are_never_random() -> None:
    with pytest.raises(WeightsError, match="nobody has published weights for it; use the bundled .*--weights FILE"):
        create_model("densefeat_delugenet92")


def test_unreachable_hub_names_the_ways_out_at_once(tmp_path: Path) -> None:
    """A process of its own: the hub's settings are read on import. Nothing listens on port 9 of this machine."""
    code = "from densefeat.loading.by_name import create_model; create_model('densefeat_densenet121')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    last = ended.stderr.strip().splitlines()[-1]
    assert "WeightsError: densefeat_densenet121: its weights could not be had from hf-hub:timm/densenet121.ra_in1k" in last
    assert "densefeat_densenet_bc100_k12" in last
    assert "--weights FILE" in last
    assert "Retrying" not in ended.stderr


def test_weights_in_the_hubs_cache_need_no_network(tmp_path: Path) -> None:
    """A file where the hub's client would have put it is used without a request."""
    snapshot = tmp_path / "hub/models--timm--densenet121.ra_in1k/snapshots/abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/models--timm--densenet121.ra_in1k/refs").mkdir()
    (tmp_path / "hub/models--timm--densenet121.ra_in1k/refs/main").write_text("abc")
    torch.save(timm.create_model("densenet121").state_dict(), snapshot / "pytorch_model.bin")
    code = "from densefeat.loading.by_name import create_model; print(create_model('densefeat_densenet121')[1]['weights'])"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert hashlib.sha256((snapshot / "pytorch_model.bin").read_bytes()).hexdigest() in ended.stdout, ended.stderr
