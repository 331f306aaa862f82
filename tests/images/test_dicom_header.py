"""Headers of DICOMs: which files are recognised, what they may cost, and that nothing of the patient's data gets out."""

import io
import logging
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.images import MEMORY, open_source, read_tags
from densefeat.images.decode import decode
from densefeat.images.dicom_header import HEAD_BYTES, is_dicom
from densefeat.images.dicom_items import UNDEFINED
from support.dicoms import NATIVE, PATIENT, deflate, make_dicom

PIXELS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("way", NATIVE)
def test_dicoms_are_recognised(way: str, preamble: bool) -> None:
    assert is_dicom(make_dicom(PIXELS, way, preamble)[:HEAD_BYTES])


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\x08", b"II*\0" + bytes(128), bytes(132), b"\x89PNG\r\n\x1a\n" + bytes(124), b"\xff\xd8\xff\xe0" + bytes(128),
        b"\x08\0\x05\0XX" + bytes(126), b"\x08\0\x07\0CS" + bytes(126), b"\x08\0\x08\0\0\0\0\0" + bytes(124), b"\x08\0\x08\0\x04\0\1\0" + bytes(124),
        b"\x80\x04\x95" + bytes(129), b"\2\0\0\0OB" + bytes(126),
    ],
)  # fmt: skip
def test_other_files_are_not(head: bytes) -> None:
    assert not is_dicom(head)


def test_a_dicom_with_a_header_of_tiff_is_a_dicom() -> None:
    data = make_dicom(PIXELS, BitsStored=12)
    both = b"II*\0" + bytes(124) + data[128:]
    assert decode(both).range == decode(data).range == "uint16 0:4095"


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element of explicit VR."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return (
        head
        + (struct.pack("<HI", 0, size) if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF") else struct.pack("<H", size))
        + value
    )


def insert(extra: bytes, data: bytes | None = None) -> bytes:
    """Put elements before the pixels' description."""
    data = make_dicom(PIXELS, BitsStored=12) if data is None else data
    place = data.index(b"\x28\x00\x02\x00US")
    return data[:place] + extra + data[place:]


ITEM, END_OF_ITEM, END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
OPEN = element(0x00081140, b"SQ", b"", 0xFFFFFFFF)
SHARED, PER_FRAME = 0x52009229, 0x52009230


def nest(depth: int) -> bytes:
    return (OPEN + ITEM) * depth + (END_OF_ITEM + END) * depth


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nested deep": (lambda: insert(nest(500_000)), "too many elements"),
    "a million items": (lambda: insert(OPEN + (ITEM + END_OF_ITEM) * 10**6 + END), "too many elements, items or fragments"),
    "a sequence without items": (lambda: insert(OPEN + element(0x00081000, b"CS", b"")), "a sequence without items"),
    "a million elements": (lambda: insert(element(0x00091001, b"CS", b"") * (10**6 + 1)), "too many elements"),
    "a group of a thousand levels": (
        lambda: make_dicom(PIXELS, BitsStored=12).replace(
            b"\xe0\x7f\x10\x00OW", element(SHARED, b"SQ", ITEM + nest(50_000) + END_OF_ITEM) + b"\xe0\x7f\x10\x00OW"),
        r"cannot be read \(RecursionError\)"),
    "a number of a megabyte": (lambda: insert(element(0x00281050, b"UN", b"1\\" * 2**19)), "bytes of WindowCenter"),
    "a table of a gigabyte": (lambda: insert(element(0x00281201, b"OW", b"", 2**30)), "an element of 1,073,741,824 bytes"),
    "a length beyond the end": (lambda: insert(element(0x00181000, b"UN", b"", 2**31)), "without pixels, or truncated"),
    "an undefined length without an end": (lambda: insert(element(0x00181000, b"UN", b"", 0xFFFFFFFF)), "a sequence without items"),
    "no end of pixels": (lambda: make_dicom(PIXELS, "rle")[:-3000], "truncated|cannot be read"),
    "a million fragments": (
        lambda: make_dicom(PIXELS, "rle").replace(b"\xfe\xff\xdd\xe0", (b"\xfe\xff\x00\xe0" + bytes(4)) * 10**6 + b"\xfe\xff\xdd\xe0"),
        "too many elements, items or fragments"),
}  # fmt: skip


SLOW = ("a million elements", "a million fragments", "nested deep")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in HOSTILE])
def test_hostile_headers_end_soon(kind: str) -> None:
    make, reason = HOSTILE[kind]
    data = make()
    start = time.monotonic()
    with pytest.raises(DecodeError, match=reason):
        decode(data)
    assert time.monotonic() - start < 20


def make_bomb(size: int) -> bytes:
    """A deflated DICOM that begins with an element of so many zeros."""
    data = make_dicom(PIXELS, "explicit", BitsStored=12)
    start = data.index(b"\x08\x00\x16\x00UI")
    meta = data[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"\2\0\x10\0UI\x14\0", b"\2\0\x10\0UI\x16\0")
    return meta + deflate(element(0x00081000, b"UN", bytes(size)) + data[start:])


