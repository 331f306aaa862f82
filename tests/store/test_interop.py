"""What others read: every reader that we name opens ``DIR/data``, or a single file, as it is.

DuckDB shows half-precision vectors as float32 (exactly), the rest as they are. DuckDB shows vectors as lists: its functions
for vectors want ``block2::FLOAT[5]``. embedding-atlas takes files, not folders: ``embedding-atlas DIR/data/*.parquet``.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import densefeat
from densefeat import Store
from densefeat.store.conversion import convert
from support.stores import write_rows, write_store

Reader = Callable[[Path, Path], tuple[list[str], np.ndarray]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and single files of the same 30 rows, in both precisions."""
    root = tmp_path_factory.mktemp("interop")
    for dtype in ("float32", "float16"):
        features = write_store(root / dtype, dtype=dtype)
        write_rows(root / f"{dtype}.parquet", features, 0, 30)
    return root


def with_duckdb(data: Path, tmp_path: Path) -> tuple[list[str], np.ndarray]:
    import duckdb

    with duckdb.connect() as database:
        rows = database.sql(f"SELECT path, block2 FROM read_parquet('{data}')").fetchnumpy()
        near = "list_cosine_similarity(block2, block2), array_distance(block2::FLOAT[5], block2::FLOAT[5])"
        assert np.allclose(database.sql(f"SELECT {near} FROM read_parquet('{data}')").fetchall(), [1, 0])
    return list(rows["path"]), np.stack(rows["block2"])


def with_polars(data: Path, tmp_path: Path) -> tuple[list[str], np.ndarray]:
    import polars

    table = polars.read_parquet(data)
    assert polars.scan_parquet(data).select("block2").collect().equals(table.select("block2"))
    return table["path"].to_list(), table["block2"].to_numpy()


def with_pandas(data: Path, tmp_path: Path) -> tuple[list[str], np.ndarray]:
    import pandas

    table = pandas.read_parquet(data)
    return table["path"].tolist(), np.stack(table["block2"])


def with_pyarrow(data: Path, tmp_path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(data).to_table(columns=["path", "block2"])
    return table["path"].to_pylist(), table["block2"].combine_chunks().flatten().to_numpy().reshape(-1, 5)


def with_datasets(data: Path, tmp_path: Path) -> tuple[list[str], np.ndarray]:
    import datasets

    where = {"data_dir": str(data)} if data.is_dir() else {"data_files": str(data)}
    loaded = datasets.load_dataset("parquet", **where, split="train", cache_dir=str(tmp_path))
    assert loaded.features["block2"].length == 5
    return loaded["path"][:], loaded.data.column("block2").combine_chunks().flatten().to_numpy().reshape(-1, 5)


READERS: list[Reader] = [with_duckdb, with_polars, with_pandas, with_pyarrow, with_datasets]


def check(store: Store, keys: list[str], vectors: np.ndarray) -> None:
    assert keys == store.keys.tolist()
    assert np.array_equal(vectors, store["block2"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__.removeprefix("with_"))
def test_folder_and_single_file(root: Path, tmp_path: Path, read: Reader, dtype: str) -> None:
    for name, data in ((dtype, root / dtype / "data"), (f"{dtype}.parquet", root / f"{dtype}.parquet")):
        keys, vectors = read(data, tmp_path)
        assert vectors.dtype == ("float32" if read is with_duckdb else dtype)
        check(densefeat.open_store(root / name), keys, vectors)


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[np.ndarray, object]]:
    """Runs ``embedding-atlas`` up to its server, with random points for UMAP's, whose first compilation takes a minute.

    Returns the vectors that it was to project, and the server's application.
    """
    import embedding_atlas.cli
    import embedding_atlas.projection

    given: dict[str, object] = {}

    def project(vectors: np.ndarray, umap_args: object = None) -> object:
        given["vectors"] = vectors
        points = np.random.default_rng(0).random((len(vectors), 2), np.float32)
        neighbours = np.zeros((len(vectors), 3), np.int32)
        return embedding_atlas.projection.Projection(points, neighbours, neighbours.astype(np.float32))

    def run(*arguments: object) -> tuple[np.ndarray, object]:
        monkeypatch.setattr("embedding_atlas.projection._run_umap", project)
        monkeypatch.setattr("embedding_atlas.cli.uvicorn.run", lambda app, **_: given.update(app=app))
        monkeypatch.setattr("embedding_atlas.cache.user_cache_path", lambda name: tmp_path / name)
        CliRunner().invoke(embedding_atlas.cli.main, [*map(str, arguments)], catch_exceptions=False)
        return given["vectors"], given["app"]

    return run


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedding_atlas(root: Path, atlas, dtype: str) -> None:
    """It projects our vectors, computes none, and its server's own queries find every row."""
    import pandas
    from fastapi.testclient import TestClient

    parts = sorted((root / dtype / "data").glob("*.parquet"))
    vectors, app = atlas(*parts, "--vector", "block2")
    assert np.array_equal(vectors, densefeat.open_store(root / dtype)["block2"])
    with TestClient(app) as client:
        assert client.get("/data/metadata.json").json()["props"]["data"]["projection"]["x"] == "projection_x"
        served = pandas.read_parquet(io.BytesIO(client.get("/data/dataset.parquet").content))
        query = {"type": "json", "sql": "SELECT count(*) n, sum(len(block2)) m FROM dataset WHERE projection_x >= 0"}
        assert client.post("/data/query", json=query).json() == [{"n": 30, "m": 150}]
    check(densefeat.open_store(root / dtype), served["path"].tolist(), np.stack(served["block2"]))


@pytest.mark.filterwarnings("ignore")
def test_embedding_atlas_opens_a_converted_folder(root: Path, atlas, tmp_path: Path) -> None:
    folder = convert(root / "float32", "datasets", tmp_path / "d")
    vectors, _ = atlas(folder, "--vector", "block2")
    assert np.array_equal(vectors, densefeat.open_store(root / "float32")["block2"])
