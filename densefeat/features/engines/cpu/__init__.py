"""The engine of backend buffer: plain torch on a CPU."""
