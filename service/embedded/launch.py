"""Start a program that dies with its parent: `launch.py <parent pid> <signal> <as whom> <program> [arguments]`.

`as whom` is `self`; or `namespace`, for a program that refuses to run as root: it sees itself as the account `nobody`
inside a user namespace, and keeps root's access to files; or `nobody`, really that account. Used by `processes.spawn`;
it replaces itself by the program.

The order matters: a change of user clears the death signal, so the user comes first; and a parent that died before the
signal was set is noticed by its pid.
"""

import ctypes
import os
import pwd
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000


def launch(parent: int, death_signal: int, as_whom: str, command: list[str]) -> None:
    """Become `command`."""
    libc = ctypes.CDLL(None, use_errno=True)
    nobody = pwd.getpwnam("nobody")
    if as_whom == "namespace":
        _check(libc.unshare(_CLONE_NEWUSER), "unshare(CLONE_NEWUSER)")
        maps = {"setgroups": "deny", "uid_map": f"{nobody.pw_uid} 0 1", "gid_map": f"{nobody.pw_gid} 0 1"}
        for name, content in maps.items():
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(content)
    elif as_whom == "nobody":
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    _check(libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent has gone already")
    os.execvp(command[0], command)


def _check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{call} failed")


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
