"""Children that are started again: when, and how they are stopped together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from service.embedded.children import Child, stop_all
from service.embedded.processes import spawn
from tests.served import wait_for

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
)


class Clock:
    """Seconds that a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def dead() -> "subprocess.Popen[bytes]":
    """A process that has ended already."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process


def pause_of(child: Child, clock: Clock) -> float:
    """Return after how many seconds a child that is dead is started again."""
    died, before = clock.now, child.process
    child.restart_if_dead()
    while child.process is before:
        clock.now += 0.5
        child.restart_if_dead()
    return clock.now - died


def test_the_pause_before_the_next_start_doubles_up_to_half_a_minute_while_it_dies_young() -> None:
    clock = Clock()
    child = Child("dies", dead, clock)

    pauses = [pause_of(child, clock) for _ in range(7)]

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_one_that_lived_for_a_while_is_started_again_soon() -> None:
    clock = Clock()
    child = Child("dies", dead, clock)
    for _ in range(4):
        pause_of(child, clock)

    clock.now += 10.0

    assert pause_of(child, clock) == 1.0


def test_one_that_runs_is_left_alone() -> None:
    child = Child("runs", lambda: spawn(_SLEEP, log_path=None, environment=os.environ))
    before = child.process

    child.restart_if_dead()
    stop_all([child], 30)

    assert child.process is before
    assert before.returncode == -signal.SIGTERM


def test_all_are_asked_to_stop_at_once_and_who_does_not_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "stubborn.log"
    stubborn = Child("stubborn", lambda: spawn([sys.executable, "-c", _STUBBORN], log_path=log, environment=os.environ))
    willing = Child("willing", lambda: spawn(_SLEEP, log_path=None, environment=os.environ))
    wait_for(lambda: log.exists() and log.read_text() == "on\n")

    stop_all([stubborn, willing], 1.0)

    assert stubborn.process.returncode == -signal.SIGKILL
    assert willing.process.returncode == -signal.SIGTERM
