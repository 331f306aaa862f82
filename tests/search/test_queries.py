"""Queries are embedded as the store was, with the same weights or not at all; rows are found by key."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import save_file

import densefeat
from densefeat.errors import UsageError, WeightsError
from densefeat.images import Preprocessing
from densefeat.nets.weights import file_sha256
from densefeat.probing import Probe
from densefeat.probing.fitting import LinearHead
from densefeat.search.find import _find_row
from densefeat.search.queries import embed_images, rebuild_extractor
from support.helpers import BUNDLED, relative_difference
from support.processors import AVX2, AVX512_BF16


def rebuild(store: densefeat.Store, weights: str | Path | None = None) -> densefeat.FeatureExtractor:
    return rebuild_extractor(store.provenance, ["block1"], str(store.path), weights, "cpu", "query it by --key")


@pytest.mark.parametrize(
    ("settings", "column"),
    [
        ({}, "block3"),
        ({"blocks": "2", "tap": "raw", "pool": "avg,gem:4", "image_size": 40, "decoder": "pillow"}, "block2_gem"),
        ({"blocks": "1,3", "pool": "none", "precision": "bf16"}, "block1"),
    ],
)
@pytest.mark.usefixtures("with_bf16")
def test_a_query_is_embedded_as_its_row_was(photo_folder: Path, tmp_path: Path, settings: dict, column: str) -> None:
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, **settings)
    store = densefeat.open_store(tmp_path / "e.parquet")
    some = [2, 7]
    queries = embed_images(store, column, [photo_folder / store.keys[row] for row in some], device="cpu")
    assert relative_difference(queries, store[column][some]) < (1e-2 if settings.get("precision") == "bf16" else 1e-5)


def test_a_store_in_bf16_is_searched_in_fp32_where_that_is_emulated(
    photo_folder: Path, tmp_path: Path, pretend_flags: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend_flags(AVX512_BF16)
    densefeat.extract(
        photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", blocks="1", precision="bf16", backend="buffer"
    )
    store = densefeat.open_store(tmp_path / "e.parquet")
    assert store.provenance["precision"] == "bf16"
    pretend_flags(AVX2)
    caplog.clear()
    queries = embed_images(store, "block1", [photo_folder / store.keys[2]], device="cpu")
    assert [record.getMessage()[:16] for record in caplog.records if record.levelname == "WARNING"] == ["precision: fp32 "]
    assert 0 < relative_difference(queries, store["block1"][[2]]) < 1e-2


def test_only_what_the_column_needs_is_run(photo_folder: Path, tmp_path: Path) -> None:
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, image_size=32)
    extractor = rebuild(densefeat.open_store(tmp_path / "e.parquet"))
    assert [tap.name for tap in extractor.taps] == ["block1"]


@pytest.fixture
def bundled_file() -> Path:
    return Path(timm.create_model(BUNDLED).pretrained_cfg["file"])


@pytest.fixture
def of_checkpoint(tmp_path: Path, photo_folder: Path, bundled_file: Path) -> Path:
    """A store made from a checkpoint file that is beside it."""
    checkpoint = shutil.copy(bundled_file, tmp_path / "mine.safetensors")
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, weights=checkpoint, device="cpu", workers=1, blocks="1")
    return tmp_path / "e.parquet"


def test_the_checkpoint_that_the_store_names_is_found(of_checkpoint: Path, tmp_path: Path) -> None:
    extractor = rebuild(densefeat.open_store(of_checkpoint))
    assert extractor.provenance["weights"]["source"] == str(tmp_path / "mine.safetensors")


def test_a_checkpoint_that_was_moved(of_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").rename(tmp_path / "elsewhere.safetensors")
    store = densefeat.open_store(of_checkpoint)
    with pytest.raises(
        UsageError,
        match=r"the weights of .*e.parquet were '.*mine.safetensors', which is not there now: --weights FILE \(sha256 [0-9a-f]{64}\)",
    ):
        rebuild(store)
    rebuild(store, tmp_path / "elsewhere.safetensors")


def test_other_weights_are_refused_before_they_are_read(of_checkpoint: Path, tmp_path: Path, bundled_file: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"no checkpoint at all")
    here, there = file_sha256(tmp_path / "mine.safetensors"), file_sha256(bundled_file)
    with pytest.raises(UsageError, match=rf"are others than those of .*e.parquet: sha256 {here}, recorded {there}"):
        rebuild(densefeat.open_store(of_checkpoint))


MADE = {
    "model": f"{BUNDLED}.tin200",
    "weights": {"source": "densefeat/densenet_bc100_k12.tin200.safetensors", "sha256": "00", "license": None},
    "blocks": ["block1"],
    "pool": ["avg"],
    "tap": "norm",
    "precision": "fp32",
    "preprocessing": Preprocessing(64, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).to_json(),
}


def preprocess(**changes: object) -> dict:
    return MADE | {"preprocessing": MADE["preprocessing"] | changes}


@pytest.mark.parametrize(
    ("provenance", "weights", "match"),
    [
        ({}, None, r"does not record what made it \(model, weights, .* missing\): query it by --key"),
        (MADE | {"model": "Mine", "weights": {"source": "a model object", "sha256": "00"}}, None, r"a model object \(Mine\)"),
        (MADE | {"model": "densefeat_nonsense"}, None, "unknown model 'densefeat_nonsense'"),
        (MADE, "nowhere.pt", "weights 'nowhere.pt': no such file"),
        *(
            (values, None, r"store.parquet records no preprocessing that can be applied \(")
            for values in (
                preprocess(size=40_000),
                preprocess(size=-64),
                preprocess(size=64.0),
                preprocess(size="64"),
                preprocess(crop_pct=1e-5),
                preprocess(crop_pct=0),
                preprocess(crop_pct=-1),
                preprocess(mean=[0.5] * 10**5),
                preprocess(std=[[0.5]] * 3),
                preprocess(shape=3),
                MADE | {"preprocessing": {}},
                MADE | {"preprocessing": [64]},
            )
        ),
        (MADE, None, "sha256 [0-9a-f]{64}, recorded 00"),
    ],
)
def test_stores_that_no_network_fits(make_store, provenance: dict, weights: str | None, match: str) -> None:
    store = make_store({"block1": np.ones((1, 216), np.float32)}, **provenance)
    with pytest.raises(UsageError, match=match):
        rebuild(store, weights)


@pytest.mark.parametrize(
    "changes",
    [{"weights": []}, {"weights": {"source": 5}}, {"blocks": 3}, {"pool": 3}, {"model": 7}],
)
def test_provenance_of_other_types(make_store, changes: dict) -> None:
    weights = {"weights": MADE["weights"] | {"sha256": None}}
    store = make_store({"block1": np.ones((1, 216), np.float32)}, **MADE | weights | changes)
    with pytest.raises(WeightsError, match=r"store\.parquet: its record of the network is damaged"):
        rebuild(store)


def test_a_store_does_not_decide_what_is_fetched(make_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a search nor a probe asks a hub for weights that only a file names; both say how to get them."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # asking would be another error
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = "hf-hub:timm/densenet121.ra_in1k"
    made = MADE | {"model": "densefeat_densenet121.ra_in1k", "weights": {"source": source, "sha256": None, "license": None}}
    made["preprocessing"] = Preprocessing.for_model(timm.create_model(BUNDLED)).to_json()
    store = make_store({"block1": np.ones((1, 256), np.float32)}, **made)
    ways = r"hf download timm/densenet121.ra_in1k model.safetensors, or --weights FILE"
    with pytest.raises(WeightsError, match=rf"the weights of .*store.parquet are {source}, which are not on this .*: {ways}"):
        rebuild(store)
    probe = Probe("single", ("a", "b"), ("block1",), store.provenance, LinearHead(np.ones((2, 256)), np.ones(2)))
    with pytest.raises(WeightsError, match=rf"the weights of this probe are {source}, .*: {ways}"):
        probe.extractor(device="cpu")
    folder = tmp_path / "hub/models--timm--densenet121.ra_in1k"  # as the download leaves it
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    save_file(timm.create_model("densenet121").state_dict(), folder / "snapshots/abc/model.safetensors")
    assert rebuild(store).provenance["weights"]["source"] == source


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "query '.*q.jpg': No such file"), (b"", "query '.*q.jpg': the file is empty"), (b"x", "not an image")],
)
def test_unreadable_queries(photo_folder: Path, tmp_path: Path, content: bytes | None, match: str) -> None:
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, blocks="1")
    if content is not None:
        (tmp_path / "q.jpg").write_bytes(content)
    with pytest.raises(UsageError, match=match):
        embed_images(densefeat.open_store(tmp_path / "e.parquet"), "block1", [tmp_path / "q.jpg"], device="cpu")


def test_rows_by_key(make_store) -> None:
    store = make_store({"block1": np.ones((3, 2), np.float32)}, keys=["a.jpg", "b.jpg:1,2", "dir/c.jpg"])
    assert [_find_row(store, key) for key in ("a.jpg", "b.jpg:1,2", "dir/c.jpg")] == [0, 1, 2]
    with pytest.raises(UsageError, match=r"key 'dir/d.jpg' is not in .*: did you mean dir/c.jpg"):
        _find_row(store, "dir/d.jpg")
    with pytest.raises(UsageError, match=r"key 'zzz' is not in \S+$"):
        _find_row(store, "zzz")


def test_tiles_by_key_and_place(make_store) -> None:
    places = [(0, 0), (32, 0), (0, 0)]
    store = make_store({"block1": np.ones((3, 2), np.float32)}, keys=["a.tif", "a.tif", "b.tif"], places=places)
    assert [_find_row(store, key) for key in ("a.tif:0,0", "a.tif:32,0", "b.tif:0,0", "b.tif")] == [0, 1, 2, 2]
    with pytest.raises(UsageError, match="key 'a.tif' has 2 rows in .*: name one by its place, as in a.tif:0,0"):
        _find_row(store, "a.tif")
    with pytest.raises(UsageError, match="key 'a.tif:1,1' is not in"):
        _find_row(store, "a.tif:1,1")
