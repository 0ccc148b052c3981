"""Several API processes on one port: `gallery-upgrade api --processes N`.

This process takes the port and starts the others, which accept from the same sockets: what waits to be accepted is
nobody's, so that no connection is lost with a process that had yet to take it. None serves before all have loaded; one
that dies is started again, and serves when it has loaded, while the others go on. They die with this process, even
where it is killed. One that cannot start at first ends it all.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service import logs
from service.embedded.addresses import Address, ServeError
from service.embedded.children import Child, Stopped, ignore_stop_signals, stop_all, stop_on_signals
from service.embedded.gates import Gate
from service.embedded.processes import spawn

if TYPE_CHECKING:
    import subprocess

events = logs.Events(__name__)

_LOOK_EVERY_SECONDS = 0.1
_STOP_SECONDS = 25.0  # less than what `serve` gives this process
_BACKLOG = 2_048  # as uvicorn's own


class _ApiProcess:
    """One of them, and the gate that it waits at."""

    def __init__(
        self, number: int, address: Address, listeners: list[socket.socket], environment: Mapping[str, str]
    ) -> None:
        self._number = number
        self._address = address
        self._listeners = listeners
        self._environment = environment
        self._gate = Gate()
        self._is_let_in = False
        self.child = Child(f"api {number}", self._start)

    @property
    def has_loaded(self) -> bool:
        return self._gate.has_loaded

    def let_in(self) -> None:
        """Let it serve, if it waits."""
        if not self._is_let_in and self._gate.has_loaded:
            self._gate.open()
            self._is_let_in = True
            events.info("api.serves", number=self._number, pid=self.child.process.pid)

    def give_up(self) -> None:
        """End it if it still waits."""
        self._gate.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._gate.close()
        self._gate, self._is_let_in = Gate(), False
        numbers = [listener.fileno() for listener in self._listeners]
        command = [
            *(sys.executable, "-m", "service.cli", "api-process"),
            *("--number", str(self._number), "--gate", str(self._gate.inherited)),
            *(part for number in numbers for part in ("--listener", str(number))),
            *self._address.certificate_options,
        ]
        process = spawn(
            command, log_path=None, environment=self._environment, inherited=[*numbers, self._gate.inherited]
        )
        self._gate.give_away()
        return process


def serve_processes(count: int, address: Address, environment: Mapping[str, str]) -> None:
    """Start `count` API processes, watch them, and stop them on SIGINT or SIGTERM: requests that run have 10 seconds,
    and what is not over after 25 is killed. Must run in the main thread.

    Raises `ServeError` where the port is taken, or one cannot start at first.
    """
    listeners = address.bind()
    environment = {**environment, **_threads(count)}
    processes: list[_ApiProcess] = []
    stop_on_signals()
    try:
        processes.extend(_ApiProcess(number, address, listeners, environment) for number in range(count))
        _wait_until_loaded(processes)
        for listener in listeners:
            listener.listen(_BACKLOG)
        events.info("api.ready", processes=count, url=address.url())
        _watch(processes)
    except Stopped:
        events.info("api.stopping", processes=count)
    finally:
        ignore_stop_signals()
        for listener in listeners:
            listener.close()
        for process in processes:
            process.give_up()
        stop_all([process.child for process in processes], _STOP_SECONDS)


def _wait_until_loaded(processes: list[_ApiProcess]) -> None:
    while not all(process.has_loaded for process in processes):
        if any(process.child.process.poll() is not None for process in processes):
            raise ServeError("An API process did not start; its reason is above.")
        time.sleep(_LOOK_EVERY_SECONDS)


def _watch(processes: list[_ApiProcess]) -> None:
    while True:
        for process in processes:
            process.child.restart_if_dead()
            process.let_in()
        time.sleep(_LOOK_EVERY_SECONDS)


def _threads(processes: int) -> dict[str, str]:
    """Return how many threads each computes in, unless the operator says: together, as many as there are cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}
