"""Numbers that the images of a job decide: measured in a pass that can be interrupted, and kept with the store."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from safetensors import safe_open

import densefeat
from densefeat import PixelRule, UsageError
from densefeat.base import Interrupted, Ranks
from densefeat.extraction.measured import Measuring, load_channel_stats
from densefeat.extraction.settings import JobInput, Tiling
from densefeat.images import ChannelStats, Item, Listing, Preprocessing, open_source
from densefeat.images.files import ImageFiles
from densefeat.store import Layout
from support.tiny_net import TINY, write_tiny_weights

RULE = PixelRule("p1:p99")
PLAIN = Preprocessing(32, 1.0, "center", "bicubic", (0.5,) * 3, (0.25,) * 3, RULE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of floats, of which later ones are brighter."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(130):
        tifffile.imwrite(folder / f"{number:03}.tif", generator.normal(number, 5, (300, 300)).astype(np.float32))
    return folder


def read_all(folder: Path) -> np.ndarray:
    return np.stack([tifffile.imread(file) for file in sorted(folder.iterdir())])


def make_pass(listing: Listing, out: Path) -> Measuring:
    return Measuring(JobInput("images", {}, listing, Tiling()), 1, Layout(out), Ranks())


def test_an_interrupted_pass_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """What is measured before the interruption is not read again: it may be gone."""
    expected = np.percentile(read_all(folder), (1, 99))
    out, listing = tmp_path / "out", open_source(str(folder))
    assert isinstance(listing, ImageFiles)

    class InterruptedFiles(ImageFiles):
        def items(self, start: int, stop: int) -> Iterator[Item]:
            for position, item in enumerate(super().items(start, stop)):
                if position == 70:
                    os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored in some background jobs
                yield item

    with pytest.raises(Interrupted, match="interrupted while the images were measured; the same command .* goes on there"):
        make_pass(InterruptedFiles(listing.folder, listing.names), out).complete(PLAIN, fit=False)
    assert [path.name for path in (out / "work").iterdir()] == ["pixels.safetensors"]
    with safe_open(out / "work" / "pixels.safetensors", "np") as file:
        assert file.metadata()["position"] == "71"
    for number in range(71):
        (folder / f"{number:03}.tif").write_bytes(b"II*\0")
    completed = make_pass(listing, out).complete(PLAIN, fit=False)
    ((low, high),) = completed.pixels.bounds
    np.testing.assert_allclose((low, high), expected, rtol=0.01, atol=0.2)


def test_what_was_measured_is_kept_with_the_store_and_gone_from_work(folder: Path, tmp_path: Path) -> None:
    weights, out = write_tiny_weights(tmp_path), tmp_path / "out"
    kwargs = dict(model=TINY, weights=weights, device="cpu", pixels=RULE, blocks=1)
    for file in sorted(folder.iterdir())[20:]:
        file.unlink()
    densefeat.extract(folder, out, **kwargs)
    bounds = densefeat.open_store(out).provenance["preprocessing"]["pixels"]["bounds"]
    assert not (out / "work").exists()
    tifffile.imwrite(folder / "bright.tif", np.full((64, 64), 1e6, np.float32) + np.arange(64))
    result = densefeat.extract(folder, out, update=True, **kwargs)
    assert (result.rows, result.extracted) == (21, 1)
    assert densefeat.open_store(out).provenance["preprocessing"]["pixels"]["bounds"] == bounds


def test_another_range_is_refused_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    kwargs = dict(model=TINY, weights=write_tiny_weights(tmp_path), device="cpu", blocks=1)
    for file in sorted(folder.iterdir())[3:]:
        file.unlink()
    densefeat.extract(folder, tmp_path / "out", pixels=RULE, **kwargs)
    for file in folder.iterdir():
        file.write_bytes(b"")  # of which nothing could be measured
    with pytest.raises(UsageError, match="pixels range is 'p1:p99' there, not 'p2:p98'"):
        densefeat.extract(folder, tmp_path / "out", pixels=PixelRule("p2:p98"), **kwargs)


@pytest.mark.parametrize(
    ("values", "fit", "message"),
    [
        (np.full((8, 8), np.nan, np.float32), False, "their range cannot be measured: no pixel has data"),
        (np.full((8, 8), 3, np.float32), False, "percentiles 1 and 99 are both 3: there is no contrast"),
    ],
)
def test_what_cannot_be_measured(values: np.ndarray, fit: bool, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", values)
    with pytest.raises(UsageError, match=message):
        make_pass(open_source(str(folder)), tmp_path / "out").complete(PLAIN, fit)


def test_statistics_come_from_files_stores_and_numbers(folder: Path, tmp_path: Path) -> None:
    assert load_channel_stats(None) is None
    numbers = ChannelStats((0.5,), (0.25,))
    assert load_channel_stats(numbers) is numbers
    file = tmp_path / "stats.json"
    file.write_text('{"mean": [0.5], "std": [0.25]}')
    assert load_channel_stats(file) == numbers
    for path in sorted(folder.iterdir())[5:]:
        path.unlink()
    store = tmp_path / "store"
    densefeat.extract(
        folder, store, TINY, write_tiny_weights(tmp_path), blocks=1, device="cpu", in_chans=1, channel_stats="fit"
    )
    values = np.stack([tifffile.imread(path) for path in folder.iterdir()]).astype(np.float64)
    np.testing.assert_allclose(load_channel_stats(store).mean, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(load_channel_stats(store).std, values.std(), rtol=1e-5)
