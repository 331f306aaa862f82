"""A network in int8, as it was calibrated: what is kept in files and sent to other processes."""

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class QuantizedNetwork:
    """A graph of OpenVINO's whose convolutions read int8: the text of its nodes and the bytes of its constants."""

    nodes: bytes
    constants: bytes

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of both, in hexadecimal."""
        return hashlib.sha256(self.nodes + self.constants).hexdigest()
