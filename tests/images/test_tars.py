"""Tar files: which members are images, where they are, and what a crafted or broken tar file may not do."""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from densefeat import UsageError
from densefeat.images.sources import open_source
from densefeat.images.tars import PlainHeader
from support.streams import read_source


def write(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_an_images_extension(kind: int, tmp_path: Path) -> None:
    long = "long/" * 25 + "x.webp"
    names = ["b.jpg", "deep/a.PNG", "./c.tif", long, "b.json", "ä.png"]
    path = write(tmp_path / "s.tar", [(name, name.encode() * 100) for name in names], kind)
    wanted = ["b.jpg", "deep/a.PNG", "c.tif", long, "ä.png"]
    found = read_source(open_source(path))
    assert [key for key, _, _ in found] == [f"s.tar/{name}" for name in wanted]
    assert found[2][2] == b"./c.tif" * 100


def test_shards_in_their_order(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "x").mkdir(exist_ok=True)
        write(tmp_path / f"x/s-{i:02}.tar", [("a.jpg", b"%d" % i), ("b.jpg", b"b")])
    found = read_source(open_source(f"{tmp_path}/x/s-{{08..11}}.tar"))
    assert found[::2] == [(f"s-{i:02}.tar/a.jpg", None, b"%d" % i) for i in range(8, 12)]
    assert len(read_source(open_source(f"{tmp_path}/*/s-1?.tar"))) == 4
    with pytest.raises(UsageError, match=r"no such file: .*s-12.tar"):
        open_source(f"{tmp_path}/x/s-{{08..12}}.tar")


def test_labels_of_siblings_before_or_after(tmp_path: Path) -> None:
    members = [
        ("a/1.cls", b" 3\n"),
        ("a/1.jpg", b"x"),
        ("a/1.seg.png", b"y"),
        ("b/1.jpg", b"z"),
        ("b/1.cls", "größe".encode()),
        ("2.jpg", b"w"),
        ("3.jpg", b"v"),
        ("3.cls", b"9" * 1001),
    ]
    write(tmp_path / "x.tar", members)
    write(tmp_path / "y.tar", [("4.jpg", b"4")])
    wanted = [
        ("x.tar/a/1.jpg", "3", b"x"),
        ("x.tar/a/1.seg.png", "3", b"y"),
        ("x.tar/b/1.jpg", "größe", b"z"),
        ("x.tar/2.jpg", None, b"w"),
        ("x.tar/3.jpg", None, "its label, '3.cls', has more than 1,000 bytes"),
        ("y.tar/4.jpg", None, b"4"),
    ]
    for column in ("cls", ".cls"):
        assert read_source(open_source(f"{tmp_path}/*.tar", label_column=column)) == wanted
    with pytest.raises(
        UsageError, match="no member with the extension 'txt' is named like an image: there are cls, jpg, seg.png"
    ):
        open_source(f"{tmp_path}/*.tar", label_column="txt")


def special(name: str, kind: bytes, target: str = "good.jpg") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_members_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("good.jpg", "/etc/x.jpg", "../up.jpg", "a/../../up.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
        tar.addfile(special("hard.jpg", tarfile.LNKTYPE))
        tar.addfile(special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        tar.addfile(special("device.jpg", tarfile.CHRTYPE))
        tar.addfile(special("folder.jpg", tarfile.DIRTYPE))
        tar.addfile(special("sparse.jpg", tarfile.GNUTYPE_SPARSE))
        tar.addfile(special("caf\udce9.jpg", tarfile.REGTYPE))
        tar.addfile(special("loop.jpg", tarfile.SYMTYPE, "loop.jpg"))
        tar.addfile(special("d/up.jpg", tarfile.SYMTYPE, "../../x.jpg"))
    out, special_ = "a member's name that leads out of the tar file", "not a regular member of the tar file"
    assert [(key.removeprefix("x.tar/"), outcome) for key, _, outcome in read_source(open_source(path))] == [
        ("good.jpg", b"good.jpg"),
        ("/etc/x.jpg", out),
        ("../up.jpg", out),
        ("a/../../up.jpg", out),
        ("good.jpg", "repeated: the same as member 0 of the images in this tar file"),
        ("hard.jpg", "a link to 'good.jpg', which occurs more than once"),
        ("soft.jpg", "a link to '/etc/passwd', which the tar file does not hold"),
        ("device.jpg", special_),
        ("sparse.jpg", special_),
        ("caf\udce9.jpg", "the name is not valid UTF-8"),
        ("loop.jpg", "a link to 'loop.jpg', which the tar file does not hold"),
        ("d/up.jpg", "a link to '../x.jpg', which the tar file does not hold"),
    ]


def pack(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A whole archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def read_pairs(path: Path, **options: str) -> list[tuple[str, bytes | str]]:
    """Names of members, and their bytes or why there are none."""
    source = open_source(path, **options)
    return [(key.removeprefix(f"{path.name}/"), outcome) for key, _, outcome in read_source(source)]


def test_links_are_read_as_their_targets(tmp_path: Path) -> None:
    """A target may be no image by its name, come later, or be a link itself."""
    links = [
        special("a/hard.jpg", tarfile.LNKTYPE, "./objects/1"),
        special("a/soft.jpg", tarfile.SYMTYPE, "../late.png"),
        special("a/again.jpg", tarfile.SYMTYPE, "hard.jpg"),
        special("late.jpg", tarfile.LNKTYPE, "late.png"),
    ]
    (tmp_path / "x.tar").write_bytes(pack(("./objects/1", b"one"), *links, ("late.png", b"late")))
    assert read_pairs(tmp_path / "x.tar") == [
        ("a/hard.jpg", b"one"),
        ("a/soft.jpg", b"late"),
        ("a/again.jpg", b"one"),
        ("late.jpg", b"late"),
        ("late.png", b"late"),
    ]


def test_links_to_folders_are_entries_unless_their_files_are_members(tmp_path: Path) -> None:
    links = {"dog": "../elsewhere", "same": "cat", "deep/same": "../cat", "bird": "/data/bird", "notes.txt": "/x"}
    members = [("cat/a.jpg", b"1"), *(special(name, tarfile.SYMTYPE, target) for name, target in links.items())]
    (tmp_path / "x.tar").write_bytes(pack(*members))
    assert read_pairs(tmp_path / "x.tar") == [
        ("cat/a.jpg", b"1"),
        ("dog", "a link to '../elsewhere', which the tar file does not hold"),
        ("bird", "a link to '/data/bird', which the tar file does not hold"),
    ]


def test_labels_that_are_links(tmp_path: Path) -> None:
    """Tools that save space link files of the same content, so most labels of a class become links."""
    members = [
        *[("a.jpg", b"1"), ("a.cls", b"cat"), ("b.jpg", b"2"), special("b.cls", tarfile.LNKTYPE, "a.cls")],
        *[("c.jpg", b"3"), special("c.cls", tarfile.SYMTYPE, "labels/dog"), ("labels/dog", b"dog")],
        *[("d.jpg", b"4"), special("d.cls", tarfile.SYMTYPE, "/etc/hostname")],
    ]
    (tmp_path / "x.tar").write_bytes(pack(*members))
    assert read_source(open_source(tmp_path / "x.tar", label_column="cls")) == [
        ("x.tar/a.jpg", "cat", b"1"),
        ("x.tar/b.jpg", "cat", b"2"),
        ("x.tar/c.jpg", "dog", b"3"),
        ("x.tar/d.jpg", None, "a link to '/etc/hostname', which the tar file does not hold"),
    ]


A, B, C = (pack((f"{name}.jpg", name.encode()), (f"{name}.cls", b"class " + name.encode())) for name in "abc")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (A + B, "ab"),
        (A + bytes(512) + B + bytes(10240) + C + bytes(3 * 2**20), "abc"),
        (A[:2048] + bytes(512) + B, "ab"),  # one empty block at the end, not two
        (A + pack() + C, "ac"),
        (pack() + A, "a"),
        (A + bytes(700), "a"),
    ],
)
def test_archives_one_behind_the_other(data: bytes, names: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    found = read_source(open_source(tmp_path / "x.tar", label_column="cls"))
    assert found == [(f"x.tar/{name}.jpg", f"class {name}", name.encode()) for name in names]


FOLLOW = "data that are no tar archive follow the end of the archive"


@pytest.mark.parametrize(
    ("data", "names", "reason"),
    [
        (A + b"no tar" * 100, ["a.jpg"], FOLLOW),
        (A + B[:100], ["a.jpg"], FOLLOW),
        (A + gzip.compress(B), ["a.jpg"], FOLLOW),
        (A + B[:2048], ["a.jpg", "b.jpg"], "the tar file is cut off or damaged"),
        (A + B[:512], ["a.jpg"], "the tar file is cut off or damaged"),
        (A + bytes(2**22) + B, ["a.jpg"], "more than 1,048,576 bytes of zeros follow the end of the archive"),
    ],
)
def test_what_follows_an_archive_is_never_dropped_in_silence(
    data: bytes, names: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densefeat.images.tars._MAX_PADDING", 2**20)
    (tmp_path / "x.tar").write_bytes(data)
    *read, (key, outcome) = read_pairs(tmp_path / "x.tar")
    assert read == [(name, name[:1].encode()) for name in names]
    assert key == "x.tar"
    assert outcome.startswith(reason)


def test_archives_share_no_labels_and_no_links(tmp_path: Path) -> None:
    one = pack(("a.jpg", b"1"), ("a.cls", b"cat"), special("link.jpg", tarfile.LNKTYPE, "a.jpg"))
    two = pack(("a.cls", b"dog"), ("a.jpg", b"2"), ("b.jpg", b"3"), special("c.jpg", tarfile.LNKTYPE, "link.jpg"))
    (tmp_path / "x.tar").write_bytes(one + two)
    assert read_source(open_source(tmp_path / "x.tar", label_column="cls")) == [
        ("x.tar/a.jpg", "cat", b"1"),
        ("x.tar/link.jpg", None, b"1"),
        ("x.tar/a.jpg", "dog", "repeated: the same as member 0 of the images in this tar file"),
        ("x.tar/b.jpg", None, b"3"),
        ("x.tar/c.jpg", None, "a link to 'link.jpg', which the tar file does not hold"),
    ]


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        # WebDataset's rule: the first dot of the last part ends a sample's name
        (["a.jpg", "a.cls=1", "a.seg.png"], {"a.jpg": "1", "a.seg.png": "1"}),
        (["d.1/a.jpg", "d.1/a.cls=1", "d.2/a.jpg", "d.2/a.cls=2"], {"d.1/a.jpg": "1", "d.2/a.jpg": "2"}),
        # names with dots of their own
        (["a.b.jpg", "a.b.cls=1"], {"a.b.jpg": "1"}),
        (["n01.0.jpg", "n01.0.cls=1", "n01.1.cls=2", "n01.1.jpg"], {"n01.0.jpg": "1", "n01.1.jpg": "2"}),
        (["a.jpg", "a.cls=1", "a.b.jpg", "a.b.cls=2"], {"a.jpg": "1", "a.b.jpg": "2"}),
        (["v1.5_x.seg.png", "v1.5_x.cls=1", "v1.5_x.jpg"], {"v1.5_x.seg.png": "1", "v1.5_x.jpg": "1"}),
        (["a.jpg", "a.cls=1", "a.b.jpg"], {"a.jpg": "1", "a.b.jpg": "1"}),
        # no label
        (["a.jpg", "a.cls=1", "b.x.jpg", "b.y.cls=2", "c.jpg", "cls=3"], {"a.jpg": "1", "b.x.jpg": None, "c.jpg": None}),
        (["a.jpg", "a.cls=1", "b.jpg", "x/b.cls=2"], {"a.jpg": "1", "b.jpg": None}),
    ],
)
def test_labels_of_names_with_dots(
    members: list[str], labels: dict[str, str | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.tar", [(name, value.encode()) for name, _, value in (m.partition("=") for m in members)])
    found = read_source(open_source(path, label_column="cls"))
    assert {key.removeprefix("x.tar/"): label for key, label, _ in found} == labels
    without = [name for name, label in labels.items() if label is None]
    said = f"{len(without)} of {len(labels)} images have no label, such as 'x.tar/{without[0]}'" if without else ""
    assert said in caplog.text
    assert bool(without) == bool(caplog.text)


def test_two_labels_of_one_image(tmp_path: Path) -> None:
    members = [("a.jpg", b"x"), ("a.cls", b"cat"), ("b.jpg", b"y"), ("a.cls", b"dog"), ("b.cls", b"cat"), ("./b.cls", b"cat")]
    path = write(tmp_path / "x.tar", members)
    assert read_source(open_source(path, label_column="cls")) == [
        ("x.tar/a.jpg", None, "it has two labels, 'cat' and 'dog'"),
        ("x.tar/b.jpg", "cat", b"y"),
    ]


def test_labels_that_belong_to_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("a.jpg", b"x"), ("b.cls", b"cat")])
    with pytest.raises(UsageError, match="no member with the extension 'cls' is named like an image: there are cls, jpg"):
        open_source(path, label_column="cls")


def test_members_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [
        "a.jpg",
        "a.json",
        "b.jxl",
        "c.JXL",
        "d.dng",
        "._a.jpg",
        "./._e",
        "__MACOSX/._a.jpg",
        "x/.cache/f.png",
        ".a.cls",
    ]
    write(tmp_path / "x.tar", [(name, b"x") for name in names])
    write(tmp_path / "y.tar", [("./b.jpg", b"x"), ("e.jxl", b"x")])
    assert [key for key, _, _ in read_source(open_source(f"{tmp_path}/*.tar"))] == ["x.tar/a.jpg", "y.tar/b.jpg"]
    assert "left out: 3 .jxl, 1 .dng, 3 hidden (._a.jpg, __MACOSX/._a.jpg, x/.cache/f.png)" in caplog.text
    assert len(caplog.records) == 1
    write(tmp_path / "z.tar", [("a.jxl", b"x"), (".b.jpg", b"x")])
    with pytest.raises(UsageError, match=r"no member with an image's extension \(.*\), but 1 .jxl, 1 hidden \(.b.jpg\)"):
        open_source(tmp_path / "z.tar")


CUT = "the tar file is cut off or damaged"


@pytest.mark.parametrize(("size", "good"), [(1500, 1), (2048, 1), (2048 + 100, 1), (2048 + 512 + 999, 1), (2048 + 2048, 2)])
def test_cut_off_in_the_middle(size: int, good: int, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", [(f"{i}.jpg", bytes([i]) * 1500) for i in range(4)]).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:size] if size != 1500 else whole[:2048])
    found = read_source(open_source(f"{tmp_path}/[ab].tar"))
    assert [key for key, _, _ in found] == [f"a.tar/{i}.jpg" for i in range(4)] + [f"b.tar/{i}.jpg" for i in range(good)] + ["b.tar"]  # fmt: skip
    assert [len(outcome) for _, _, outcome in found[:-1]] == [1500] * (4 + good)
    assert found[-1][2].startswith(CUT)


def test_members_before_damage_are_kept(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "x.tar", [(f"{i}.jpg", b"x" * 100) for i in range(4)]).read_bytes())
    data[2048 + 3] ^= 1  # in the third name: its checksum is wrong
    (tmp_path / "x.tar").write_bytes(data)
    found = read_source(open_source(tmp_path / "x.tar"))
    assert [key for key, _, _ in found] == ["x.tar/0.jpg", "x.tar/1.jpg", "x.tar"]
    assert found[2][2].startswith(CUT)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (dict(type=tarfile.GNUTYPE_LONGNAME, size=2**40), "a tar header of 1,099,511,627,776 bytes"),
        (dict(type=tarfile.XHDTYPE, size=2**40), "a tar header of 1,099,511,627,776 bytes"),
        (dict(type=tarfile.XHDTYPE, size=-1024), "a tar header of"),
        (dict(size=-1024), CUT),
        (dict(size=2**60), CUT),
    ],
)
def test_headers_with_huge_sizes(header: dict, reason: str, tmp_path: Path) -> None:
    good = write(tmp_path / "x.tar", [("a.jpg", b"x")]).read_bytes()[:1024]
    member = tarfile.TarInfo("b.jpg")
    for name, value in header.items():
        setattr(member, name, value)
    (tmp_path / "x.tar").write_bytes(good + member.tobuf(tarfile.GNU_FORMAT) + good + bytes(1024))
    found = read_source(open_source(tmp_path / "x.tar"))
    assert [key for key, _, _ in found] == ["x.tar/a.jpg", "x.tar"]
    assert found[1][2].startswith(reason)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_our_headers_equal_those_of_tarfile(kind: int) -> None:
    for name, size in (("a.jpg", 7), ("d/" * 60 + "b.jpg", 2**33 - 1), ("ü" * 40, 0)):
        member = tarfile.TarInfo(name)
        member.size = size
        buffer = member.tobuf(kind, "utf-8", "surrogateescape")[-512:]
        ours, theirs = (parser.frombuf(buffer, "utf-8", "surrogateescape") for parser in (PlainHeader, tarfile.TarInfo))
        assert (ours.name, ours.size, ours.type) == (theirs.name, theirs.size, theirs.type)
        with pytest.raises(tarfile.HeaderError):
            PlainHeader.frombuf(buffer.replace(b"ustar", b"usual"), "utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("name", "members", "options", "match"),
    [
        ("x.tar", [("a.txt", b"x")], {}, r"no member with an image's extension \(.jpg"),
        ("x.tar", [("../a.jpg", b"x")], {}, "a member's name that leads out"),
        ("x.tar.gz", [("a.jpg", b"x")], {}, "a compressed tar file has no places to read at: gunzip it"),
        ("x.tar", [("a.jpg", b"x")], dict(image_column="jpg"), "image_column 'jpg' is not for tar files"),
        ("x.tar", [("a.jpg", b"x")], dict(labels="folder"), "labels 'folder' is not for tar files"),
    ],
)
def test_wrong_tars(name: str, members: list, options: dict, match: str, tmp_path: Path) -> None:
    write(tmp_path / name, members)
    with pytest.raises(UsageError, match=match):
        open_source(tmp_path / name, **options)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty file"),
        (b"\x1f\x8b" + bytes(600), "gunzip it"),
        (b"no tar " * 100, "damaged tar: "),
        (b"short", "truncated header"),
    ],
)
def test_files_that_are_no_tars(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UsageError, match=match):
        open_source(tmp_path / "x.tar")


def test_a_tar_that_shrinks_after_it_was_indexed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("a.jpg", b"x" * 600), ("b.jpg", b"y" * 600)])
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:2200])
    (item,) = source.items(1, 2)
    with pytest.raises(Exception, match="152 bytes where 600 were expected"):
        item.read()
