"""Child processes: where they run, what they print, how they are stopped, and that they die with their parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.embedded.processes import run, spawn, stop
from tests.served import is_running, wait_for

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
)
_PARENT = f"""
import os, signal, sys, time
from service.embedded.processes import spawn
child = spawn({_SLEEP}, log_path=None, environment=os.environ, death_signal=signal.SIGUSR1)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_output_is_added_to_the_log_and_the_environment_is_what_is_given(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("before\n")
    program = "import os, sys; print(os.environ['WORD'], 'HOME' in os.environ, sys.stdin.read() == ''); sys.exit(3)"

    child = spawn([sys.executable, "-c", program], log_path=log, environment={"WORD": "given"})

    assert child.wait(30) == 3
    assert log.read_text() == "before\ngiven False True\n"


def test_a_child_has_a_session_of_its_own() -> None:
    child = spawn(_SLEEP, log_path=None, environment=os.environ)

    session = os.getsid(child.pid)
    stop(child, signal.SIGTERM, 30)

    assert session == child.pid != os.getsid(0)


def test_a_child_is_stopped_by_the_signal_that_it_is_to_get_and_stopping_again_does_nothing() -> None:
    child = spawn(_SLEEP, log_path=None, environment=os.environ)

    stop(child, signal.SIGTERM, 30)
    stop(child, signal.SIGKILL, 30)

    assert child.returncode == -signal.SIGTERM


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    child = spawn([sys.executable, "-c", _STUBBORN], log_path=log, environment=os.environ)
    wait_for(lambda: log.read_text() == "on\n")

    stop(child, signal.SIGTERM, 0.1)

    assert child.returncode == -signal.SIGKILL


def test_a_child_dies_when_its_parent_is_killed() -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", _PARENT], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            wait_for(lambda: b"launch.py" not in Path(f"/proc/{child}/cmdline").read_bytes())
        finally:
            parent.kill()

    wait_for(lambda: not is_running(child))


def test_a_child_keeps_the_open_files_that_it_is_given_and_no_others(tmp_path: Path) -> None:
    program = "import os, sys; print([os.path.exists(f'/proc/self/fd/{number}') for number in sys.argv[1:]])"
    with (tmp_path / "kept").open("w") as kept, (tmp_path / "other").open("w") as other:
        numbers = [kept.fileno(), other.fileno()]
        command = [sys.executable, "-c", program, *map(str, numbers)]

        finished = run(command, environment={}, inherited=numbers[:1])

    assert finished.stdout == "[True, False]\n"


def test_a_program_that_ends_gives_its_output_and_its_code() -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"

    finished = run([sys.executable, "-c", program], environment={})

    assert (finished.returncode, finished.stdout, finished.stderr) == (5, "out\n", "err\n")


@pytest.mark.parametrize("program", ["/nowhere/at-all", "/etc/passwd"])
def test_a_program_that_cannot_be_started_is_named(program: str) -> None:
    finished = run([program], environment={})

    assert finished.returncode == 1
    assert f"cannot start {program}" in finished.stderr
