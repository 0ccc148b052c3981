"""How a process that is to serve beside others says that it has loaded, and learns that it may serve.

A gate is a pair of connected sockets. The process that has the other end says that it has loaded; whoever started it
opens the gate; then it serves. Where who started it has gone, or wants no more, nobody will: the process ends.
"""

import os
import socket
from collections.abc import Callable

from service import logs

events = logs.Events(__name__)

_LOADED = b"l"
_OPEN = b"o"
_LOOK_EVERY_SECONDS = 0.05


class Gate:
    """The end of the one who opens. `inherited` is the descriptor of the other, which the process is given."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._has_loaded = False

    @property
    def inherited(self) -> int:
        return self._there.fileno()

    def give_away(self) -> None:
        """Close the other end here, once the process has it: so each learns when the other has gone."""
        self._there.close()

    @property
    def has_loaded(self) -> bool:
        """Whether the process has said that it has loaded."""
        if not self._has_loaded:
            try:
                self._has_loaded = self._here.recv(1) == _LOADED
            except OSError:  # it has said nothing yet, or died
                return False
        return self._has_loaded

    def open(self) -> None:
        """Let the process serve; does nothing where it died."""
        try:
            self._here.send(_OPEN)
        except OSError:
            return

    def close(self) -> None:
        """End the process if it does not serve yet."""
        self._here.close()
        self._there.close()


def wait_at_gate(descriptor: int, is_loaded: Callable[[], bool]) -> None:
    """Return when this process has loaded and may serve; end it where nobody will say so any more."""
    with socket.socket(fileno=descriptor) as gate:
        gate.settimeout(_LOOK_EVERY_SECONDS)
        has_said = False
        while True:
            if not has_said and is_loaded():
                gate.sendall(_LOADED)
                has_said = True
            try:
                if gate.recv(1) == _OPEN:
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            # Nobody was served by this process, and what it loaded is in rows and files.
            events.info("api.given_up", pid=os.getpid())
            os._exit(0)
