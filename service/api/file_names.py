"""The name that a form gives a file, in the ways in which clients write one that is not ASCII.

`filename="Äpfel.png"` in UTF-8 is what browsers and RFC 7578 say. Besides there are `filename*=UTF-8''%C3%84pfel.png`
(RFC 8187, which older HTTP libraries use), encoded words such as `=?UTF-8?Q?=C3=84pfel.png?=` (RFC 2047, from mail),
and percent forms such as `%C3%84pfel.png` (RFC 7578, section 2). All of them are one name, and so one item.
"""

import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import unquote

_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_EXTENDED = re.compile(rb";\s*filename\*\s*=\s*(utf-8|iso-8859-1)'[^']*'([^;\s]*)", re.IGNORECASE)
_PLAIN = re.compile(rb";\s*filename\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)", re.IGNORECASE)
_ENCODED_WORDS = re.compile(r"(=\?[A-Za-z0-9_-]+\?[BbQq]\?[^? ]*\?=)( =\?[A-Za-z0-9_-]+\?[BbQq]\?[^? ]*\?=)*")


def plain_disposition(disposition: bytes) -> bytes:
    """Return a part's Content-Disposition with its `filename*`, which goes before `filename`, as the `filename`."""
    outside_quotes = _QUOTED.sub(lambda quoted: b"_" * len(quoted[0]), disposition)
    found = _EXTENDED.search(outside_quotes)
    if found is None:
        return disposition
    name = unquote(found[2].decode("ascii", "replace"), found[1].decode("ascii"))
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode()
    rest = _PLAIN.sub(b"", disposition[: found.start()] + disposition[found.end() :])
    return rest + b'; filename="' + quoted + b'"'


def readable_name(name: str) -> str:
    """Return a file's name without the encoding that a client gave it; one that has none stays as it is."""
    if not name.isascii():
        return name
    if _ENCODED_WORDS.fullmatch(name):
        try:
            return str(make_header(decode_header(name)))
        except (HeaderParseError, LookupError, UnicodeDecodeError, ValueError):
            return name
    try:
        decoded = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return name
    # What stands for ASCII alone, such as 100%25.png, may be the file's real name.
    return name.replace("%22", '"') if decoded.isascii() else decoded
