"""The probe as a file: the same scores after loading, and one line for whatever is damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import densefeat
from densefeat.errors import UsageError, WeightsError
from densefeat.labels.targets import Targets
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.fitting import LinearHead
from densefeat.probing.knn import KnnHead
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.probe_file import Probe, load_probe, save_probe
from support.helpers import BUNDLED

R = np.random.default_rng(0)
LINEAR = LinearHead(R.standard_normal((3, 5)).astype(np.float32), R.standard_normal(3).astype(np.float32))
KEPT = np.array([0, 3])
LAYERS = LayersHead((2, 1, 2), KEPT, LINEAR.weight[:, :2].copy(), LINEAR.bias)
CLASSES = ("a", 'b "é"', "<c>")


def features(rows: int = 4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {"block2": generator.random((rows, 3), np.float32), "block1": generator.random((rows, 2), np.float32)}


def unit(rows: int) -> np.ndarray:
    values = R.standard_normal((rows, 5)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


HEADS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "linear": ("single", CLASSES, LINEAR),
    "numbers": ("regression", (), LinearHead(LINEAR.weight[:1], LINEAR.bias[:1], True)),
    "neighbours": ("single", CLASSES, KnnHead(unit(9), Targets("single", CLASSES, np.arange(9) % 3), 4)),
    "half": ("multi", CLASSES, KnnHead(unit(9).astype(np.float16), Targets("multi", CLASSES, R.random((9, 3)) > 0.5), 4)),
    "layers": ("multi", CLASSES, LAYERS),
    "number layers": ("regression", (), LayersHead((5,), KEPT, LAYERS.weight[:1], LAYERS.bias[:1], True)),
    "number neighbours": ("regression", (), KnnHead(unit(9), Targets("regression", (), R.random(9)), 4, 0.1)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_scores_after_loading(kind: str, tmp_path: Path) -> None:
    task, classes, head = HEADS[kind]
    made = Probe(task, classes, ("block1", "block2"), {"model": "m"}, head, {"test": {"top1": 50.0}})  # type: ignore[arg-type]
    save_probe(tmp_path / "probe.safetensors", made)
    for path in (tmp_path, str(tmp_path / "probe.safetensors")):
        probe = load_probe(path)
        assert (probe.task, probe.classes, probe.columns) == (task, classes, ("block1", "block2"))
        assert (probe.provenance, probe.told) == ({"model": "m"}, {"test": {"top1": 50.0}})
        found = features()
        expected = head.scores(np.concatenate([found["block1"], found["block2"]], 1))
        np.testing.assert_array_equal(probe.scores(found), expected)
        assert expected.shape == ((4,) if task == "regression" else (4, 3))


ATTENTIVE = AttentiveHead(
    (R.random((2, 2), np.float32), R.random((1, 3), np.float32)),
    (R.random((2, 1, 2), np.float32), R.random((1, 3, 3), np.float32)),
    LINEAR.weight,
    LINEAR.bias,
)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_an_attentive_head_after_loading(task: Any, tmp_path: Path) -> None:
    save_probe(tmp_path / "p", Probe(task, CLASSES, ("block1", "block2"), {}, ATTENTIVE))
    maps = {"block2": R.random((4, 3, 2, 2), np.float32), "block1": R.random((4, 2, 5, 5), np.float32)}
    scores = load_probe(tmp_path / "p").scores(maps)
    np.testing.assert_array_equal(scores, ATTENTIVE.scores([maps["block1"], maps["block2"]]))
    with pytest.raises(UsageError, match=r"maps of shapes \(4, 2\), \(4, 3\): this head takes \(rows, C, H, W\)"):
        load_probe(tmp_path / "p").scores(features())


def test_features_of_another_network() -> None:
    probe = Probe("single", CLASSES, ("block1", "block2"), {}, LINEAR)
    with pytest.raises(UsageError, match="no features block2 for this probe: it takes block1, block2"):
        probe.scores({"block1": np.zeros((1, 2))})
    with pytest.raises(UsageError, match=r"features of shape \(1, 4\): this head takes shape \(rows, 5\)"):
        probe.scores({"block1": np.zeros((1, 2)), "block2": np.zeros((1, 2))})


def test_the_network_that_made_the_features(photo_folder: Path, tmp_path: Path) -> None:
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, pool="avg,max", image_size=40)
    store = densefeat.open_store(tmp_path / "e.parquet")
    columns = ("block1_max", "block2_avg")
    probe = Probe("single", CLASSES, columns, store.provenance, LINEAR)
    extractor = probe.extractor(device="cpu")
    assert [tap.name for tap in extractor.taps] == ["block1", "block2"]
    found = extractor([photo_folder / store.keys[3]])
    for column in columns:
        np.testing.assert_allclose(found[column].numpy()[0], store[column][3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("provenance", "error", "match"),
    [
        ({}, UsageError, r"this probe does not record what made it \(model, .* missing\): probe a store of densefeat extract"),
        ({"weights": []}, WeightsError, "its record of the network is damaged"),
        ({"blocks": 3}, WeightsError, "its record of the network is damaged"),
        ({"preprocessing": {"no": 1}}, UsageError, r"this probe records no preprocessing that can be applied \("),
        ({"weights": {"source": "a model object", "sha256": "0"}}, UsageError, r"made by a model object \("),
    ],
)
def test_unusable_records_of_networks(
    provenance: dict, error: type, match: str, small_extractor: densefeat.FeatureExtractor
) -> None:
    good = {
        **small_extractor.provenance,
        "blocks": ["block1"],
        "pool": ["avg"],
        "tap": "norm",
        "precision": "fp32",
        "preprocessing": small_extractor.preprocessing.to_json(),
    }
    with pytest.raises(error, match=match):
        Probe("single", CLASSES, ("block1",), good | provenance if provenance else {}, LINEAR).extractor(device="cpu")


def write(path: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A good probe of three classes, with changes; None takes something away."""
    save_probe(path, Probe("single", CLASSES, ("block1",), {}, LINEAR))
    found = load_file(path)
    with densefeat_metadata(path) as described:
        described |= changes
        kept = {name: value for name, value in described.items() if value is not None}
    save_file(found if tensors is None else tensors, path, {"densefeat_probe": json.dumps(kept)})
    return path


