"""Inputs on other file systems: fsspec's in memory, and a local server that speaks S3."""

import io
import socket
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat import UsageError
from densefeat.images.folders import RemoteFolder
from densefeat.images.sources import open_source
from support.streams import outcomes, read_source

OUTSIDE = "outside of the folder; --base names the folder of a list's images"


@pytest.fixture
def memory() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fill(fs, "/home")
    yield "memory://home"
    fs.store.clear()


@pytest.fixture(scope="module")
def s3(module_patch: pytest.MonkeyPatch) -> Iterator[str]:
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    module_patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    module_patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    module_patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    module_patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    module_patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    fill(fs, "bucket/home")
    fs.touch("bucket/home/photos/b/")  # as consoles mark folders
    yield "s3://bucket/home"
    server.stop()


@pytest.fixture(scope="module")
def module_patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def fill(fs: fsspec.AbstractFileSystem, root: str) -> None:
    """A folder, a list, two Parquet files, one of them cut off, and a tar file."""
    for name in (
        "photos/b/2.JPG",
        "photos/a.png",
        "photos/notes.txt",
        "photos/empty.png",
        "photos/b/@eaDir/x/2.png",
        "photos/b/@eaDir/3.png",
    ):
        fs.pipe_file(f"{root}/{name}", b"" if "empty" in name else name.encode())
    rows = b'path,label,text\nb/2.JPG,x,"two\nlines"\n../list.csv,y,\nmissing.png,z,\na.png,,\n'
    fs.pipe_file(f"{root}/list.csv", rows)
    fs.pipe_file(f"{root}/photos/list.txt", b"b/2.JPG\na.png\n")
    table, buffer = pa.table({"image": [b"one", b"two", b"three"], "label": [1, 2, 3]}), io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2)
    fs.pipe_file(f"{root}/tables/t-0.parquet", buffer.getvalue())
    fs.pipe_file(f"{root}/tables/t-1.parquet", buffer.getvalue()[:-30])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.jpg", "a.cls", "b.jpg", "empty.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty.jpg" else len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    fs.pipe_file(f"{root}/shards/s-0.tar", buffer.getvalue())


@pytest.fixture(params=["memory", "s3"])
def home(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def test_folders(home: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    for address in (f"{home}/photos", f"{home}/photos/"):
        assert read_source(open_source(address, labels="folder")) == [
            ("a.png", None, b"photos/a.png"),
            ("b/2.JPG", "b", b"photos/b/2.JPG"),
            ("empty.png", None, b""),
        ]
        assert "left out: 2 .txt, 1 hidden (b/@eaDir/)" in caplog.text


def test_lists(home: str) -> None:
    assert read_source(open_source(f"{home}/photos/list.txt")) == [("b/2.JPG", None, b"photos/b/2.JPG"), ("a.png", None, b"photos/a.png")]  # fmt: skip
    found = read_source(open_source(f"{home}/list.csv", base=f"{home}/photos", label_column="label"))
    assert found[0] == ("b/2.JPG", "x", b"photos/b/2.JPG")
    assert found[1] == ("../list.csv", "y", OUTSIDE)
    assert found[2][:2] == ("missing.png", "z")
    assert isinstance(found[2][2], str)
    assert found[3] == ("a.png", None, b"photos/a.png")


def test_a_list_on_this_machine_of_files_elsewhere(home: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{home}/photos/a.png\nb/2.JPG\n{home}/list.csv\ns3://other/x.png\n/etc/passwd\n")
    found = read_source(open_source(tmp_path / "list.txt", base=f"{home}/photos/"))
    assert [outcome for _, _, outcome in found] == [b"photos/a.png", b"photos/b/2.JPG", OUTSIDE, OUTSIDE, OUTSIDE]
    assert [key for key, _, _ in found][:2] == ["a.png", "b/2.JPG"]


def test_a_list_at_the_root(memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/list.txt", b"home/photos/a.png\nmemory://home/photos/b/2.JPG\n/home/../../x.png\n")
    assert read_source(open_source("memory://list.txt")) == [
        ("home/photos/a.png", None, b"photos/a.png"),
        ("home/photos/b/2.JPG", None, b"photos/b/2.JPG"),
        ("x.png", None, "/x.png"),
    ]


def test_tables(home: str) -> None:
    good = [(f"t-0.parquet#{i}", str(i + 1), data) for i, data in enumerate([b"one", b"two", b"three"])]
    assert read_source(open_source(f"{home}/tables/t-0.parquet")) == good
    for names in ("*", "t-{0..1}"):
        found = read_source(open_source(f"{home}/tables/{names}.parquet"))
        assert found[:3] == good
        assert found[3][0] == "t-1.parquet"
        assert found[3][2].startswith("not a Parquet file, or damaged: ")
    with pytest.raises(UsageError, match=r"no such file: .*home/tables/t-2.parquet"):
        open_source(f"{home}/tables/t-{{0..2}}.parquet")


def test_tars(home: str) -> None:
    wanted = [("s-0.tar/a.jpg", "a.cls", b"a.jpg"), ("s-0.tar/b.jpg", None, b"b.jpg"), ("s-0.tar/empty.jpg", None, b"")]
    assert read_source(open_source(f"{home}/shards/*.tar", label_column="cls")) == wanted


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "no such folder or file; give a folder, a list"),
        ("nowhere.csv", "no such file"),
        ("nowhere/*.tar", "no such file"),
        ("photos/a.png", "one image: give the folder that it lies in, or a list of paths"),
        ("photos/*.png", r"globs are for Parquet and tar files: give the folder '.*/home/photos', or a list of paths"),
        ("photos/notes.md", "no such folder or file; give a folder, a list"),
        ("tables", r"pass '.*/home/tables/\*.parquet'"),
    ],
)
def test_missing_inputs(name: str, match: str, home: str) -> None:
    with pytest.raises(UsageError, match=match):
        open_source(f"{home}/{name}")


def test_large_files_are_not_fetched(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files", "folders", "rows"):
        monkeypatch.setattr(f"densefeat.images.{module}.MAX_BYTES", 13)
    large = "14 bytes are more than the limit of 13"
    assert [outcome for _, _, outcome in read_source(open_source(f"{memory}/photos"))] == [b"photos/a.png", large, b""]
    listed = open_source(f"{memory}/photos/list.txt")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", None)
    assert outcomes(listed.items(0, 1))[0][2] == large


def test_many_threads_read_at_once(home: str) -> None:
    items = list(open_source(f"{home}/photos").items(0, 3)) * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda item: item.read(), items)) == [b"photos/a.png", b"photos/b/2.JPG", b""] * 20


