"""TensorBoard's events of a run.

TensorBoard's own writer works in a thread, where an error of the disk is a traceback, and the run waits for the thread forever.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densefeat.base import output_errors


class EventFile:
    """A new file of events in a run's folder, complete after each call. ``step``: later events of earlier files do not count.

    Raises ImportError without TensorBoard, OutputError where the file cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # an optional package
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        name = f"events.out.tfevents.{int(now):010}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / name
        self._writer = RecordWriter
        self._write(Event(wall_time=now, step=step, file_version="brain.Event:2"))
        self._write(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write scalars of a step. Raises OutputError where that fails."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        with output_errors(self.path), open(self.path, "ab") as file:
            self._writer(file).write(event.SerializeToString())
