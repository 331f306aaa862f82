"""One picture through every container, depth and way in; measured ranges; and every command by the same rule."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from imagecodecs import png_encode
from PIL import Image

import densefeat
from densefeat import DensefeatError, FeatureExtractor, PixelRule, UsageError
from densefeat.errors import UnknownRange
from densefeat.images import TiledSource, open_image, open_source
from densefeat.search.queries import embed_images
from support.commands import run_command
from support.icc_profiles import make_rgb_profile
from support.tiny_net import TINY, write_tiny_weights

SIDE = 64


@pytest.fixture(scope="module")
def picture(photographs: list[Image.Image]) -> np.ndarray:
    """RGB uint8 with black and white in it, so that its range is that of its type."""
    pixels = np.asarray(photographs[2].crop((100, 100, 100 + SIDE, 100 + SIDE))).copy()
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def scaled(pixels: np.ndarray, high: float, dtype: str) -> np.ndarray:
    values = pixels.astype(np.float64) * (high / 255)
    return (values if dtype[0] == "f" else np.rint(values)).astype(dtype)


def as_png(pixels: np.ndarray) -> bytes:
    return bytes(png_encode(pixels))


def as_tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "rgb" if pixels.ndim == 3 else "minisblack", **options})
    return file.getvalue()


# how a picture of 8 bits is stored, and the rule that reads it
CONTAINERS = {
    "png, 8 bits": (as_png, PixelRule()),
    "png, 16 bits": (lambda p: as_png(p.astype(np.uint16) * 257), PixelRule()),
    "png, 12 bits in 16": (lambda p: as_png(scaled(p, 4095, "u2")), PixelRule("0:4095")),
    "bmp": (lambda p: save(p, "BMP"), PixelRule()),
    "tiff, 8 bits": (as_tiff, PixelRule()),
    "tiff, planes": (lambda p: as_tiff(p.transpose(2, 0, 1), planarconfig="separate"), PixelRule()),
    "tiff, 16 bits, tiles": (lambda p: as_tiff(p.astype(np.uint16) * 257, tile=(32, 16)), PixelRule()),
    "tiff, 12 bits declared": (
        lambda p: as_tiff(scaled(p, 4095, "u2"), extratags=[(281, 3, 3, (4095,) * 3, True)]),
        PixelRule(),
    ),
    "tiff, 12 bits given": (lambda p: as_tiff(scaled(p, 4095, "u2")), PixelRule("0:4095")),
    "tiff, signed": (lambda p: as_tiff((scaled(p, 4000, "i2") - 1000).astype("i2")), PixelRule("-1000:3000")),
    "tiff, 32 bits": (lambda p: as_tiff(scaled(p, 1e6, "u4")), PixelRule("0:1000000")),
    "tiff, floats": (lambda p: as_tiff(scaled(p, 1, "f4"), compression="deflate", predictor=True), PixelRule("dtype")),
    "tiff, half floats": (lambda p: as_tiff(scaled(p, 1, "f2")), PixelRule("0:1")),
    "tiff, doubles, big-endian": (lambda p: as_tiff(scaled(p, 5e4, ">f8"), byteorder=">"), PixelRule("0:5e4")),
    "tiff, its own percentiles": (lambda p: as_tiff(scaled(p, 1e-3, "f4")), PixelRule("image:p0:p100")),
    "tiff, other bands chosen": (
        lambda p: as_tiff(np.dstack([p[..., ::-1], p[..., 0]]), photometric="minisblack", planarconfig="contig"),
        PixelRule(channels=("3", "2", "1")),
    ),
}


def save(pixels: np.ndarray, name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name)
    return file.getvalue()


def suffix(data: bytes) -> str:
    return ".png" if data[:4] == b"\x89PNG" else ".bmp" if data[:2] == b"BM" else ".tif"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_embedding_in_every_way(
    name: str, picture: np.ndarray, weights: Path, tmp_path: Path
) -> None:
    make, rule = CONTAINERS[name]
    folder = tmp_path / "images"
    folder.mkdir()
    data = make(picture)
    file = folder / f"a{suffix(data)}"
    file.write_bytes(data)
    for decoder in ("pillow", "torchvision"):
        whole = np.asarray(open_image(file, decoder, rule))
        assert np.abs(whole.astype(int) - picture).max() <= 1
        (tile,) = TiledSource(open_source(str(folder)), SIDE).items(0, 1)
        decoded = tile.decode(decoder, rule=rule)
        assert decoded is not None
        np.testing.assert_array_equal(decoded.pixels.permute(1, 2, 0).numpy(), whole)
    extractor = FeatureExtractor(TINY, weights=weights, device="cpu", pixels=rule, backend="reference")
    plain = FeatureExtractor(TINY, weights=weights, device="cpu", backend="reference")
    ours, expected = extractor([file]), plain([torch.from_numpy(picture.transpose(2, 0, 1).copy())])
    for block in expected:
        assert torch.cosine_similarity(ours[block], expected[block]).min() > 0.9999
    result = densefeat.extract(folder, tmp_path / "e.parquet", TINY, weights, device="cpu", pixels=rule, backend="reference")
    stored = np.stack(pq.read_table(result.path)["block3"].to_numpy())
    np.testing.assert_allclose(stored, ours["block3"].numpy(), atol=1e-4)


UNSAID = {
    "png, 12 bits in 16": lambda p: as_png(scaled(p, 4095, "u2")),
    "tiff, 12 bits in 16": lambda p: as_tiff(scaled(p, 4095, "u2")),
    "tiff, tiles": lambda p: as_tiff(scaled(p, 4095, "u2"), tile=(32, 16)),
    "tiff, floats": lambda p: as_tiff(scaled(p, 1, "f4")),
    "tiff, signed": lambda p: as_tiff(scaled(p, 3000, "i2")),
}


@pytest.mark.parametrize("name", UNSAID)
@pytest.mark.parametrize("tile", [None, 32])
def test_a_job_stops_where_nothing_says_what_is_white(
    name: str, tile: int | None, picture: np.ndarray, weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    data = UNSAID[name](picture)
    (folder / f"x{suffix(data)}").write_bytes(data)
    out = tmp_path / "out"
    with pytest.raises(UnknownRange, match=rf"image x\{suffix(data)}: .*--range"):
        densefeat.extract(folder, out, TINY, weights, device="cpu", tile=tile)
    ranged = densefeat.extract(folder, out, TINY, weights, device="cpu", tile=tile, pixels=PixelRule("image:p1:p99"))
    assert ranged.rows == (1 if tile is None else 4)


@pytest.fixture(scope="module")
def deep_folder(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of floats in the hundreds in classes a and b, of two bands, with missing pixels."""
    folder = tmp_path_factory.mktemp("deep")
    for number in range(6):
        values = np.roll(picture[..., :2], 7 * number, axis=0).astype(np.float32) * 2 + 100 * (number % 2)
        values[0, :3] = -9999
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        tifffile.imwrite(place / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
    return folder


def read_values(folder: Path) -> np.ndarray:
    values = np.stack([tifffile.imread(file) for file in sorted(folder.rglob("*.tif"))]).astype(np.float64)
    return np.where(values == -9999, np.nan, values)


def test_percentiles_of_all_images_are_measured_once(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    rule = PixelRule("p1:p99", ("1",), nodata=-9999.0)
    out = tmp_path / "out"
    densefeat.extract(deep_folder, out, TINY, weights, device="cpu", pixels=rule)
    ((low, high),) = densefeat.open_store(out).provenance["preprocessing"]["pixels"]["bounds"]
    expected = np.nanpercentile(read_values(deep_folder)[..., 0], (1, 99))
    np.testing.assert_allclose((low, high), expected, rtol=0.003)
    again = densefeat.extract(deep_folder, out, TINY, weights, device="cpu", pixels=rule)
    assert again.extracted == 0
    with pytest.raises(UsageError, match="other settings"):
        densefeat.extract(deep_folder, out, TINY, weights, device="cpu", pixels=PixelRule("p2:p98", ("1",), nodata=-9999.0))


def test_two_bands_are_read_by_a_network_of_two_channels(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    rule = PixelRule(nodata=-9999.0)
    out = tmp_path / "out"
    result = densefeat.extract(
        deep_folder, out, TINY, weights, device="cpu", pixels=rule, in_chans=2, channel_stats="fit", backend="reference"
    )
    store = densefeat.open_store(out)
    made = store.provenance["preprocessing"]
    values = read_values(deep_folder)
    np.testing.assert_allclose(made["mean"], np.nanmean(values, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(made["std"], np.nanstd(values, (0, 1, 2)), rtol=1e-5)
    # by hand: black is 0 in whatever unit, and the first layer is adapted as timm does
    import timm
    from safetensors.torch import load_file

    state = load_file(weights)
    kernel = state["features.conv0.weight"]
    state["features.conv0.weight"] = timm.models.adapt_input_conv(2, kernel)
    net = timm.create_model(TINY, in_chans=2).eval()
    net.load_state_dict(state, strict=False)
    stats = densefeat.ChannelStats(tuple(made["mean"]), tuple(made["std"]))
    extractor = FeatureExtractor(
        net, device="cpu", image_size=32, channel_stats=stats, backend="reference", pixels=PixelRule(nodata=-9999.0)
    )
    images = np.nan_to_num(values, nan=0.0)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(), (32, 32), mode="bicubic", antialias=True
    )
    mean, std = (torch.tensor(made[name]).view(-1, 1, 1) for name in ("mean", "std"))
    expected = extractor((small - mean) / std)
    order = [f"{'ab'[i % 2]}/{i}.tif" for i in range(6)]
    positions = [store["path"].tolist().index(name) for name in sorted(order)]
    np.testing.assert_allclose(store["block3"][positions], expected["block3"].numpy(), atol=2e-3)
    assert result.rows == 6
    reused = densefeat.extract(
        deep_folder,
        tmp_path / "again",
        TINY,
        weights,
        device="cpu",
        pixels=rule,
        in_chans=2,
        channel_stats=out,
        backend="reference",
    )
    np.testing.assert_allclose(densefeat.open_store(reused.path)["block3"], store["block3"], atol=1e-5)


def test_channels_that_have_no_statistics(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads 2 channels, but mean and deviation are of 3: give --channel-stats fit"):
        densefeat.extract(deep_folder, tmp_path / "out", TINY, weights, device="cpu", in_chans=2)


def test_probe_predict_search_and_map_follow_the_store(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    """A store by a rule: a probe of it embeds images by the same rule, search finds an image itself, thumbnails are not black."""
    rule = PixelRule("100:700", ("1",), nodata=-9999.0)
    out = tmp_path / "store"
    densefeat.extract(deep_folder, out, TINY, weights, device="cpu", pixels=rule, labels="folder", backend="reference")
    store = densefeat.open_store(out)

    from densefeat.search.queries import embed_images
    from densefeat.store import ImageEntry, make_thumbnails

    found = embed_images(store, "block3", [deep_folder / "a" / "0.tif"], device="cpu")
    np.testing.assert_allclose(found[0], store["block3"][store["path"].tolist().index("a/0.tif")], atol=1e-4)
    pictures, problem = make_thumbnails(store.provenance, [ImageEntry("a/0.tif", None, None)], deep_folder)
    assert problem is None
    data = next(iter(pictures.values()))
    import base64

    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))
    assert 30 < shown.mean() < 220


def test_fine_tuning_evaluation_and_prediction_by_a_rule(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    from densefeat.evaluation import evaluate, predict
    from densefeat.finetuning import finetune, load_finetuning

    overrides = [
        f"train={deep_folder}", f"model={TINY}", f"weights={weights}", "mode=full", "epochs=2", "batch_size=4", "workers=0",
        "val_share=0.34", "in_chans=2", "channel_stats=fit", "nodata=-9999", "lr=0.001",
    ]  # fmt: skip
    run = tmp_path / "run"
    finetune(load_finetuning("finetune_folder", overrides), run, "cpu")
    result = evaluate(str(run), str(deep_folder))
    assert result.scores.images == 6
    predicted = predict(str(run), deep_folder, tmp_path / "predicted", device="cpu")
    assert (predicted.rows, predicted.failures) == (6, 0)
    with pytest.raises(UsageError, match="records ranges and channels"):
        predict(str(run), deep_folder, tmp_path / "other", device="cpu", pixels=PixelRule("0:1"))
    made = densefeat.open_store(predicted.store).provenance["preprocessing"]
    assert (made["pixels"]["in_chans"], made["pixels"]["nodata"], len(made["mean"])) == (2, -9999.0, 2)
    densefeat.extract(deep_folder, tmp_path / "features", str(run), device="cpu", pixels=PixelRule(icc="ignore"))
    store = densefeat.open_store(tmp_path / "features")
    assert store.provenance["preprocessing"]["pixels"] == made["pixels"] | {"icc": "ignore"}  # the rest is the run's
    query = embed_images(store, "block3", [deep_folder / store.column("path")[0].as_py()], device="cpu")
    np.testing.assert_allclose(query[0], store["block3"][0], atol=1e-5)


def test_what_a_query_and_a_model_can_do_about_an_unknown_range(weights: Path, tmp_path: Path) -> None:
    from densefeat.evaluation import predict
    from densefeat.finetuning import finetune, load_finetuning

    plain, dark = tmp_path / "plain", tmp_path / "dark"
    for number, name in enumerate("aabb"):
        (plain / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * number, 9, 9)).save(plain / name / f"{number}.png")
    dark.mkdir()
    tifffile.imwrite(dark / "x.tif", np.full((32, 32, 3), 900, np.uint16), photometric="rgb")
    densefeat.extract(plain, tmp_path / "store", TINY, weights, device="cpu")
    with pytest.raises(UsageError, match=r"query '.*x.tif' does not say what is black and white.*\(range 'auto'\): convert it"):
        embed_images(densefeat.open_store(tmp_path / "store"), "block1", [dark / "x.tif"], weights, "cpu")
    overrides = [f"train={plain}", f"model={TINY}", f"weights={weights}", "epochs=1", "batch_size=2", "workers=0"]
    finetune(load_finetuning("finetune_folder", overrides), tmp_path / "run", "cpu")
    with pytest.raises(UsageError, match=r"x.tif: 16-bit samples of at most 900.*'.*run' learnt from images of range 'auto'"):
        predict(str(tmp_path / "run"), dark, tmp_path / "predicted", device="cpu")


def test_training_stops_where_nothing_says_what_is_white(deep_folder: Path, weights: Path, tmp_path: Path) -> None:
    from densefeat.finetuning import finetune, load_finetuning

    for loader, augment in (("workers", "crop-mirror"), ("device", "none")):
        overrides = [
            f"train={deep_folder}", f"model={TINY}", f"weights={weights}", "epochs=1", "batch_size=4", "workers=1",
            "channels=1", f"loader={loader}", f"augment={augment}",
        ]  # fmt: skip
        with pytest.raises(DensefeatError, match=r"image [ab]/\d.tif: floating-point 32-bit values .* --range"):
            finetune(load_finetuning("finetune_folder", overrides), tmp_path / loader, "cpu")


def test_a_mixture_of_ranges_and_missing_pixels_are_told(
    picture: np.ndarray, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.png").write_bytes(as_png(picture))
    (folder / "b.tif").write_bytes(as_tiff(scaled(picture, 4095, "u2"), extratags=[(281, 3, 3, (4095,) * 3, True)]))
    grey = as_tiff(picture[..., 0], extratags=[(42113, 2, 0, "0", True)])
    (folder / "c.tif").write_bytes(grey)
    with caplog.at_level("WARNING"):
        densefeat.extract(folder, tmp_path / "e.parquet", TINY, weights, device="cpu")
    assert "images of different ranges, each black to white: 2 of uint8 0:255; 1 of uint16 0:4095" in caplog.text
    assert "1 images have pixels without data" in caplog.text


@pytest.mark.parametrize("protocol", ["knn", "sgd", "attentive"])
def test_a_probe_of_images_converts_test_images_as_those_it_learns_from(
    protocol: str, deep_folder: Path, weights: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test"
    for number in range(2):
        (test / "ab"[number]).mkdir(parents=True)
        values = tifffile.imread(deep_folder / "ab"[number] / f"{number}.tif") + 1000  # brighter than all images to learn from
        tifffile.imwrite(test / "ab"[number] / "x.tif", values, photometric="minisblack", planarconfig="contig")
    out = tmp_path / "probe"
    options = ["--range", "p1:p99", "--channels", "1", "--nodata", "-9999", "--model", TINY, "--weights", weights]
    options += ["--epochs", "1"] if protocol != "knn" else []
    run_command(
        "probe", "--images", deep_folder, "--test", test, "--out", out, "--protocol", protocol, *options, "--workers", "0"
        if protocol != "knn" else "1", check=True,
    )  # fmt: skip
    made = [densefeat.open_store(out / name).provenance["preprocessing"]["pixels"] for name in ("features", "test-features")]
    assert made[0] == made[1]
    assert made[0]["bounds"] is not None
    code, _, err = run_command("probe", out / "features", "--out", tmp_path / "other", "--range", "0:1")
    assert (code, "--range (or --channels, --nodata, --icc) is only for --images" in err) == (2, True)


def test_colour_profiles_that_cannot_be_used_are_counted(
    picture: np.ndarray, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name, profile in (("a", make_rgb_profile("p3")), ("b", b"damaged"), ("c", make_rgb_profile("p3")[:300])):
        Image.fromarray(picture).save(folder / f"{name}.png", icc_profile=profile)
    with caplog.at_level("WARNING"):
        densefeat.extract(folder, tmp_path / "e.parquet", TINY, weights, device="cpu")
    assert "2 images have a colour profile that cannot be used: their colours are as they are stored" in caplog.text
