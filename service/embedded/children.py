"""What the supervisors here share: children that are started again when they die, and signals that end it all."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterable

from service import logs

events = logs.Events(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_LIVED_SECONDS = 10.0  # whoever lived for so long is started again after the first pause


class Stopped(Exception):
    """SIGINT or SIGTERM arrived."""


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM raise `Stopped` in the main thread, from which this is called."""
    _on_stop_signals(_raise_stopped)


def ignore_stop_signals() -> None:
    """Let nothing interrupt the end; to be called in the main thread."""
    _on_stop_signals(signal.SIG_IGN)


class Child:
    """A process that is started again when it dies: after a second, and after twice as long each time that it dies
    young, up to half a minute."""

    def __init__(
        self, name: str, start: Callable[[], "subprocess.Popen[bytes]"], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._start = start
        self._clock = clock
        self._pause_seconds = 0.0
        self._due: float | None = None
        self._began = clock()
        self.process = start()

    def restart_if_dead(self) -> None:
        """Say that it died, once, and start it when its pause is over; returns at once."""
        code = self.process.poll()
        if code is None:
            return
        now = self._clock()
        if self._due is None:
            self._pause_seconds = self._next_pause(now)
            self._due = now + self._pause_seconds
            events.warning(
                "serve.child_died", child=self.name, code=code, started_again_after_seconds=self._pause_seconds
            )
        if now >= self._due:
            self._due, self._began = None, now
            self.process = self._start()

    def _next_pause(self, now: float) -> float:
        if now - self._began >= _LIVED_SECONDS or not self._pause_seconds:
            return _FIRST_PAUSE_SECONDS
        return min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)


def stop_all(children: Iterable[Child], wait_seconds: float) -> None:
    """Ask all to stop at once, and kill those that have not after `wait_seconds`."""
    children = list(children)
    ends = time.monotonic() + wait_seconds
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
    for child in children:
        try:
            child.process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def _on_stop_signals(act: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, act)


def _raise_stopped(_number: int, _frame: object) -> None:
    raise Stopped
