"""Which image queries are answered by the candidate of an upgrade, while it is ready and has a canary."""

import hashlib
import random

from service.domain.gallery.galleries import Trial


def takes(canary: Trial, key: str | None) -> bool:
    """Return whether a query is one of the canary's share: at random without a key; else the same for the same key and
    upgrade, and whoever is in it stays in it when the share grows."""
    if key is None:
        return random.random() < canary.share  # noqa: S311 - no secret
    digest = hashlib.sha256(f"{canary.upgrade_id}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < canary.share * 2**64
