"""What is hashed and signed: canonical JSON, and its SHA-256.

Canonical JSON has its keys in the order of their code points, no spaces, and no escapes but those that JSON needs, in
UTF-8; numbers are as Python's `json` writes them. So equal values are equal bytes, wherever they were kept meanwhile.
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return a value of JSON's types in the one form that is hashed and signed. Raises `ValueError` for NaN and
    infinity, which are none."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
