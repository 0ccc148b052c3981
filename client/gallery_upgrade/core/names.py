"""Names of files, which on most systems are bytes that need not be text."""

import os


def is_text(name: str) -> bool:
    """Return whether a name, as Python has it, is Unicode: bytes that are no UTF-8 are lone surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""Return a name as text that can be sent and written: bytes that are no UTF-8 as \xff."""
    return name if is_text(name) else os.fsencode(name).decode(errors="backslashreplace")
