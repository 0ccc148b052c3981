"""The gate: a process serves when it has loaded and is let in, and ends where nobody would let it in any more."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.embedded.gates import Gate
from tests.served import wait_for

_PROGRAM = """
import sys
from pathlib import Path
from service.embedded.gates import wait_at_gate
wait_at_gate(int(sys.argv[1]), Path(sys.argv[2]).exists)
print("serves", flush=True)
"""


@contextmanager
def waiting(gate: Gate, loaded: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that waits at a gate, and has loaded when a file is there."""
    command = [sys.executable, "-c", _PROGRAM, str(gate.inherited), str(loaded)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, cwd=root, pass_fds=[gate.inherited], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        gate.give_away()
        yield process
        process.kill()


def test_who_has_loaded_says_so_and_serves_when_it_is_let_in(tmp_path: Path) -> None:
    gate, loaded = Gate(), tmp_path / "loaded"

    with waiting(gate, loaded) as process:
        before = gate.has_loaded
        loaded.touch()
        wait_for(lambda: gate.has_loaded, seconds=60)
        gate.open()
        said, _ = process.communicate(timeout=60)

    assert not before
    assert said == "serves\n"


@pytest.mark.parametrize("has_loaded", [True, False])
def test_who_waits_ends_when_the_gate_is_closed(tmp_path: Path, has_loaded: bool) -> None:
    gate, loaded = Gate(), tmp_path / "loaded"
    if has_loaded:
        loaded.touch()

    with waiting(gate, loaded) as process:
        if has_loaded:
            wait_for(lambda: gate.has_loaded, seconds=60)
        gate.close()
        said, _ = process.communicate(timeout=60)

    assert said == ""
    assert process.returncode == 0


def test_one_that_died_has_not_loaded_and_opening_for_it_does_nothing(tmp_path: Path) -> None:
    gate = Gate()
    with waiting(gate, tmp_path / "loaded") as process:
        process.kill()
        process.wait()

    gate.open()

    assert not gate.has_loaded
