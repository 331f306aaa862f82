"""Answer with a probe exported by --to onnx --input pixels, without densefeat: python serve_probe.py PROBE.onnx IMAGE …"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load_pixels(path, steps):
    """Turn an image file into pixels (1, size, size, 3), uint8, by the steps that the metadata name."""
    _, convert, resize, crop, _ = steps
    if "by" in convert or "pad" in crop:
        raise SystemExit("this probe was fitted on images that were not read as photographs are: see the steps in its metadata")
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if "width" in resize:
        size = resize["width"], resize["height"]
    else:
        size = tuple(resize["shorter_side"] * side // min(image.size) for side in image.size)
    left, top = (round((side - crop["size"]) / 2) for side in size)
    image = image.resize(size, Image.Resampling[resize["filter"].upper()])
    return np.asarray(image.crop((left, top, left + crop["size"], top + crop["size"])))[None]


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["densefeat"])
outputs = [output.name for output in session.get_outputs()]
for path in sys.argv[2:]:
    pixels = load_pixels(path, facts["preprocessing"]["steps"])
    answer = {name: values[0] for name, values in zip(outputs, session.run(outputs, {"images": pixels}), strict=True)}
    line = [path]
    if facts["task"] == "regression":
        line += [f"{answer['value']:.7g}"]
    else:
        chosen = [answer["label"]] if facts["task"] == "single" else np.flatnonzero(answer["scores"] > 0)
        line += [
            "|".join(facts["label_names"][i] for i in chosen),
            "|".join(f"{answer['probabilities'][i]:.4f}" for i in chosen),
        ]
    print(*line, *([f"{answer['ood']:.4f}"] if "ood" in answer else []), sep="\t")
