"""Networks as files of other tools: ONNX, torch.export, OpenVINO, safetensors, a folder for the hub."""

from densefeat.export.write import Exported, export_model

__all__ = ["Exported", "export_model"]
