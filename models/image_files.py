"""What lies around the pixels of an image file: chunks, profiles, end markers. Damage there costs only itself.

Pillow reads a file whole or not at all: a text chunk that inflates to too much, or a checksum that is wrong beside the
pixels, makes it refuse them. So PNG and WebP are handed to it with their pixels alone, and what else is used of them is
read here. Nothing here decodes pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# What a compressed chunk may inflate to; profiles of printing presses have up to 3 MB.
MOST_INFLATED_BYTES = 16 * 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT"})
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_XMP, _EXIF_AS_TEXT = b"XML:com.adobe.xmp", b"Raw profile type exif"
_WEBP_OF_PIXELS = frozenset({b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"})
_WEBP_INFO = {b"ICCP": "icc_profile", b"EXIF": "exif", b"XMP ": "xmp"}
_WEBP_FLAGS_OF_INFO = 0x20 | 0x08 | 0x04
# An item of an AVIF or HEIF file that is declared to be EXIF.
_EXIF_ITEM = re.compile(rb"(infe\x02\x00\x00[\x00\x01].{4})Exif", re.DOTALL)

_JPEG_SCAN = 0xDA
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class SoundFile:
    """A file as Pillow can read it, and what was read of it here, by Pillow's names: `icc_profile`, `exif`, `xmp`,
    "Raw profile type exif". `key_16` is the transparent colour of a PNG whose channels have 16 bits each."""

    data: bytes
    info: dict[str, Any] = field(default_factory=dict)
    key_16: tuple[int, int, int] | None = None


def sound_file(data: bytes) -> SoundFile:
    """Return the file without what could keep its pixels from being read; most formats as they are."""
    if data.startswith(_PNG):
        return _sound_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _sound_webp(data)
    return SoundFile(data)


def without_exif(data: bytes) -> bytes:
    """Return an AVIF or HEIF file with its EXIF item renamed to what no reader knows; other files as they are."""
    return _EXIF_ITEM.sub(rb"\1none", data) if data[4:8] == b"ftyp" else data


def ended_jpegs(data: bytes) -> list[bytes]:
    """Return a JPEG that ends too early with an end marker, after other bits in each; none where a scan is missing.

    A decoder takes bits that are missing from what follows: so pixels were missing unless all come out alike.
    """
    if not _has_every_scan(data):
        return []
    body = data.rstrip(b"\xff")
    return [body + bits * 64 + b"\xff\xd9" for bits in (b"\x00", b"\x55", b"\xaa", b"\xff\x00")]


def _sound_png(data: bytes) -> SoundFile:
    parts, info = [_PNG], dict[str, Any]()
    key_16 = None
    for kind, body, is_sound in _png_chunks(data):
        if kind in _PNG_OF_PIXELS:
            parts.append(struct.pack(">I4s", len(body), kind) + body)
            parts.append(struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)) if is_sound else 0))
        elif kind == b"tRNS" and is_sound and _has_16_bit_channels(parts) and len(body) >= 6:
            key_16 = struct.unpack(">3H", body[:6])
        elif kind == b"tRNS" and is_sound:
            parts.append(struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body)))
        elif is_sound:
            info |= _png_info(kind, body)
    parts.append(_PNG_END)
    return SoundFile(b"".join(parts), info, key_16)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Give kind, body and whether the checksum is right; the last may be cut short, and IEND is not given."""
    offset = len(_PNG)
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        checksum = data[offset + 8 + length : offset + 12 + length]
        if kind == b"IEND":
            return
        # Pillow does not check the sum of pixels, which have one of their own.
        yield kind, body, kind == b"IDAT" or checksum == struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        offset += 12 + length


def _has_16_bit_channels(parts: list[bytes]) -> bool:
    """Return whether the header, the first chunk, says colours of three channels with 16 bits."""
    return len(parts) > 1 and parts[1][4:8] == b"IHDR" and parts[1][16:18] == b"\x10\x02"


def _png_info(kind: bytes, body: bytes) -> dict[str, Any]:
    """Return what an ancillary chunk says that is used, if anything."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"eXIf":
        return {"exif": body}
    if kind == b"iCCP":
        return _known("icc_profile", _inflated(rest[1:]))
    if keyword == _EXIF_AS_TEXT and kind in (b"tEXt", b"zTXt"):
        text = rest if kind == b"tEXt" else _inflated(rest[1:])
        return {} if text is None else {_EXIF_AS_TEXT.decode(): text.decode("latin-1")}
    if keyword == _XMP and kind == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]
        return _known("xmp", _inflated(text) if rest[:1] == b"\1" else text)
    return {}


def _known(name: str, value: bytes | None) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _inflated(data: bytes) -> bytes | None:
    """Return the data inflated; None where it is damaged or would be too much."""
    inflater = zlib.decompressobj()
    try:
        value = inflater.decompress(data, MOST_INFLATED_BYTES)
    except zlib.error:
        return None
    return value if inflater.eof else None


def _sound_webp(data: bytes) -> SoundFile:
    parts, info, offset = [b"WEBP"], dict[str, Any](), 12
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2
        if kind in _WEBP_OF_PIXELS:
            if kind == b"VP8X" and body:
                body = bytes([body[0] & ~_WEBP_FLAGS_OF_INFO]) + body[1:]
            parts.append(struct.pack("<4sI", kind, length) + body + bytes(length % 2))
        elif kind in _WEBP_INFO and len(body) == length:
            info[_WEBP_INFO[kind]] = body
    whole = b"".join(parts)
    return SoundFile(b"RIFF" + struct.pack("<I", len(whole)) + whole, info)


def _has_every_scan(data: bytes) -> bool:
    """Return whether scans have begun that bring every coefficient of every component to its last bit (ITU-T T.81,
    G.1.1.1)."""
    missing: set[tuple[int, int]] = set()
    for marker, body in _jpeg_segments(data):
        if marker in _JPEG_FRAMES and len(body) >= 6:
            missing = {(component, place) for component in body[6 : 6 + 3 * body[5] : 3] for place in range(64)}
        elif marker == _JPEG_SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            if bits & 15 == 0:
                missing -= {(part, place) for part in body[1 : 1 + 2 * body[0] : 2] for place in range(first, last + 1)}
    return not missing


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give marker and body of each segment; what a scan codes is passed over."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF or marker in _JPEG_WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        yield marker, data[offset + 4 : offset + 2 + length]
        offset += 2 + length
        if marker == _JPEG_SCAN:
            found = _JPEG_AFTER_SCAN.search(data, offset)
            if found is None:
                return
            offset = found.start()
