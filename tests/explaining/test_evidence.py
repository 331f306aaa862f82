"""Evidence adds up to scores that were computed without it: for every head, pool and tap of probes, and for networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import densefeat
from densefeat.errors import UsageError
from densefeat.evaluation import predict
from densefeat.explaining import explain
from densefeat.explaining.evidence import _split_pooled, averages_maps, spread_maps
from densefeat.features import parse_pools
from densefeat.finetuning import finetune
from densefeat.images import Preprocessing
from densefeat.labels import Targets
from densefeat.probing import AttentiveHead, KnnHead, LayersHead, LinearHead, Probe
from densefeat.probing.probe_file import save_probe
from support.helpers import randomize_statistics
from support.processors import AVX2, AVX512_BF16
from support.runs import tiny_finetuning, write_classes
from support.tiny_net import TINY, write_tiny_weights

CLASSES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/`` and the weights of the tiny network."""
    folder = tmp_path_factory.mktemp("place")
    write_classes(folder / "images", 2, size=48)
    write_tiny_weights(folder)
    return folder


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_head(kind: str, widths: list[int], outputs: int) -> Any:
    if kind == "attentive":
        queries = tuple(draw(2, width) for width in widths)
        values = tuple(draw(2, 3, width) for width in widths)
        return AttentiveHead(queries, values, draw(outputs, 6 * len(widths)), draw(outputs))
    if kind == "knn":
        return KnnHead(draw(4, sum(widths)), Targets("single", CLASSES, np.arange(4)), 2)
    if kind == "layers":
        layers = tuple(part for width in widths for part in (width // 3, width - width // 3))
        kept = np.arange(0, sum(widths), 2)
        return LayersHead(layers, kept, draw(outputs, len(kept)), draw(outputs), squeeze=outputs == 1)
    return LinearHead(draw(outputs, sum(widths)) / 10, draw(outputs), squeeze=outputs == 1)


def write_probe(place: Path, out: Path, kind: str = "linear", task: Any = "single", **features: Any) -> Probe:
    """A probe with random weights on features of the tiny network, as an extraction records them."""
    store = densefeat.extract(place / "images", out / "store", TINY, place / "tiny.safetensors", device="cpu", **features)
    provenance = densefeat.open_store(store.path).provenance
    widths = [int(np.prod(shape)) if kind != "attentive" else shape[0] for shape in store.shapes.values()]
    classes = () if task == "regression" else CLASSES
    head = make_head(kind, widths, max(1, len(classes)))
    save_probe(out / "probe.safetensors", Probe(task, classes, tuple(store.shapes), provenance, head))
    return densefeat.load_probe(out / "probe.safetensors")


def score_paths(probe: Probe, images: Path, keys: Any) -> np.ndarray:
    """The probe's own scores ``(n, K)``, from features that an extractor pools."""
    found = probe.extractor(device="cpu")([images / key for key in keys])
    return probe.scores({name: value.numpy() for name, value in found.items()}).reshape(len(keys), -1)


def assert_adds_up(result: Any, scores: np.ndarray) -> densefeat.Store:
    """The maps' sums and the recorded bias are the scores of the classes that ``explained.json`` names."""
    record, store = json.loads(result.record.read_text()), densefeat.open_store(result.store)
    assert result.exact
    assert result.gap < 1e-4
    np.testing.assert_allclose(store["scores"], scores, atol=1e-4)
    chosen = [scores.argmax(1)] + [np.full(len(scores), record["classes"].index(name)) for name in record["explained"][1:]]
    total, *blocks = (store[name].reshape(len(store), len(chosen), -1).sum(2, dtype=float) for name in record["maps"])
    for place, classes in enumerate(chosen):
        expected = scores[np.arange(len(scores)), classes] - np.array(record["bias"])[classes]
        np.testing.assert_allclose(total[:, place], expected, atol=1e-4)
        if blocks:
            np.testing.assert_allclose(sum(blocks)[:, place], expected, atol=1e-4)
    return store


@pytest.mark.parametrize(
    ("kind", "task", "features"),
    [
        ("linear", "single", {}),
        ("linear", "multi", dict(blocks="2,3", tap="raw")),
        ("linear", "regression", dict(pool="max")),
        ("linear", "single", dict(pool="avg,max", precision="bf16")),
        ("linear", "single", dict(pool="gem:4", blocks="3")),
        ("linear", "single", dict(pool="none", blocks="2,3")),
        ("layers", "single", dict(pool="avg,max")),
        ("layers", "regression", {}),
        ("attentive", "multi", dict(pool="none")),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.usefixtures("with_bf16")
def test_evidence_of_probes_adds_up(place: Path, tmp_path: Path, kind: str, task: str, features: dict) -> None:
    probe = write_probe(place, tmp_path, kind, task, **features)
    named = () if task == "regression" else ("dog", "ant")
    result = explain(str(probe.path), place / "images", tmp_path / "out", classes=named, device="cpu")
    keys = densefeat.open_store(result.store).keys
    if features.get("precision") == "bf16":  # an engine may round its maps and its means on their own
        scores = densefeat.open_store(result.store)["scores"]
        np.testing.assert_allclose(scores, score_paths(probe, place / "images", keys), atol=0.05)
    else:
        scores = score_paths(probe, place / "images", keys)
    store = assert_adds_up(result, scores)
    blocks = {name: shape for name, shape in store.shapes.items() if name.startswith("evidence_")}
    sizes = {"evidence_block1": (32, 32), "evidence_block2": (16, 16), "evidence_block3": (8, 8)}
    assert blocks == {name: (1 + len(named), *sizes[name]) for name in blocks}
    assert store.shapes["evidence"][1:] == max(sizes[name] for name in blocks) if blocks else (8, 8)


@pytest.mark.parametrize("job", [explain, predict])
def test_results_in_bf16_are_not_resumed_where_that_is_emulated(
    job: Callable[..., Any], place: Path, tmp_path: Path, pretend_flags: Callable[[str], None]
) -> None:
    pretend_flags(AVX512_BF16)
    probe = str(write_probe(place, tmp_path, precision="bf16", blocks="3").path)
    job(probe, place / "images", tmp_path / "there", device="cpu")
    pretend_flags(AVX2)
    with pytest.raises(UsageError, match="precision is 'bf16' there, not 'fp32'"):
        job(probe, place / "images", tmp_path / "there", device="cpu")
    result = job(probe, place / "images", tmp_path / "here", device="cpu")
    assert densefeat.open_store(result.store).provenance["precision"] == "fp32"


def test_evidence_is_weight_times_feature_at_its_place(place: Path, tmp_path: Path) -> None:
    probe = write_probe(place, tmp_path, blocks="3")
    result = explain(str(probe.path), place / "images", tmp_path / "out", device="cpu")
    store = densefeat.open_store(result.store)
    extractor = probe.extractor(device="cpu")
    for row, key in enumerate(store.keys):
        maps = extractor([place / "images" / key], pool="none")["block3"][0].numpy()
        weight = probe.head.weight[store["scores"][row].argmax()]
        for i, j in ((0, 0), (3, 7), (7, 1)):
            value = sum(float(w) * float(x) for w, x in zip(weight, maps[:, i, j], strict=True)) / 64
            assert store["evidence"][row].reshape(8, 8)[i, j] == pytest.approx(value, abs=1e-5)


def test_a_probe_by_neighbours_is_refused(place: Path, tmp_path: Path) -> None:
    probe = write_probe(place, tmp_path, "knn", blocks="3")
    with pytest.raises(UsageError, match="lets training images vote.*another --protocol"):
        explain(str(probe.path), place / "images", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pool", ["avg", "max", "gem", "gem:1.5"])
def test_shares_add_up_to_the_pooled_features(pool: str) -> None:
    maps = torch.from_numpy(draw(2, 5, 4, 6))
    maps[0, 0] = 0  # ties
    maps[1, 1, :2] = 7
    pooled = next(iter(parse_pools(pool).values()))(maps)
    torch.testing.assert_close(_split_pooled(maps, pool).sum((2, 3)), pooled, atol=1e-6, rtol=1e-5)


def test_shares_of_the_largest_are_at_its_place() -> None:
    maps = torch.tensor([[[[1.0, 3.0], [3.0, 2.0]], [[-1.0, -2.0], [-3.0, -4.0]]]])
    expected = torch.tensor([[[[0.0, 1.5], [1.5, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(_split_pooled(maps, "max"), expected)


@pytest.mark.parametrize("shape", [(8, 8), (16, 8), (13, 9), (32, 56), (4, 5)])
def test_finer_grids_have_the_same_sums(shape: tuple[int, int]) -> None:
    maps = torch.from_numpy(draw(2, 3, 4, 5))
    finer = spread_maps(maps, shape)
    assert finer.shape == (2, 3, *shape)
    torch.testing.assert_close(finer.sum((2, 3)), maps.sum((2, 3)))


def test_a_position_is_spread_around_its_own_place() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[..., 1, 2] = 1
    finer = spread_maps(maps, (16, 16))[0, 0]
    rows, columns = (torch.arange(16) + 0.5,) * 2
    assert (finer.sum(1) @ rows).item() == pytest.approx(6)  # the centre of the second of four quarters
    assert (finer.sum(0) @ columns).item() == pytest.approx(10)
    assert (finer[:2] == 0).all()
    assert (finer[:, :6] == 0).all()


def test_evidence_of_a_run_with_a_linear_head(place: Path, tmp_path: Path) -> None:
    recipe = tiny_finetuning(tmp_path, train=str(place / "images"), mode="head", epochs=1, head_start="random")
    finetune(recipe, tmp_path / "run", "cpu")
    result = explain(str(tmp_path / "run"), place / "images", tmp_path / "out", classes=["class 1"], device="cpu")
    model = densefeat.load_run(tmp_path / "run")
    extractor = densefeat.FeatureExtractor(str(tmp_path / "run"), device="cpu", decoder="pillow")
    keys = densefeat.open_store(result.store).keys
    with torch.no_grad():
        logits = model(extractor.prepare([place / "images" / key for key in keys])).numpy()
    store = assert_adds_up(result, logits)
    assert store.shapes["evidence"][0] == 2


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        (TINY, True),
        ("test_resnet", True),
        ("test_efficientnet", True),
        ("test_convnext", False),  # a norm after the average
        ("test_vit", False),
        ("test_nfnet", True),
    ],
)
def test_which_networks_average_their_maps(name: str, linear: bool) -> None:
    model = randomize_statistics(timm.create_model(name, num_classes=5)).eval()
    assert averages_maps(model, Preprocessing.for_model(model)) is linear


def test_evidence_of_another_network_by_its_name(place: Path, tmp_path: Path) -> None:
    model = randomize_statistics(timm.create_model("test_resnet", num_classes=5)).eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    options: dict[str, Any] = dict(weights=tmp_path / "net.safetensors", device="cpu")
    result = explain("test_resnet", place / "images", tmp_path / "out", classes=["3"], **options)
    extractor = densefeat.FeatureExtractor("test_resnet", decoder="pillow", **options)
    keys = densefeat.open_store(result.store).keys
    with torch.no_grad():
        logits = model(extractor.prepare([place / "images" / key for key in keys])).numpy()
    assert_adds_up(result, logits)
