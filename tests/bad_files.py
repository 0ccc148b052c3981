"""Files that are no images, or none that a gallery should decode."""

import zlib

from tests.networks import image_bytes


def bomb() -> bytes:
    """Return a PNG of a few kilobytes whose 1-bit pixels would be 20,000 x 20,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 20_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD_FILES = {
    "empty": b"",
    "text": b"this is not an image",
    "truncated png": image_bytes(1, size=(64, 64))[:200],
    "truncated jpeg": image_bytes(1, "JPEG", size=(64, 64))[:-300],
    "bomb": bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}
