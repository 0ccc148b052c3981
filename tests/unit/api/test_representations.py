"""Which form of a report an Accept header prefers."""

import pytest

from service.api.representations import Representation, preferred


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "TEXT/HTML",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "text/*, application/json;q=0.9",
        "application/json;q=0.5, text/html;q=0.501",
        "*/*, application/json;q=0",
        "*/*;q=0.1, text/html ; q=0.2",
        "text/html;level=1, application/json;q=0.7",
    ],
)
def test_a_page_goes_to_who_prefers_it(accept: str) -> None:
    assert preferred(accept) is Representation.HTML


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/json",
        "application/json, text/html",
        "text/html;q=0.5, application/json",
        "text/*, text/html;q=0, application/json;q=0.1",
        "*/*;q=0.9, text/html;q=0.1",
        "image/png",
        "text/html;q=nan, application/json;q=0.1",
        "text/html;q=2, */*;q=0.1",
        ",;,=",
    ],
)
def test_everyone_else_gets_json(accept: str) -> None:
    assert preferred(accept) is Representation.JSON
