"""The maps of whole images: the same as an extraction's, in the rows' order."""

from pathlib import Path

import numpy as np
import pytest
import torch

import densefeat
from densefeat import FeatureExtractor
from densefeat.errors import DensefeatError
from densefeat.images import open_source
from densefeat.labels import TEST, TRAIN, VAL
from densefeat.probing.data import ProbeData, load_data
from densefeat.sgd_probe.attentive_heads import AttentiveHeads
from densefeat.sgd_probe.whole_images import WholeImages
from densefeat.store.reader import Store, open_store
from densefeat.training.world import World
from support.runs import write_table
from support.tiny_net import TINY, write_tiny_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Store], list[Store]]:
    """Two tables of images with their stores of vectors and of maps; one image cannot be read."""
    folder = tmp_path_factory.mktemp("whole")
    weights, tables, vectors, maps = write_tiny_weights(folder), [], [], []
    for number, rows in enumerate((50, 20)):
        table = write_table(folder / f"{number}.parquet", rows, classes=3, size=40, seed=number)
        tables.append(table)
        for pool, found in (("avg", vectors), ("none", maps)):
            out = folder / f"{number}-{pool}"
            densefeat.extract(table, out, TINY, weights=weights, pool=pool, label_column="label", device="cpu", workers=1)
            found.append(open_store(out))
    return tables, vectors, maps


def make_whole(tables: list[Path], data: ProbeData, folder: Path, rank: int = 0, size: int = 1) -> WholeImages:
    extractor = FeatureExtractor(TINY, weights=folder / "tiny.safetensors", pool="none", device="cpu")
    return WholeImages([open_source(table, label_column="label") for table in tables], data, extractor, World(rank, size, CPU))


def test_moments_and_scores_are_those_of_extracted_maps(stores: tuple[list[Path], list[Store], list[Store]]) -> None:
    tables, vectors, maps = stores
    data = load_data(vectors)
    whole = make_whole(tables, data, tables[0].parent)
    moments = whole.measure_channels()
    train = data.labelled.rows[data.parts == TRAIN]
    shapes = maps[0].shapes
    stored = {name: np.concatenate([store[name] for store in maps]).reshape(-1, *shape) for name, shape in shapes.items()}
    for name, found in moments.items():
        x = stored[name][train].astype(np.float64)
        np.testing.assert_allclose(found.mean.numpy(), x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        variance = x.var((0, 2, 3))
        np.testing.assert_allclose(found.scale.numpy()[variance > 0], (variance[variance > 0] + 1e-6) ** -0.5, rtol=1e-4)
        assert (found.scale.numpy()[variance == 0] == 0).all()

    heads = AttentiveHeads.start({"all attentive": tuple(moments)}, moments, 3, "single", 0, CPU)
    counted: list[int] = []
    for part in (VAL, TEST):
        rows = data.labelled.rows[data.parts == part]
        features = {name: torch.from_numpy(x[rows].astype(np.float32)) for name, x in stored.items()}
        expected = heads.scores("all attentive", features).numpy().transpose(1, 0, 2)
        found = whole.score_rates(heads, part, counted.append)["all attentive"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        head = heads.head("all attentive", 3)
        one = whole.score_heads(heads.candidates, {"all attentive": head}, part, counted.append)["all attentive"]
        np.testing.assert_allclose(one, expected[3], rtol=1e-4, atol=1e-5)
    assert sum(counted) == 2 * int(np.count_nonzero(data.parts != TRAIN))
    assert np.count_nonzero(data.parts == TEST) == 20  # the second table


def test_the_shares_of_ranks_are_all_rows(stores: tuple[list[Path], list[Store], list[Store]]) -> None:
    tables, vectors, _ = stores
    data = load_data(vectors[:1])
    rows = np.arange(7)
    shares = [make_whole(tables[:1], data, tables[0].parent, rank, 3)._share(rows) for rank in range(3)]
    assert np.concatenate(shares).tolist() == rows.tolist()
    assert [len(share) for share in shares] == [3, 2, 2]


def test_an_image_that_is_gone(stores: tuple[list[Path], list[Store], list[Store]], tmp_path: Path) -> None:
    tables, vectors, _ = stores
    data = load_data(vectors[:1])
    fewer = write_table(tmp_path / "0.parquet", 3, classes=3)
    whole = make_whole([fewer], data, tables[0].parent)
    with pytest.raises(DensefeatError, match=r"images are missing now, .* first: extract them again"):
        whole.measure_channels()


def test_an_image_that_can_no_longer_be_read(tmp_path: Path, stores: tuple[list[Path], list[Store], list[Store]]) -> None:
    weights = stores[0][0].parent
    images = tmp_path / "in"
    for number in range(12):
        write_image(images / f"class {number % 2}" / f"{number}.png", number)
    densefeat.extract(
        images, tmp_path / "e", TINY, weights=weights / "tiny.safetensors", labels="folder", device="cpu", workers=1
    )
    data = load_data([open_store(tmp_path / "e")])
    for path in images.rglob("*.png"):
        path.write_bytes(b"no image")
    whole = WholeImages([open_source(images, labels="folder")], data, make_whole([], data, weights).extractor, World(0, 1, CPU))
    with pytest.raises(DensefeatError, match=r"png could be read before, and cannot now: "):
        whole.measure_channels()


def write_image(path: Path, seed: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(path)
