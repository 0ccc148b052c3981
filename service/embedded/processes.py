"""Child processes that cannot outlive us, not even when we are killed with SIGKILL (Linux)."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

_LAUNCHER = Path(__file__).with_name("launch.py")

# See `launch.py`: as ourselves, or, for programs that refuse to run as root, one of the two ways around that.
AsWhom = Literal["self", "namespace", "nobody"]


def spawn(
    command: Sequence[str],
    *,
    log_path: Path | None,
    environment: Mapping[str, str],
    as_whom: AsWhom = "self",
    death_signal: signal.Signals = signal.SIGTERM,
) -> "subprocess.Popen[bytes]":
    """Start `command` in its own session (Ctrl-C reaches only us); it gets `death_signal` when we die.

    Call it from the main thread: the kernel watches the *thread* that started the child. With `log_path`, its output
    is appended there; otherwise it goes where ours goes.
    """
    full_command = [*_launcher(death_signal, as_whom), *command]
    if log_path is None:
        return subprocess.Popen(full_command, env=dict(environment), start_new_session=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            full_command,
            env=dict(environment),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def run(
    command: Sequence[str], *, environment: Mapping[str, str], as_whom: AsWhom = "self"
) -> "subprocess.CompletedProcess[str]":
    """Run `command` to its end, like `spawn`, and return its output."""
    full_command = [*_launcher(signal.SIGTERM, as_whom), *command]
    return subprocess.run(full_command, env=dict(environment), capture_output=True, text=True, check=False)


def way_around_root() -> AsWhom:
    """Return how a program that refuses to run as root can be run here."""
    if os.geteuid() != 0:
        return "self"
    probe = run(["true"], environment=os.environ, as_whom="namespace")
    return "namespace" if probe.returncode == 0 else "nobody"


def stop(process: "subprocess.Popen[bytes]", stop_signal: signal.Signals, wait_seconds: float) -> None:
    """Ask a child to stop; kill it if it has not after `wait_seconds`."""
    if process.poll() is not None:
        return
    process.send_signal(stop_signal)
    try:
        process.wait(wait_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _launcher(death_signal: signal.Signals, as_whom: AsWhom) -> list[str]:
    return [sys.executable, "-I", str(_LAUNCHER), str(os.getpid()), str(int(death_signal)), as_whom]
