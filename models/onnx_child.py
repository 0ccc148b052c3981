"""`python -m models.onnx_child`: the process in which one ONNX network runs for another process, within a limit of
memory. It ends when the connection that only says that somebody is there is closed.

First arguments: the most bytes that it may take beyond what it has after its imports; the descriptor of that
connection; then those of the connections on which it is asked, each served by a thread. The first one brings the
network.
"""

import os
import resource
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.frames import receive_header, receive_into, send_frame
from models.onnx_sessions import Session, Values, open_here


def main(arguments: Sequence[str]) -> None:
    """Serve until nobody is there any more."""
    memory_bytes, presence, *asked = (int(argument) for argument in arguments)
    limit_memory(memory_bytes)
    connections = [socket.socket(fileno=descriptor) for descriptor in asked]
    threading.Thread(target=_serve_all, args=[connections], daemon=True).start()
    with socket.socket(fileno=presence) as connection:
        connection.recv(1)
    os._exit(0)  # threads may be in a run that never ends


def limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes more than it has; what would take more fails. Its memory counts that only it
    can write: libraries and files that are mapped do not."""
    taken = next(
        1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line
    )
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, taken + more_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve_all(connections: Sequence[socket.socket]) -> None:
    """Open the network that the first connection brings, then run it for all of them."""
    try:
        session = _open(connections[0])
        if session is not None:
            for connection in connections[1:]:
                threading.Thread(target=_serve, args=[connection, session], daemon=True).start()
            _serve(connections[0], session)
    finally:
        os._exit(1)


def _open(connection: socket.socket) -> Session | None:
    header = receive_header(connection)
    contents = [bytearray(size) for size in header["sizes"]]
    for content in contents:
        receive_into(connection, memoryview(content))
    data, *weights = (bytes(content) for content in contents)
    try:
        session = open_here(data, dict(zip(header["names"], weights, strict=True)), header["device"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common base; told to who registers
        send_frame(connection, {"error": str(error)})
        return None
    arguments = {"inputs": session.inputs, "outputs": session.outputs}
    described = {name: [[each.name, each.type, each.shape] for each in found] for name, found in arguments.items()}
    send_frame(connection, described)
    return session


def _serve(connection: socket.socket, session: Session) -> None:
    """Run the network as often as it is asked for. What cannot be answered ends the process: who asked sees that."""
    try:
        while True:
            header = receive_header(connection)
            inputs = {name: _receive(connection, dtype, shape) for name, dtype, shape in header["inputs"]}
            answer, parts = _run(session, header["outputs"], inputs)
            send_frame(connection, answer, parts)
    finally:
        os._exit(1)


def _receive(connection: socket.socket, dtype: str, shape: Sequence[int]) -> Values:
    values = np.empty(shape, dtype)
    if values.size:
        receive_into(connection, values.data.cast("B"))
    return values


def _run(
    session: Session, outputs: Sequence[str], inputs: dict[str, Values]
) -> tuple[dict[str, Any], list[memoryview]]:
    try:
        found = [np.ascontiguousarray(values) for values in session.run(outputs, inputs)]
    except MemoryError:
        return {"error": "The network needs more memory than it may have."}, []
    except Exception as error:  # noqa: BLE001 - whatever the network raises is told
        return {"error": str(error)}, []
    for values in found:
        if values.dtype.hasobject:
            return {"error": f"The network gives {values.dtype.name} values."}, []
    described = {"outputs": [[values.dtype.str, values.shape] for values in found]}
    return described, [values.data.cast("B") for values in found if values.size]


if __name__ == "__main__":
    main(sys.argv[1:])
