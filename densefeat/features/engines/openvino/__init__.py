"""The engine of backend openvino, for CPUs."""