def test_deflated_headers_are_bounded() -> None:
    assert pydicom.dcmread(io.BytesIO(make_bomb(10))).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert decode(make_bomb(10)).width == 64
    with MEMORY.limit(2**26), pytest.raises(DecodeError, match=r"bytes of a deflated DICOM need .* \(--memory\)") as error:
        decode(make_bomb(2**26))
    assert error.value.stage == "memory"


@pytest.mark.parametrize("preamble", [True, False])
def test_nothing_of_the_patient_gets_out(
    preamble: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every byte of a header is damaged in turn; no error, log or warning quotes what it says of a person."""
    caplog.set_level(logging.DEBUG)
    data = make_dicom(
        PIXELS[:8], "explicit", preamble, BitsStored=12, PatientComments=PATIENT, OtherPatientIDs=[PATIENT, PATIENT]
    )
    end = data.index(b"\xe0\x7f\x10\x00OW")
    generator = np.random.default_rng(0)
    errors = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for place in range(128 if preamble else 0, end):
            damaged = bytearray(data)
            damaged[place] = generator.integers(256)
            try:
                decode(bytes(damaged))
            except (DecodeError, UnknownRange, UsageError) as error:
                errors += 1
                assert "Zyx" not in str(error)
                assert "Quorn" not in str(error)
                assert error.__cause__ is None or "Quorn" not in str(error.__cause__)
    assert errors > 20
    out, err = capfd.readouterr()
    assert "Quorn" not in caplog.text + out + err + "".join(str(warning.message) for warning in caught)


def test_pydicom_still_logs_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    decode(make_dicom(PIXELS, BitsStored=12))
    with caplog.at_level(logging.INFO, logger="pydicom"):
        logging.getLogger("pydicom").info("said outside")
    assert "said outside" in caplog.text


@pytest.fixture
def without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as Python marks a module that cannot be imported


@pytest.mark.usefixtures("without_pydicom")
def test_without_the_extra_one_message_names_it(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.DCM", "c.dicom", "d.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.txt").write_text("a.dcm\nd.png\n")
    hint = r"need a package: pip install 'densefeat\[dicom\]'"
    with pytest.raises(UsageError, match=f"3 DICOM files {hint}"):
        open_source(str(tmp_path))
    with pytest.raises(UsageError, match=f"1 DICOM files {hint}"):
        open_source(str(tmp_path / "list.txt"))
    with pytest.raises(UsageError, match=r"DICOM files are read by .*pip install 'densefeat\[dicom\]'"):
        decode(bytes(128) + b"DICM")


TAGS: dict[str, Any] = {
    "PatientSex": "F",
    "00100040": "F",
    "PatientName": "Müller^Äö",
    "ImageType": "ORIGINAL\\PRIMARY",
    "WindowWidth": "400.5",
    "PatientAge": None,
    "StudyDescription": None,
    "00091001": None,
}


@pytest.mark.parametrize("way", NATIVE)
def test_tags_that_the_user_names(way: str) -> None:
    elements = {"PatientName": "Müller^Äö", "ImageType": ["ORIGINAL", "PRIMARY"], "StudyDescription": ""}
    data = make_dicom(
        PIXELS, way, SpecificCharacterSet="ISO_IR 192", WindowWidth=400.5, WindowCenter=1, BitsStored=12, **elements
    )
    assert read_tags(data, list(TAGS)) == TAGS
    if way == "explicit":  # a sequence of undefined length before them
        place = data.index(b"\x10\0\x10\0PN")
        more = element(0x00081140, b"SQ", ITEM + element(0x00080005, b"CS", b"ISO_IR 100") + END_OF_ITEM + END, UNDEFINED)
        assert read_tags(data[:place] + more + data[place:], list(TAGS)) == TAGS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PatientSecks", r"'PatientSecks': give a keyword such as PatientSex, .* did you mean PatientSex\?"),
        ("PixelData", "a sequence or binary data"),
        ("PerFrameFunctionalGroupsSequence", "a sequence or binary data"),
        ("7FE00010", "a sequence or binary data"),
        ("", "give a keyword"),
    ],
)
def test_tags_that_are_no_columns(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_tags(make_dicom(PIXELS), [name])


def test_tags_of_files_that_have_none() -> None:
    assert read_tags(b"\x89PNG", ["PatientSex"]) == {"PatientSex": None}
    with pytest.raises(DecodeError, match="bytes of DICOM tag 00204000 are no value"):
        read_tags(insert(element(0x00204000, b"UT", b"x" * 20_000)), ["ImageComments"])
    assert read_tags((TEST_FILES / "rtplan.dcm").read_bytes(), ["Modality"]) == {"Modality": "RTPLAN"}
