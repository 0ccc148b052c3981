"""Child processes that cannot outlive us, not even when we are killed with SIGKILL (Linux)."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_LAUNCHER = Path(__file__).with_name("launch.py")


class Account(NamedTuple):
    """Whom root starts a program as, when the program refuses to run as root."""

    uid: int
    gid: int


def spawn(
    command: Sequence[str],
    *,
    log_path: Path | None,
    environment: Mapping[str, str],
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    inherited: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start `command` in its own session (Ctrl-C reaches only us); it gets `death_signal` when we die.

    Call it from the main thread: the kernel watches the *thread* that started the child. With `log_path`, its output
    is appended there; otherwise it goes where ours goes. `inherited` are open file descriptors that it keeps.
    """
    full_command = [*_launcher(death_signal, account), *command]
    if log_path is None:
        return subprocess.Popen(full_command, env=dict(environment), pass_fds=inherited, start_new_session=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            full_command,
            env=dict(environment),
            pass_fds=inherited,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    account: Account | None = None,
    inherited: Sequence[int] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run `command` to its end, like `spawn`, and return its output."""
    return subprocess.run(
        [*_launcher(signal.SIGTERM, account), *command],
        env=dict(environment),
        pass_fds=inherited,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


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


def _launcher(death_signal: signal.Signals, account: Account | None) -> list[str]:
    whom = "self" if account is None else f"{account.uid}:{account.gid}"
    return [sys.executable, "-I", str(_LAUNCHER), str(os.getpid()), str(int(death_signal)), whom]
