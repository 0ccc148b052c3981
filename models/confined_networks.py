"""ONNX networks that run where they can be killed: in a child process of their own, with a deadline for each run and a
limit of memory (`models.onnx_child`).

A network is a stranger's computation: one whose loop never ends holds its child and nothing else. A child that was
killed or died is started again at the next run; a run that another one's end took with it is run once more.
"""

import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from models.frames import BadFrame, ConnectionLost, DeadlinePassed, receive_header, receive_into, send_frame
from models.loaded_networks import NetworkStopped
from models.onnx_sessions import Argument, Session, Values
from models.unwanted import RunAbandoned, check_wanted

_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_LOOK_MILLISECONDS = 250
_DTYPES = "fiub"  # numpy's kinds of what a network may give


class NetworkRaised(RuntimeError):
    """The network, or ONNX Runtime when it opened it, raised an error."""


@dataclass(frozen=True)
class Confinement:
    """How children run. `memory_bytes`: what one may take beyond an empty one's memory; `opens_within_seconds` and
    `runs_within_seconds`: until it is killed; `runs_at_once`: of one network, others wait."""

    memory_bytes: int
    opens_within_seconds: float
    runs_within_seconds: float
    runs_at_once: int = 4

    def open(self, data: bytes, weights: Mapping[str, bytes], device: str) -> Session:
        """Return a session in a child. Raises `NetworkRaised` and `NetworkStopped`."""
        return ConfinedSession(self, data, weights, device)


class ConfinedSession:
    """A network in a child process; safe to run from many threads. The child ends with the last reference to this."""

    def __init__(self, confinement: Confinement, data: bytes, weights: Mapping[str, bytes], device: str) -> None:
        self._confinement = confinement
        self._files = (data, dict(weights), device)
        self._lock = threading.Lock()
        self._child = _Child(confinement, *self._files)
        self.inputs, self.outputs = self._child.inputs, self._child.outputs

    @property
    def process_id(self) -> int:
        """The child's number, while it lives."""
        return self._child.process_id

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Values]) -> list[Values]:
        """Return outputs, in the order of their names. Raises `NetworkRaised`, `NetworkStopped`, and `RunAbandoned`."""
        for _ in range(2):
            child = self._living()
            try:
                return child.run(outputs, inputs)
            except ConnectionLost:
                child.kill()
                check_wanted()
        raise NetworkStopped("The process in which the network ran died: it may need more memory than it may have.")

    def _living(self) -> "_Child":
        with self._lock:
            if not self._child.lives:
                self._child = _Child(self._confinement, *self._files)
            return self._child


class _Child:
    def __init__(self, confinement: Confinement, data: bytes, weights: Mapping[str, bytes], device: str) -> None:
        self._confinement = confinement
        pairs = [socket.socketpair() for _ in range(confinement.runs_at_once + 1)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        descriptors = [connection.fileno() for connection in theirs]
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "models.onnx_child", str(confinement.memory_bytes), *map(str, descriptors)],
                pass_fds=descriptors,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            for connection in theirs:
                connection.close()
        self._connections = ours
        self._end = weakref.finalize(self, _end, self._process, ours)
        self._free: queue.LifoQueue[socket.socket] = queue.LifoQueue()
        try:
            self.inputs, self.outputs = self._open(ours[1], data, weights, device)
        except BaseException:
            self.kill()
            raise
        for connection in ours[1:]:
            self._free.put(connection)

    @property
    def lives(self) -> bool:
        return self._end.alive and self._process.poll() is None

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._end()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Values]) -> list[Values]:
        """Return outputs. Raises `NetworkRaised`, `NetworkStopped` and `RunAbandoned`, and `ConnectionLost` when the
        child died."""
        given = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        header = {
            "outputs": list(outputs),
            "inputs": [[name, values.dtype.str, list(values.shape)] for name, values in given.items()],
        }
        parts = [values.data.cast("B") for values in given.values() if values.size]

        connection = self._free.get()
        try:
            return self._ask(connection, header, parts)
        finally:
            self._free.put(connection)

    def _ask(
        self, connection: socket.socket, header: Mapping[str, object], parts: Sequence[memoryview]
    ) -> list[Values]:
        seconds = self._confinement.runs_within_seconds
        deadline = time.monotonic() + seconds
        try:
            send_frame(connection, header, parts, deadline)
            _wait_for_answer(connection, deadline)
            answer = receive_header(connection, deadline)
            if "error" in answer:
                raise NetworkRaised(str(answer["error"]))
            found = self._room_for(answer)
            for values in found:
                if values.size:
                    receive_into(connection, values.data.cast("B"), deadline)
            return found
        except RunAbandoned:
            self.kill()
            raise
        except DeadlinePassed as error:
            self.kill()
            raise NetworkStopped(f"The network took longer than {seconds:g} s, and was stopped.") from error
        except BadFrame as error:
            self.kill()
            raise NetworkStopped(f"The process in which the network ran sent {error}.") from error

    def _room_for(self, answer: Mapping[str, Any]) -> list[Values]:
        """Return arrays for what the child says that it gives. Raises `BadFrame`."""
        try:
            described = [(np.dtype(dtype), [int(length) for length in shape]) for dtype, shape in answer["outputs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadFrame("an answer that is no array") from error
        if any(dtype.kind not in _DTYPES or min(shape, default=0) < 0 for dtype, shape in described):
            raise BadFrame("an answer that is no array")
        size = sum(prod(shape) * dtype.itemsize for dtype, shape in described)
        if size > self._confinement.memory_bytes:
            raise BadFrame(f"an answer of {size} bytes")
        return [np.empty(shape, dtype) for dtype, shape in described]

    def _open(
        self, connection: socket.socket, data: bytes, weights: Mapping[str, bytes], device: str
    ) -> tuple[list[Argument], list[Argument]]:
        seconds = self._confinement.opens_within_seconds
        deadline = time.monotonic() + seconds
        sizes = [len(data), *map(len, weights.values())]
        try:
            send_frame(
                connection,
                {"names": list(weights), "sizes": sizes, "device": device},
                [memoryview(content) for content in (data, *weights.values())],
                deadline,
            )
            answer = receive_header(connection, deadline)
        except DeadlinePassed as error:
            raise NetworkStopped(f"Opening the network took longer than {seconds:g} s.") from error
        except (ConnectionLost, BadFrame) as error:
            raise NetworkStopped(
                "Opening the network ended its process: it may need more memory than it may have."
            ) from error
        if "error" in answer:
            raise NetworkRaised(str(answer["error"]))
        inputs, outputs = (
            [Argument(name, kind, None if shape is None else tuple(shape)) for name, kind, shape in answer[which]]
            for which in ("inputs", "outputs")
        )
        return inputs, outputs


def _wait_for_answer(connection: socket.socket, deadline: float) -> None:
    """Wait until something comes, or the deadline. Raises `ConnectionLost` and `RunAbandoned`."""
    while time.monotonic() < deadline:
        descriptor = connection.fileno()
        if descriptor < 0:  # another run's end took the child
            raise ConnectionLost
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if poll.poll(_LOOK_MILLISECONDS):
            return
        check_wanted()


def _end(process: "subprocess.Popen[bytes]", connections: Sequence[socket.socket]) -> None:
    """End a child, whatever it does, and wait until it is gone."""
    process.kill()
    process.wait()
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes who waits on it
            connection.close()