class densefeat_metadata:
    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        self.described = json.loads(header["__metadata__"]["densefeat_probe"])

    def __enter__(self) -> dict[str, Any]:
        return self.described

    def __exit__(self, *_: object) -> None:
        pass


W, B = LINEAR.weight, LINEAR.bias
POOLING = {"weight": W, "bias": B, "queries.0": R.random((1, 2), np.float32), "values.0": R.random((1, 5, 2), np.float32)}
MANY_QUERIES = POOLING | {"queries.0": np.ones((3, 2), np.float32), "values.0": np.ones((3, 1, 2), np.float32)}
KNN = {"features": unit(6), "values": np.arange(6) % 3}
KNN_HEAD = {"head": "neighbours", "k": 2, "temperature": 0.07}
SOME = {"weight": LAYERS.weight, "bias": B, "kept": KEPT, "widths": np.array(LAYERS.widths)}
SOME_HEAD = {"head": "layers", "squeeze": False}


@pytest.mark.parametrize(
    ("tensors", "changes", "match"),
    [
        (None, {"version": 2}, "its version is 2, this one reads up to 1: update densefeat"),
        (None, {"version": None}, "damaged, or not a probe .*version"),
        (None, {"task": "other"}, "task 'other' of 3 classes"),
        (None, {"task": "regression"}, "task 'regression' of 3 classes"),
        (None, {"classes": []}, "task 'single' of 0 classes"),
        (None, {"classes": ["a", "b", "a"]}, "names that are not text, or repeated"),
        (None, {"classes": "abc"}, "names that are not text"),
        (None, {"classes": ["a", "b"]}, r"weight \(3, 5\) and bias \(3,\) for 2 outputs"),
        (None, {"columns": []}, "0 columns"),
        (None, {"columns": [1]}, "names that are not text"),
        (None, {"provenance": []}, "provenance is not an object"),
        (None, {"head": "pickle"}, "a head of kind 'pickle'"),
        (None, {"squeeze": True}, "weight float32, bias float32"),
        ({"weight": W}, {}, "'bias'"),
        ({"weight": W[:, :0], "bias": B}, {}, r"weight \(3, 0\)"),
        ({"weight": W, "bias": B[:2]}, {}, r"bias \(2,\)"),
        ({"weight": W.astype(np.float64), "bias": B}, {}, "weight float64"),
        ({"weight": W * np.nan, "bias": B}, {}, "15 numbers are NaN or infinite"),
        (KNN, KNN_HEAD | {"k": 7}, "k 7 of 6 rows"),
        (KNN, KNN_HEAD | {"k": 0}, "k 0 of 6 rows"),
        (KNN, KNN_HEAD | {"k": True}, "k True of 6 rows"),
        (KNN, KNN_HEAD | {"temperature": 0.0}, "temperature 0.0"),
        (KNN | {"values": np.arange(6)}, KNN_HEAD, "a class 0 or 5 of 3"),
        (KNN | {"values": np.arange(5)}, KNN_HEAD, r"with values int64 \(5,\)"),
        (KNN | {"features": np.zeros((6, 5), np.int8)}, KNN_HEAD, "features int8"),
        (SOME | {"bias": B[:2]}, SOME_HEAD, r"bias \(2,\)"),
        (SOME, SOME_HEAD | {"squeeze": True}, "weight float32, bias float32"),
        (SOME | {"weight": LAYERS.weight * np.inf}, SOME_HEAD, "6 numbers are NaN or infinite"),
        (SOME | {"kept": KEPT.astype(np.int32)}, SOME_HEAD, r"kept features int32 \(2,\)"),
        (SOME | {"widths": np.zeros((0,), np.int64)}, SOME_HEAD, r"layer widths int64 \(0,\)"),
        (SOME | {"widths": np.array([5, 0])}, SOME_HEAD, "2 kept features of 5 in layers of 0 and more"),
        (SOME | {"widths": np.array([2**62, 2**62])}, SOME_HEAD, "2 kept features of 9223372036854775808"),
        (SOME | {"kept": np.array([3])}, SOME_HEAD, "1 kept features of 5"),
        (SOME | {"kept": np.array([3, 0])}, SOME_HEAD, "not ascending positions below 5"),
        (SOME | {"kept": np.array([3, 3])}, SOME_HEAD, "not ascending positions below 5"),
        (SOME | {"kept": np.array([-1, 3])}, SOME_HEAD, "not ascending positions below 5"),
        (SOME | {"kept": np.array([3, 5])}, SOME_HEAD, "not ascending positions below 5"),
        (POOLING, {"head": "attentive", "task": "regression", "classes": []}, "an attentive head for numbers"),
        (POOLING, {"head": "attentive", "columns": ["block1", "block2"]}, "queries.1"),
        (POOLING | {"queries.0": np.ones((2, 2), np.float32)}, {"head": "attentive"}, r"queries float32 \(2, 2\) and values"),
        (POOLING | {"queries.0": np.ones((1, 2))}, {"head": "attentive"}, r"queries float64 \(1, 2\)"),
        (POOLING | {"values.0": np.ones((1, 0, 2), np.float32)}, {"head": "attentive"}, r"values float32 \(1, 0, 2\)"),
        (POOLING | {"values.0": np.ones((1, 4, 2), np.float32)}, {"head": "attentive"}, r"weight \(3, 5\) for 4 pooled values"),
        (MANY_QUERIES, {"head": "attentive"}, "3 queries of 2 channels of column 0"),
        (POOLING | {"weight": W[:2]}, {"head": "attentive"}, r"weight \(2, 5\) and bias \(3,\) for 3 outputs"),
        (POOLING | {"queries.0": np.full((1, 2), np.nan, np.float32)}, {"head": "attentive"}, "2 numbers are NaN or infinite"),
    ],
)
def test_damaged_probes(tmp_path: Path, tensors: dict | None, changes: dict, match: str) -> None:
    with pytest.raises(WeightsError, match=match) as caught:
        load_probe(write(tmp_path / "p.safetensors", tensors, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 100, b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}", (10**9).to_bytes(8, "little") + b"{" * 1000],
)
def test_files_that_are_not_probes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(WeightsError, match=r"^probe '.*p': (damaged, or not a probe|not a probe of densefeat)"):
        load_probe(tmp_path / "p")


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    save_probe(tmp_path / "p", Probe("single", CLASSES, ("block1",), {}, LINEAR))
    whole = (tmp_path / "p").read_bytes()
    for length in (4, 100, len(whole) - 1):
        (tmp_path / "p").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="damaged"):
            load_probe(tmp_path / "p")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file; give the folder of `densefeat probe --out`"):
        load_probe(tmp_path)


def test_json_nested_too_deep(tmp_path: Path) -> None:
    save_file({"weight": W, "bias": B}, tmp_path / "p", {"densefeat_probe": "[" * 100_000})
    with pytest.raises(WeightsError, match="nested too deeply"):
        load_probe(tmp_path / "p")


def test_no_flipped_bit_changes_a_score(tmp_path: Path) -> None:
    path, random = tmp_path / "p", np.random.default_rng(0)
    save_probe(path, Probe("single", CLASSES, ("block1", "block2"), {"model": "m"}, LINEAR, {"test": {"top1": 50.0}}))
    whole, good = path.read_bytes(), load_probe(path)
    scores = good.scores(features())
    for bit in random.choice(8 * len(whole), 200, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            probe = load_probe(path)
        except WeightsError:
            continue
        np.testing.assert_array_equal(probe.scores(features()), scores)
        assert (probe.classes, probe.columns, probe.told) == (good.classes, good.columns, good.told)
    path.write_bytes(whole[:-3] + b"abc")
    with pytest.raises(WeightsError, match=r"^probe '.*p': damaged, .* make it again with the command that wrote it"):
        load_probe(path)
