"""A folder of DICOMs becomes a store: of the header only the columns that were asked for, and nothing else of the patient."""

from pathlib import Path

import numpy as np
import pytest

import densefeat
from densefeat import UsageError
from support.dicoms import PATIENT, make_dicom
from support.tiny_net import TINY, write_tiny_weights

PIXELS = np.random.default_rng(0).integers(0, 4096, (2, 40, 40), np.uint16)
WINDOW = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dicoms"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(make_dicom(PIXELS[0], "jpeg-ls", Modality="CR", ViewPosition="PA", **WINDOW))
    (folder / "b.dcm").write_bytes(make_dicom(PIXELS, "rle", Modality="CT", NumberOfFrames=2, **WINDOW))
    (folder / "c.dcm").write_bytes(make_dicom(PIXELS[0], Modality="CT", **WINDOW)[:900])
    np.save(folder / "d.npy", (PIXELS[0] >> 4).astype(np.uint8))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_tiny_weights(tmp_path)


@pytest.mark.parametrize("pages", ["first", "all"])
def test_named_tags_are_columns(folder: Path, weights: Path, tmp_path: Path, pages: str) -> None:
    out = tmp_path / "store"
    how = {"device": "cpu", "backend": "reference", "pages": pages}
    result = densefeat.extract(folder, out, TINY, weights, dicom_tags="Modality, ViewPosition", **how)
    store = densefeat.open_store(out)
    rows = set(zip(store.keys, store["Modality"], store["ViewPosition"], strict=True))
    assert rows == {("a.dcm", "CR", "PA"), ("b.dcm", "CT", None), ("d.npy", None, None)}
    assert (result.rows, result.failures) == (3 if pages == "first" else 4, 1)
    assert densefeat.extract(folder, out, TINY, weights, dicom_tags=["Modality", "ViewPosition"], **how).extracted == 0
    with pytest.raises(UsageError, match="dicom_tags is .*Modality"):
        densefeat.extract(folder, out, TINY, weights, **how)
    for file in out.rglob("*"):
        assert not file.is_file() or not any(name.encode() in file.read_bytes() for name in (PATIENT, "Quorn", "Zyx"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dicom_tags": "PatientSecks"}, "did you mean PatientSex"),
        ({"dicom_tags": "Modality,Modality"}, "named twice"),
        ({"dicom_tags": "PixelData"}, "no value for a column"),
        ({"dicom_tags": "Modality", "tile": 32}, "without --tile"),
    ],
)
def test_tags_are_checked_before_the_job(folder: Path, weights: Path, tmp_path: Path, options: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        densefeat.extract(folder, tmp_path / "e.parquet", TINY, weights, device="cpu", **options)