def test_parts_of_a_file_are_read(home: str) -> None:
    item = next(open_source(f"{home}/photos").items(0, 1))
    assert item.path() is None
    with item.open() as file:
        file.seek(7)
        assert file.read() == b"a.png"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Single files, from a server that does not know ranges."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_single_files_on_the_web(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "list.txt").write_text(f"a.png\nb.png\n{web}/a.png\nhttp://127.0.0.1:9/secret\n")
    found = read_source(open_source(f"{web}/list.txt"))
    assert found[0] == ("a.png", None, b"a")
    assert [outcome for _, _, outcome in found[2:]] == ["repeated: the same as position 0", OUTSIDE]
    assert found[1][0] == "b.png"
    assert isinstance(found[1][2], str)
    with pytest.raises(UsageError, match="neither a folder, a list"):
        open_source(f"{web}/")
    with pytest.raises(UsageError, match="web servers do not list files"):
        open_source(f"{web}/*.parquet")
    with pytest.raises(UsageError, match="an address with a query"):
        open_source(f"{web}/x.parquet?token=1")


def test_no_server_answers(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match="list.txt': "):
            open_source(f"http://127.0.0.1:{free.getsockname()[1]}/list.txt")


@pytest.mark.parametrize(
    ("protocol", "package", "match"),
    [
        ("s3", "s3fs", r"pip install 'densefeat\[s3\]'"),
        ("gs", "gcsfs", r"pip install 'densefeat\[gcs\]'"),
    ],
)
def test_missing_packages(protocol: str, package: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)  # as in a new process
    with pytest.raises(UsageError, match=match):
        open_source(f"{protocol}://missing-{package}/folder")


def test_unknown_protocols() -> None:
    with pytest.raises(UsageError, match="images 'nonsense://x': Protocol not known: nonsense"):
        open_source("nonsense://x")


def test_names_stay_in_the_folder(memory: str) -> None:
    folder = RemoteFolder(memory, "/home/photos")
    for name in ("../list.csv", "/home/list.csv", "b/../../list.csv", "memory://home/list.csv", ""):
        for ask in (folder.read, folder.open, folder.size):
            with pytest.raises(Exception, match="outside of the folder|no path"):
                ask(name)
        with pytest.raises(Exception, match="outside of the folder|no path"):
            folder.read_range(name, 0, 1)
