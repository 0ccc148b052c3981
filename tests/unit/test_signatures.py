"""A signature is of one value by one key."""

import json
from typing import Any

import pytest

from service.signatures import NotVerified, Signer, verify_signature

VALUE: dict[str, Any] = {"upgrade": {"id": 3, "state": "live"}, "counts": [1, 2.5, None], "name": "é"}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.new()


def test_what_was_signed_is_verified_whatever_way_it_was_kept(signer: Signer) -> None:
    signature = signer.sign(VALUE)

    kept = json.loads(json.dumps({"record": VALUE, "signature": signature}, indent=4, sort_keys=True))

    verify_signature(kept["record"], kept["signature"], signer.public_key)


CHANGED: dict[str, dict[str, Any]] = {
    "another value": {**VALUE, "upgrade": {"id": 4, "state": "live"}},
    "a key more": {**VALUE, "more": None},
    "a key less": {"upgrade": VALUE["upgrade"]},
    "another order": {**VALUE, "counts": [2.5, 1, None]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_change_is_seen(signer: Signer, what: str) -> None:
    with pytest.raises(NotVerified, match="changed"):
        verify_signature(CHANGED[what], signer.sign(VALUE), signer.public_key)


def test_another_key_and_no_signature_are_named(signer: Signer) -> None:
    other = Signer.new()

    with pytest.raises(NotVerified, match="another key"):
        verify_signature(VALUE, other.sign(VALUE), signer.public_key)
    with pytest.raises(NotVerified, match="changed"):
        verify_signature(VALUE, {**other.sign(VALUE), "public_key": signer.public_key}, signer.public_key)
    with pytest.raises(NotVerified, match="not signed"):
        verify_signature(VALUE, None, signer.public_key)


def test_a_key_that_was_written_down_signs_as_before(signer: Signer) -> None:
    again = Signer.of(signer.to_text())

    assert again.sign(VALUE) == signer.sign(VALUE)
