"""Usage statistics that libraries send unless they are told not to."""

import os
import sys

_SWITCHES = {  # read when the library is imported, also in child processes
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: packages of this machine, told in each request
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets: a request for each data set that is opened, to count it
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: an id of this machine in ~/.cache, sizes and hashes of models
    "RAY_USAGE_STATS_ENABLED": "0",  # ray: the size of a cluster, its libraries
}


def refuse_telemetry() -> None:
    """Switch off the usage statistics of all libraries that densefeat uses; a variable that the user has set stays.

    This has to run before they are imported. OpenVINO's has no switch: it is a package, which OpenVINO works without.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it raises ImportError
