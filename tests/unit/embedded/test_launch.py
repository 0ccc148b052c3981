"""Becoming a program that dies with its parent, as root or as an ordinary user."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.embedded import launch

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program as another user")
_TELL = """
import os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(os.getuid(), os.getgid(), os.getgroups(), int(status["CapEff"], 16), int(status["CapAmb"], 16))
"""


def launched(parent: int, account: str, *command: str) -> "subprocess.CompletedProcess[str]":
    arguments = [str(parent), str(int(signal.SIGTERM)), account, *command]
    return subprocess.run(
        [sys.executable, "-I", launch.__file__, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_it_becomes_the_program_with_its_arguments() -> None:
    finished = launched(os.getpid(), "self", "/bin/echo", "-n", "one", "two words")

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "one two words", "")


def test_it_starts_nothing_when_the_parent_has_died_meanwhile(tmp_path: Path) -> None:
    made = tmp_path / "made"

    finished = launched(os.getppid(), "self", "/bin/touch", str(made))

    assert "the parent has gone already" in finished.stderr
    assert finished.returncode != 0
    assert not made.exists()


def test_the_program_gets_the_death_signal() -> None:
    program = "import ctypes; s = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(s), 0, 0, 0); print(s.value)"

    finished = launched(os.getpid(), "self", sys.executable, "-c", program)

    assert finished.stdout.split() == [str(int(signal.SIGTERM))]


@as_root
def test_as_another_user_only_the_power_to_pass_through_folders_is_left() -> None:
    nobody = pwd.getpwnam("nobody")

    finished = launched(os.getpid(), f"{nobody.pw_uid}:{nobody.pw_gid}", sys.executable, "-I", "-c", _TELL)

    override = 1 << 1  # CAP_DAC_OVERRIDE
    assert finished.stdout == f"{nobody.pw_uid} {nobody.pw_gid} [] {override} {override}\n", finished.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become another user")
def test_an_ordinary_user_cannot_become_another_one_and_is_told() -> None:
    finished = launched(os.getpid(), "65534:65534", "/bin/echo")

    assert finished.returncode == 1
    assert "cannot start /bin/echo" in finished.stderr
