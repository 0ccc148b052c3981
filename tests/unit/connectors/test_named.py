"""Stores by their names: who may open which, and that what they say never has their URL."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.connectors.named import NamedStores, UnknownStore
from service.connectors.store import ExternalStore, NewSide, StoreAway, StoreRefused
from service.identity import acting_for
from service.settings import Settings
from tests.external_stores import away, make_store, open_fake, url_of

URL = "postgresql://reader:s3cr%40t@db.example/shop?table=photos&api_key=0123456789"


def stores_of(**stores: object) -> NamedStores:
    return NamedStores(Settings.model_validate({"stores": stores}).stores, open_fake)


def test_a_url_alone_is_the_default_tenants_and_others_are_those_of_the_tenants_that_are_named() -> None:
    stores = stores_of(mine=URL, theirs={"url": URL, "tenants": ["a", "b"]})

    with acting_for("default"):
        of_default = stores.names()
    with acting_for("a"):
        of_a = stores.names()
        with pytest.raises(UnknownStore), stores.opened("mine"):
            pass

    assert (of_default, of_a) == (["mine"], ["theirs"])


def test_what_a_store_says_has_neither_its_url_nor_a_secret_of_it() -> None:
    def refuse(url: str, new: NewSide | None) -> ExternalStore:
        raise StoreRefused(f"{url}: the password s3cr@t (s3cr%40t) or 0123456789 is wrong")

    stores = NamedStores(Settings.model_validate({"stores": {"shop": URL}}).stores, refuse)

    with pytest.raises(StoreRefused) as caught, stores.opened("shop"):
        pass

    assert caught.value.message == "shop: the password *** (***) or *** is wrong"


def test_a_store_that_goes_away_while_it_is_open_says_so_without_its_password(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    make_store(path, np.ones((2, 3), np.float32))
    stores = stores_of(shop=url_of(path))

    def describe_when_away() -> None:
        with stores.opened("shop") as store:
            away(path)
            store.describe()

    with pytest.raises(StoreAway, match=r"the password is \*\*\*"):
        describe_when_away()


def test_settings_show_no_url_and_take_no_name_that_an_address_cannot_have() -> None:
    shown = repr(Settings.model_validate({"stores": {"shop": URL}}))
    with pytest.raises(ValidationError, match="a store's name has letters") as caught:
        Settings.model_validate({"stores": {"a/b": URL}})

    assert "s3cr" not in shown
    assert "s3cr" not in str(caught.value)
    assert Settings.model_validate({"stores": {"shop": URL}}).environment()["GALLERY_STORES"].count("s3cr%40t") == 1
