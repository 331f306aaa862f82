"""Networks by name: known ones, unknown ones, and weights that cannot be loaded."""

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from densefeat import UsageError, WeightsError
from densefeat.loading import load
from densefeat.loading.load import load_network
from support.helpers import BUNDLED
from support.tiny_net import TINY


def test_bundled_network_and_its_provenance() -> None:
    network = load_network(BUNDLED)
    file = Path(timm.get_pretrained_cfg(BUNDLED).file)
    assert not network.model.training
    assert (network.file, network.run, network.published, network.task) == (file, None, True, "single")
    assert (network.num_classes, len(network.classes), network.classes[0]) == (200, 200, "n01443537")
    assert network.provenance == {
        "model": f"{BUNDLED}.tin200",
        "weights": {
            "source": "densefeat/densenet_bc100_k12.tin200.safetensors",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "license": "apache-2.0",
        },
    }


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.save(timm.create_model("densefeat_densenet40_k12").state_dict(), tmp_path / "w.pth")
    network = load_network("densefeat_densenet40_k12", tmp_path / "w.pth")
    assert network.source == str(tmp_path / "w.pth")
    assert network.sha256 == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert (network.licence, network.classes, network.published) == (None, None, False)


def test_a_file_has_a_classifier_where_it_is_used(tmp_path: Path) -> None:
    name = "densefeat_densenet40_k12"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "w.pth")
    load_network(name, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="2 keys missing .first: classifier.weight"):
        load_network(name, tmp_path / "w.pth", head=True)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(("name", "shape"), [("densefeat_densenet40_k12", {"num_classes": 7}), (TINY, {"in_chans": 5}),
                                             ("resnet18", {"num_classes": 3, "in_chans": 1})])  # fmt: skip
def test_the_network_has_the_classes_and_channels_of_the_file(
    name: str, shape: dict[str, int], head: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    written = timm.create_model(name, **shape).eval()
    torch.save(written.state_dict(), tmp_path / "w.pth")
    network = load_network(name, tmp_path / "w.pth", head=head)
    channels = shape.get("in_chans", 3)
    x = torch.randn(2, channels, 64, 64)
    assert (network.num_classes, network.model.in_chans) == (written.num_classes, channels)
    assert network.model.pretrained_cfg["input_size"][0] == channels
    with torch.no_grad():
        assert torch.equal(network.model(x), written(x))


@pytest.mark.parametrize(("channels", "wanted"), [(1, 3), (2, 1), (4, 1), (4, 2)])
def test_weights_of_other_than_three_channels_are_not_adapted(channels: int, wanted: int, tmp_path: Path) -> None:
    torch.save(timm.create_model(TINY, in_chans=channels).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=f"in_chans {wanted}: weights for {channels} channels are not adapted"):
        load_network(TINY, tmp_path / "w.pth", in_chans=wanted)


def test_a_module_is_returned_as_it_is(trained: torch.nn.Module) -> None:
    network = load_network(trained)
    assert network.model is trained
    assert network.provenance["weights"] == {"source": "a model object", "sha256": None, "license": None}


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
def test_unknown_names_get_a_suggestion(name: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        load_network(name)


def test_networks_without_published_weights_are_never_random() -> None:
    with pytest.raises(WeightsError, match="nobody has published weights for it; use the bundled .*--weights FILE"):
        load_network("densefeat_delugenet92")


@pytest.fixture
def unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for a hub at a port that nothing listens on."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_unreachable_hub_fails_at_once_with_alternatives(unreachable_hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    match = "densefeat_densenet121: its weights could not be fetched from hf-hub:timm/densenet121.ra_in1k.*--weights FILE"
    with pytest.raises(WeightsError, match=match) as error:
        load_network("densefeat_densenet121")
    assert "densefeat_densenet_bc100_k12" in str(error.value)
    assert "Retrying" not in caplog.text


def test_weights_in_the_hubs_cache_need_no_network(unreachable_hub: Path) -> None:
    """A file where the hub's client would have put it is used without a request."""
    folder = unreachable_hub / "models--timm--densenet121.ra_in1k"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    file = folder / "snapshots/abc/pytorch_model.bin"
    torch.save(timm.create_model("densenet121").state_dict(), file)
    network = load_network("densefeat_densenet121")
    assert (network.file, network.sha256) == (file, hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("damage", [False, True])
def test_damage_in_the_hubs_cache_is_noticed(unreachable_hub: Path, damage: bool) -> None:
    """The cache names large files by their SHA-256, and links to them."""
    folder = unreachable_hub / "models--timm--densenet121.ra_in1k"
    for name in ("snapshots/abc", "refs", "blobs"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    save_file(timm.create_model("densenet121").state_dict(), folder / "file")
    data = (folder / "file").read_bytes()
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ damage]))
    (folder / "snapshots/abc/model.safetensors").symlink_to(blob)
    if not damage:
        assert load_network("densefeat_densenet121").sha256 == blob.name
        return
    with pytest.raises(WeightsError, match=f"{blob.name}: damaged, the SHA-256 is not the published .*: remove it, so that"):
        load_network("densefeat_densenet121")


def test_damage_of_the_bundled_weights_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(timm.get_pretrained_cfg(BUNDLED).file)
    damaged = tmp_path / file.name
    data = file.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(load, "BUNDLED", tmp_path)
    monkeypatch.setattr(load, "find_weights_file", lambda _: damaged)
    with pytest.raises(WeightsError, match=r"densenet_bc100_k12.tin200.safetensors: damaged, .*: install densefeat again"):
        load_network(BUNDLED)


@pytest.mark.parametrize("metadata", [b"[" * 20_000, b"{", b"3", None])
def test_class_names_that_cannot_be_read_are_none(metadata: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    if metadata is None:
        file.write_bytes(b"no safetensors")
    else:
        save_file({"a": torch.ones(1)}, file, {"classes": metadata.decode()})
    assert load.read_class_names(file) is None
