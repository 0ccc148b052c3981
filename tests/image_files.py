"""Image files as cameras and editors write them, made chunk by chunk where Pillow would not."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# `picture(32, 24)`, turned by 90 degrees and said so twice, as iPhones do: by the container and by EXIF.
TURNED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRp"
    "bG9jAAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAHAAAgAAAAACWwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA"
    "/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyA"
    "AAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAgAAAA"
    "Af///9gAAAAC////4AAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAA"
    "AAAAAA5jZHNjAAIAAQABAAAAnG1kYXQAAABsKAGvUhpX1IDm/aNKJhi3hyBGvSehkhxr4CIjHmrQMBeO4GJE8Wdqm/VhyGIjQKz2XZQd"
    "U3YHf1jekzD61RiM3XqH1nUxsrYtRPBAm97Qrr+1cf0PdXU5A2JEQdf/wVG8xOPQsDhHAt8zfX2AAAAABkV4aWYAAE1NACoAAAAIAAEB"
    "EgADAAAAAQAGAAAAAAAA"
)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """A smooth image, so that lossy formats keep its values."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """An image that no format makes small, so that its file is nearly all pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *before_pixels: bytes) -> bytes:
    """Return a PNG with these rows, each with its filter byte, and chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + header + b"".join(before_pixels) + pixels


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with chunks after its header."""
    end_of_header = len(PNG_SIGNATURE) + 25
    return data[:end_of_header] + b"".join(chunks) + data[end_of_header:]


def png_of_zeros(width: int, height: int) -> bytes:
    """Return a real PNG of 1 bit per pixel: kilobytes that decode to any number of pixels."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return PNG_SIGNATURE + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bmp_with_unused_alpha(image: Image.Image) -> bytes:
    """Return a BMP of 32 bits per pixel that has an alpha channel, of zeros."""
    values = np.dstack([np.asarray(image)[::-1, :, ::-1], np.zeros((image.height, image.width), np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, image.width, image.height, 1, 32, 3, values.size, 0, 0, 0, 0)
    body = header + masks + b"sRGB" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(body) + values.size, 0, 0, 14 + len(body)) + body + values.tobytes()


def display_p3() -> bytes:
    """Return an ICC profile, version 2, of Display P3's primaries (adapted to D50) and a gamma of 2.2."""
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2919, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    tags = {b"wtpt": _xyz(0.9642, 1.0, 0.8249), **{name: _xyz(*value) for name, value in primaries.items()}}
    gamma = b"curv" + struct.pack(">IIH", 0, 1, round(2.2 * 256)) + bytes(2)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma)
    text = b"Display P3\0"
    tags[b"desc"] = b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(79 + -(len(text) + 79) % 4)
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0\0\0\0"

    table, bodies, offset = b"", b"", 132 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body
    size = offset + len(bodies)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
