"""Every way of writing a file's name gives the same one."""

import pytest

from service.api.file_names import plain_disposition, readable_name
from service.domain.gallery.new_items import canonical_id


@pytest.mark.parametrize(
    "name",
    [
        "Äpfel.png",
        "A\u0308pfel.png",
        "=?UTF-8?Q?=C3=84pfel.png?=",
        "=?utf-8?B?w4RwZmVsLnBuZw==?=",
        "=?ISO-8859-1?Q?=C4pfel?= =?ISO-8859-1?Q?.png?=",
        "%C3%84pfel.png",
        "%c3%84pfel%2Epng",
        "A%CC%88pfel.png",
    ],
)
def test_each_form_of_a_name_is_one_id(name: str) -> None:
    assert canonical_id(readable_name(name)) == "Äpfel.png"


@pytest.mark.parametrize(
    "name", ["100%25.png", "a%20b.png", "50%.png", "%FF.png", "=?x?Q?=FF?=", "=?a", "plain.png", ""]
)
def test_what_may_be_a_real_name_stays(name: str) -> None:
    assert readable_name(name) == name


@pytest.mark.parametrize(
    ("disposition", "plain"),
    [
        ("form-data; name=\"files\"; filename*=UTF-8''%C3%84.png", 'form-data; name="files"; filename="Ä.png"'),
        ("form-data; name=f; filename=\"A.png\"; filename*=utf-8'de'%C3%84.png", 'form-data; name=f; filename="Ä.png"'),
        ("form-data; filename*=iso-8859-1''%C4%22.png; name=f", 'form-data; name=f; filename="Ä\\".png"'),
        ('form-data; name="f"; filename="; filename*=UTF-8\'\'x"', None),
        ('form-data; name="f"', None),
    ],
)
def test_an_extended_name_becomes_the_plain_one(disposition: str, plain: str | None) -> None:
    assert plain_disposition(disposition.encode()).decode() == (plain or disposition)
