"""DICOM files that pydicom writes from arrays, in every layout and compression that tests read back."""

import io
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite, uid
from pydicom.encaps import encapsulate

PATIENT = "Zyx^Quorn"
NATIVE = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big-endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
ENCODERS: dict[str, tuple[str, Callable[[np.ndarray, int], bytes]]] = {
    "jpeg": (uid.JPEGBaseline8Bit, lambda a, bits: imagecodecs.jpeg8_encode(a, 95)),
    "jpeg of 12 bits": (uid.JPEGExtended12Bit, lambda a, bits: imagecodecs.jpeg8_encode(a, 100, bitspersample=12)),
    "jpeg, lossless": (uid.JPEGLosslessSV1, lambda a, bits: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=bits)),
    "jpeg-ls": (uid.JPEGLSLossless, lambda a, bits: imagecodecs.jpegls_encode(a)),
    "jpeg 2000": (
        uid.JPEG2000Lossless, lambda a, bits: imagecodecs.jpeg2k_encode(a, 0, codecformat="j2k", reversible=True, bitspersample=bits)),
    "htj2k": (uid.HTJ2KLossless, lambda a, bits: imagecodecs.htj2k_encode(a, reversible=True)),
    "deflated frames": (uid.JPEG2000Lossless, lambda a, bits: deflate(a.tobytes())),
}  # fmt: skip
COMPRESSED = ("rle", *ENCODERS)


def deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


def make_dicom(pixels: np.ndarray, way: str = "explicit", preamble: bool = True, **elements: Any) -> bytes:
    """Write frames ``(h, w)``, ``(h, w, 3)`` or, with ``NumberOfFrames``, several of them, with these other elements.

    ``way``: of ``NATIVE`` or ``COMPRESSED``. Without the ``preamble`` the data set stands alone.
    """
    frames = elements.get("NumberOfFrames", 1)
    shaped = pixels.reshape(frames, *pixels.shape[-2 - (pixels.shape[-1] == 3) :]) if frames > 1 else pixels[None]
    bits = 8 * pixels.itemsize
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.UID("1.2.3.4")
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = PATIENT, PATIENT, "F"
    dataset.Rows, dataset.Columns = shaped.shape[1:3]
    dataset.SamplesPerPixel = 3 if shaped.ndim == 4 else 1
    dataset.PhotometricInterpretation = "RGB" if shaped.ndim == 4 else "MONOCHROME2"
    if shaped.ndim == 4:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    if pixels.dtype.kind in "ui" and "HighBit" not in elements:
        dataset.HighBit = dataset.BitsStored - 1
    dataset.file_meta = FileMetaDataset()
    _put_pixels(dataset, shaped, way)
    file = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    if preamble:
        dcmwrite(file, dataset, enforce_file_format=True)
    else:
        del dataset.file_meta
        dcmwrite(
            file, dataset, implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=syntax != uid.ExplicitVRBigEndian
        )
    data = file.getvalue()
    # pydicom does not know this transfer syntax yet
    return data.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.8.1\0", 1) if way == "deflated frames" else data


def _put_pixels(dataset: Dataset, frames: np.ndarray, way: str) -> None:
    order = ">" if way == "big-endian" else "<"
    if frames.dtype.kind == "f":
        name = "FloatPixelData" if frames.itemsize == 4 else "DoubleFloatPixelData"
        setattr(dataset, name, frames.astype(frames.dtype.newbyteorder(order)).tobytes())
        dataset.file_meta.TransferSyntaxUID = NATIVE[way]
        return
    if way in ENCODERS:
        syntax, encode = ENCODERS[way]
        unsigned = frames.view(f"u{frames.itemsize}") if "jpeg 2000" not in way else frames
        dataset.PixelData = encapsulate([encode(np.ascontiguousarray(frame), dataset.BitsStored) for frame in unsigned])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        return
    if dataset.SamplesPerPixel == 3 and dataset.PlanarConfiguration == 1 and way in NATIVE:
        frames = np.moveaxis(frames, -1, 1)
    data = frames.astype(frames.dtype.newbyteorder(order)).tobytes()
    if frames.itemsize == 1 and way == "big-endian":  # as words, whose bytes are exchanged
        data = np.frombuffer(data + b"\0" * (len(data) % 2), "u2").byteswap().tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = NATIVE.get(way, uid.ExplicitVRLittleEndian)
    if way == "rle":
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
