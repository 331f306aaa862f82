"""The engine of backend triton, for NVIDIA GPUs."""
