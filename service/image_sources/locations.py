"""URIs of images, and which of them lie below the operator's prefixes.

A URI is never mended: whatever could be read in two ways is refused. It is cut into scheme, authority and the segments
of its path, compared with the prefixes by whole segments, and read by what was compared, not by what was given. So the
host or bucket that is reached is always one that the operator wrote; a path that some server could still take for
another one (`..` in any encoding, a backslash) is refused before.
"""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from service.image_sources.errors import LocationNotAllowed

WEB = ("http", "https")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
_HOST = re.compile(r"([a-z0-9]([a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_STORE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_MOST_DECODINGS = 8


@dataclass(frozen=True)
class Location:
    """A place by its parts. `segments` are those of the path: percent-decoded for `file`, whose URIs are (RFC 8089), as
    they are sent for http(s), and literal elsewhere, as fsspec takes them. `query` is that of http(s), with its `?`."""

    scheme: str
    authority: str
    segments: tuple[str, ...]
    query: str = ""

    @property
    def path(self) -> str:
        """The path, which begins with a slash."""
        return "/" + "/".join(self.segments)

    def is_below(self, prefix: "Location") -> bool:
        """Return whether this is the prefix or lies in it: `s3://bucket/cat` holds no `s3://bucket/cats`."""
        same_place = (self.scheme, self.authority) == (prefix.scheme, prefix.authority)
        return same_place and self.segments[: len(prefix.segments)] == prefix.segments


def parse_location(uri: str) -> Location:
    """Return the parts of a URI. Raises `LocationNotAllowed` (422) for one that could be read in two ways."""
    if _unprintable(uri):
        raise LocationNotAllowed("The image's URI has control characters or is not valid Unicode.")
    if "::" in uri.partition("://")[0] or (parts := _URI.fullmatch(uri)) is None:
        raise LocationNotAllowed("The image's URI is not of the form scheme://place/path.")
    scheme, authority, path = parts[1].lower(), parts[2], parts[3]
    query = ""
    if scheme in WEB:
        authority = authority.lower().removesuffix(_DEFAULT_PORTS[scheme])
        if "#" in path:
            raise LocationNotAllowed("The image's URI has a fragment (#…): encode it as %23, or leave it out.")
        path, mark, query = path.partition("?")
        path, query = _sendable(path), mark + _sendable(query)

    allowed = {"file": re.compile(""), **dict.fromkeys(WEB, _HOST)}.get(scheme, _STORE)
    if not allowed.fullmatch(authority) or not _is_sound(authority):
        raise LocationNotAllowed(
            "The image's URI names its host or bucket in a way that is not accepted: no user, no password, no escapes;"
            " file:///… has none."
        )
    segments = tuple(path.removeprefix("/").split("/"))
    for segment in segments:
        _check_segment(segment)
    return Location(scheme, authority, tuple(map(unquote, segments)) if scheme == "file" else segments, query)


def _is_sound(authority: str) -> bool:
    """Return whether a port is one, and what stands in brackets an IPv6 address."""
    try:
        return urlsplit(f"//{authority}").port != 0
    except ValueError:
        return False


def _sendable(part: str) -> str:
    """Return a path or query as http sends it: characters outside ASCII, and spaces, encoded; escapes as they are."""
    return quote(part, safe="/%!$&'()*+,;=:@?[]~")


def _unprintable(value: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def _check_segment(segment: str) -> None:
    """Refuse what some reader could take for a way up, or for several segments, however often it decodes."""
    for _ in range(_MOST_DECODINGS):
        plain = unicodedata.normalize("NFKC", segment)
        if "\\" in plain or _unprintable(plain):
            raise LocationNotAllowed("The image's URI has a backslash or a control character in its path.")
        # `..;x` is `..` to some servers, and a space at the end is dropped by others.
        if any(piece.partition(";")[0].strip() in (".", "..") for piece in plain.split("/")):
            raise LocationNotAllowed("The image's URI has '.' or '..' in its path.")
        decoded = unquote(segment)
        if decoded == segment:
            return
        # Never in UTF-8; a lax reader takes them for dots and slashes.
        if {0xC0, 0xC1} & set(unquote_to_bytes(segment)):
            raise LocationNotAllowed("The image's URI is not UTF-8 when it is decoded.")
        segment = decoded
    raise LocationNotAllowed("The image's URI is encoded too often.")


def parse_prefixes(listed: str) -> tuple[Location, ...]:
    """Return the prefixes of `GALLERY_IMAGES`, which spaces separate.

    Raises `ValueError` with a sentence for one that is none, so that a process does not start with it.
    """
    prefixes = []
    for entry in listed.split():
        if entry.count("://") != 1 or "?" in entry:
            raise ValueError(f"GALLERY_IMAGES: {entry!r} is not one prefix such as s3://bucket/; spaces separate them.")
        try:
            location = parse_location(entry)
        except LocationNotAllowed as error:
            raise ValueError(f"GALLERY_IMAGES: {entry!r} is not a prefix. {error.message}") from error
        segments = location.segments[:-1] if location.segments[-1] == "" else location.segments
        prefixes.append(Location(location.scheme, location.authority, segments))
    return tuple(prefixes)
