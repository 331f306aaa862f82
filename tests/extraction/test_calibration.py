"""Jobs in int8: a store keeps its network, and every later row comes from it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densefeat
from densefeat import DensefeatError, UsageError
from densefeat.errors import OutputError
from densefeat.extraction import ExtractResult
from densefeat.search.queries import embed_images
from densefeat.store import Layout, read_quantized, require_manifest, save_quantized, verify_store
from support.labelled_images import encode_png
from support.stores import flip_bit
from support.tiny_net import TINY, write_tiny_weights

IMAGES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pieces: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        (folder / f"{number:03}.png").write_bytes(encode_png(pieces[number % len(pieces)] + np.uint8(number // len(pieces))))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, folder: Path, weights: Path) -> Path:
    """A store in int8. Shared: copy it."""
    out = tmp_path_factory.mktemp("made") / "store"
    extract(folder, out, weights, part_rows=16)
    return out


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def extract(folder: Path, out: Path, weights: Path, **options: object) -> ExtractResult:
    return densefeat.extract(folder, out, TINY, weights, device="cpu", **dict(precision="int8", part_rows=16) | options)


def read_record(store: Path) -> dict:
    found = read_quantized(Layout(store), require_manifest(Layout(store)))
    assert found is not None
    return found[0]


def test_rows_are_those_of_the_calibrated_network(made: Path, folder: Path, weights: Path) -> None:
    store, record = densefeat.open_store(made), read_record(made)
    extractor = densefeat.FeatureExtractor(TINY, weights=weights, device="cpu", precision="int8")
    extractor.calibrate([folder / name for name in record["keys"]])
    assert extractor.quantized is not None
    features = extractor(sorted(folder.iterdir()))
    plain = densefeat.FeatureExtractor(TINY, weights=weights, device="cpu")(sorted(folder.iterdir()))
    for name, values in features.items():
        assert np.allclose(store[name], values.numpy(), rtol=1e-5, atol=1e-5)
        assert not np.allclose(store[name], plain[name].numpy(), rtol=1e-5, atol=1e-5)
    assert len(record["keys"]) + len(record["held_out"]) == IMAGES
    assert not set(record["keys"]) & set(record["held_out"])
    compared = extractor.compare_to_float32([folder / name for name in record["held_out"]])
    assert {name: pytest.approx(float(values.min()), abs=1e-5) for name, values in compared.items()} == {
        name: cosine["least"] for name, cosine in record["cosine"].items()
    }


def test_the_manifest_names_the_network(made: Path) -> None:
    manifest, record = json.loads((made / "manifest.json").read_text()), read_record(made)
    assert manifest["settings"]["calibration"] == record["sha256"]
    del record["pixels"]
    assert manifest["provenance"]["calibration"] == record | {"keys": 32, "held_out": 8}
    assert not verify_store(made).damages


def test_an_update_uses_the_network_of_the_store(store: Path, folder: Path, weights: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(folder, tmp_path / "more"))
    shutil.copy(folder / "000.png", more / "zzz.png")
    result = extract(more, store, weights, update=True)
    assert (result.extracted, result.rows) == (1, IMAGES + 1)
    rows = densefeat.open_store(store)
    for name in rows.shapes:
        assert np.array_equal(rows[name][0], rows[name][-1])


@pytest.mark.slow
def test_an_interrupted_job_goes_on_with_its_network(folder: Path, weights: Path, tmp_path: Path, made: Path) -> None:
    """A part is lost, as after a crash: its rows come from the network that is there, though NNCF is not."""
    store = Path(shutil.copytree(made, tmp_path / "store"))
    (store / "data/part-00001.parquet").unlink()
    code = "import sys; sys.modules['nncf'] = None; import support.tiny_net, densefeat; densefeat.extract(*sys.argv[1:3], sys.argv[3],"
    code += " sys.argv[4], device='cpu', precision='int8', part_rows=16)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code, folder, store, TINY, weights], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    again, before = densefeat.open_store(store), densefeat.open_store(made)
    for name in before.shapes:
        assert np.array_equal(again[name], before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precision="fp32"), "precision is 'int8' there, not 'fp32'"),
        (dict(tap="raw"), "tap is 'norm' there, not 'raw'"),
        (dict(calibration="elsewhere"), "calibration is '.*' there, not '.*elsewhere'"),
        (dict(min_cosine=1.0), "is below --min-cosine 1"),
    ],
)
def test_a_store_refuses_other_options(store: Path, folder: Path, weights: Path, options: dict, message: str) -> None:
    with pytest.raises(DensefeatError, match=message):
        extract(folder, store, weights, **options)


def test_a_store_in_float32_refuses_int8_before_it_calibrates(folder: Path, weights: Path, tmp_path: Path) -> None:
    extract(folder, tmp_path / "store", weights, precision="fp32")
    with pytest.raises(UsageError, match="precision is 'fp32' there, not 'int8'"):
        extract(folder, tmp_path / "store", weights)
    assert not Layout(tmp_path / "store").quantized.exists()


def damage(file: Path) -> None:
    flip_bit(file, file.stat().st_size - 100)


@pytest.mark.parametrize(
    ("change", "message"), [(Path.unlink, "int8.safetensors"), (damage, "int8.safetensors.*damaged|not as")]
)
def test_a_network_that_is_lost(store: Path, folder: Path, weights: Path, change, message: str) -> None:
    change(Layout(store).quantized)
    with pytest.raises(OutputError, match=message):
        extract(folder, store, weights, update=True)
    assert "int8.safetensors" in verify_store(store).damages[0].problem


@pytest.mark.slow
def test_the_network_of_another_store_is_refused(store: Path, folder: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    extract(folder, other, weights, calibration=make_part(folder, tmp_path / "part"))
    shutil.copy(Layout(other).quantized, Layout(store).quantized)
    with pytest.raises(OutputError, match="is not the network that made the rows"):
        extract(folder, store, weights)


def test_a_block_whose_cosine_is_nan_falls_short(store: Path, folder: Path, weights: Path) -> None:
    layout = Layout(store)
    found = read_quantized(layout, require_manifest(layout))
    assert found is not None
    record, nodes, constants = found
    record["cosine"]["block2"]["median"] = float("nan")
    save_quantized(layout, record, nodes, constants)
    with pytest.raises(DensefeatError, match="block2 is below --min-cosine"):
        extract(folder, store, weights, update=True)


def make_part(folder: Path, part: Path, chosen: slice = slice(None, None, 2)) -> Path:
    part.mkdir()
    for file in sorted(folder.iterdir())[chosen]:
        shutil.copy(file, part)
    return part


@pytest.mark.slow
def test_images_of_another_place(folder: Path, weights: Path, tmp_path: Path) -> None:
    part = make_part(folder, tmp_path / "part")
    extract(folder, tmp_path / "store", weights, calibration=part)
    record = read_record(tmp_path / "store")
    assert (record["images"], record["keys"]) == (str(part), sorted(path.name for path in part.iterdir()))


@pytest.mark.slow
def test_the_network_of_another_store(made: Path, folder: Path, weights: Path, tmp_path: Path) -> None:
    extract(make_part(folder, tmp_path / "part"), tmp_path / "store", weights, calibration=made)
    new, old = densefeat.open_store(tmp_path / "store"), densefeat.open_store(made)
    for name in old.shapes:
        assert np.array_equal(new[name], old[name][::2])
    with pytest.raises(UsageError, match=r"is a store of other settings \(tap\)"):
        extract(folder, tmp_path / "raw", weights, tap="raw", calibration=made)


@pytest.mark.slow
def test_a_single_file(folder: Path, weights: Path, tmp_path: Path, made: Path) -> None:
    extract(folder, tmp_path / "store.parquet", weights, part_rows=None)
    one, other = densefeat.open_store(tmp_path / "store.parquet"), densefeat.open_store(made)
    for name in one.shapes:
        assert np.allclose(one[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_other_ranks_use_the_network_of_the_first(folder: Path, weights: Path, tmp_path: Path, made: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, support.tiny_net, densefeat\n"
        f"densefeat.extract(*sys.argv[1:3], {TINY!r}, sys.argv[3], device='cpu', precision='int8', part_rows=16)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, folder, tmp_path / "store", weights], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    store, one = densefeat.open_store(tmp_path / "store"), densefeat.open_store(made)
    assert read_record(tmp_path / "store")["keys"] == read_record(made)["keys"]
    for name in one.shapes:
        assert np.allclose(store[name], one[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_starting_over_in_float32_leaves_no_network(store: Path, folder: Path, weights: Path) -> None:
    extract(folder, store, weights, precision="fp32", overwrite=True)
    assert not Layout(store).quantized.exists()


@pytest.mark.slow
def test_a_job_that_ended_before_its_manifest(made: Path, folder: Path, weights: Path, tmp_path: Path) -> None:
    for name in ("ended", "stranger"):
        (tmp_path / name).mkdir()
    shutil.copy(Layout(made).quantized, tmp_path / "ended")
    assert extract(folder, tmp_path / "ended", weights).rows == IMAGES
    Layout(tmp_path / "stranger").quantized.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"no store of densefeat and not empty \(int8.safetensors\)"):
        extract(folder, tmp_path / "stranger", weights)


@pytest.mark.slow
def test_tiles(folder: Path, weights: Path, tmp_path: Path) -> None:
    extract(folder, tmp_path / "store", weights, tile=32)
    assert set(read_record(tmp_path / "store")["keys"]) <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_images_that_cannot_be_read_are_left_out(folder: Path, weights: Path, tmp_path: Path) -> None:
    part = make_part(folder, tmp_path / "part")
    (part / "000.png").write_bytes(b"no image")
    extract(part, tmp_path / "store", weights)
    record = read_record(tmp_path / "store")
    assert len(record["keys"]) + len(record["held_out"]) == 19


@pytest.mark.slow
def test_too_few_images(folder: Path, weights: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(folder / "000.png", few / "other name.png")
    with pytest.raises(UsageError, match="0 images of '.*few' to calibrate int8 on, and 1 to compare"):
        extract(few, tmp_path / "store", weights)
    with pytest.raises(UsageError, match=f"{IMAGES} images of '{folder}' to calibrate int8 on, and 0 to compare"):
        extract(few, tmp_path / "store", weights, calibration=folder)
    (few / "000.png").write_bytes(encode_png(255 - np.asarray(Image.open(folder / "000.png"))))
    extract(few, tmp_path / "store", weights, calibration=folder)
    assert read_record(tmp_path / "store")["held_out"] == ["000.png"]  # another image than that of the same name there


@pytest.mark.slow
def test_a_refused_overwrite_leaves_rows_with_their_network(store: Path, folder: Path, weights: Path) -> None:
    (store / "data/part-00007.parquet").write_bytes(b"somebody else's")
    with pytest.raises(UsageError, match="part-00007"):
        extract(folder, store, weights, overwrite=True, calibration=make_part(folder, store.parent / "part"))
    assert read_record(store)["images"] == str(folder)


@pytest.mark.slow
def test_int8_that_falls_short(folder: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written. Images of one kind are no calibration for others."""
    alike = make_part(folder, tmp_path / "alike", slice(20))
    message = r"calibrated on 20 images; .*, block3 0\.\d+ \(0\.\d+\): block1 is below --min-cosine 0.99"
    with pytest.raises(DensefeatError, match=message) as error:
        extract(folder, tmp_path / "store", weights, calibration=alike)
    assert error.value.exit_code == 1
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]
    with caplog.at_level(logging.INFO, "densefeat"):
        extract(folder, tmp_path / "store", weights)
    assert "cosine to float32 on 8 others, median (least): block1 " in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(min_cosine=1.1), "min cosine 1.1: give a number from 0 to 1"),
        (dict(precision="bf16", calibration="x"), "--calibration is for --precision int8, not bf16"),
        (dict(backend="buffer"), "backend 'buffer' for int8: it does not compute in int8: choose openvino"),
    ],
)
def test_wrong_use(folder: Path, weights: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extract(folder, tmp_path / "store", weights, **options)


def test_queries_and_probes_of_a_store_say_that_they_compute_in_float32(
    made: Path, folder: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = densefeat.open_store(made)
    vectors = embed_images(store, "block3", [folder / "000.png"], weights, "cpu")
    plain = densefeat.FeatureExtractor(TINY, weights=weights, device="cpu")([folder / "000.png"])
    assert np.allclose(vectors, plain["block3"].numpy(), rtol=1e-5, atol=1e-5)
    assert "was made in int8; images are computed in float32 here (cosine of the two in the median: block1 " in caplog.text
