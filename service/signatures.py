"""Ed25519 signatures (RFC 8032) over canonical JSON. Keys are written as the base64 of their 32 bytes."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from service.canonical_json import canonical_json

ALGORITHM = "Ed25519"


class NotVerified(ValueError):
    """What was signed is not what there is, or it was signed by another key, or not at all."""


@dataclass(frozen=True)
class Signer:
    """A private key."""

    key: Ed25519PrivateKey

    @classmethod
    def new(cls) -> Self:
        """Return a key that nobody has."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the key that was written as `text`."""
        return cls(Ed25519PrivateKey.from_private_bytes(base64.b64decode(text)))

    def to_text(self) -> str:
        return _text(self.key.private_bytes_raw())

    @property
    def public_key(self) -> str:
        return _text(self.key.public_key().public_bytes_raw())

    def sign(self, value: Any) -> dict[str, str]:
        """Return a signature over the canonical JSON of a value, with the public key that it is verified by."""
        signed = self.key.sign(canonical_json(value))
        return {"algorithm": ALGORITHM, "public_key": self.public_key, "value": _text(signed)}


def verify_signature(value: Any, signature: Any, public_key: str) -> None:
    """Raise `NotVerified`, with a sentence, unless `signature` is of this value by the private key of `public_key`."""
    if signature is None:
        raise NotVerified("It is not signed.")
    if signature["algorithm"] != ALGORITHM:
        raise NotVerified(f"It is signed by {signature['algorithm']}, and only {ALGORITHM} is verified here.")
    if signature["public_key"] != public_key:
        raise NotVerified(f"It is signed by another key, whose public key is {signature['public_key']}.")
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        key.verify(base64.b64decode(signature["value"], validate=True), canonical_json(value))
    except (binascii.Error, InvalidSignature) as error:
        raise NotVerified("It was changed since it was signed.") from error


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
