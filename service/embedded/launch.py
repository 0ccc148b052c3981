"""Start a program that dies with its parent: `launch.py <parent pid> <signal> <account> <program> [arguments]`.

`account` is `self` or `uid:gid`. PostgreSQL refuses to run as root, so root runs it as another account, which keeps one
of root's capabilities: passing through folders that are closed to it, such as a clone under /root.
Used by `processes.spawn` and `processes.run`; it replaces itself by the program.

The order matters: a change of user clears the death signal, so the user comes first; and a parent that died before the
signal was set is noticed by its pid.
"""

import ctypes
import os
import sys

# From <linux/prctl.h>, <linux/securebits.h> and <linux/capability.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def launch(parent: int, death_signal: int, account: str, command: list[str]) -> None:
    """Become `command`."""
    if account != "self":
        uid, gid = account.split(":")
        _become(int(uid), int(gid))
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit("the parent has gone already")
    os.execvp(command[0], command)


def _become(uid: int, gid: int) -> None:
    # Keeps the capabilities over the change of user, and makes access() count the one that stays.
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    kept = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    _check(_libc.capset(header, effective_permitted_inheritable), "capset(CAP_DAC_OVERRIDE)")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)  # or the program would start without it


def _prctl(option: int, first: int, second: int = 0) -> None:
    _check(_libc.prctl(option, first, second, 0, 0), f"prctl({option})")


def _check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{call} is not allowed")


if __name__ == "__main__":
    try:
        launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except OSError as error:
        hint = "" if sys.argv[3] == "self" else "; root lacks capabilities here, start as an ordinary user"
        sys.exit(f"cannot start {sys.argv[4]}: {error}{hint}")
