"""How calls are written as requests."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gallery_upgrade.api import requests
from gallery_upgrade.core.answers import read_answer
from gallery_upgrade.core.calls import Call, File, written
from gallery_upgrade.errors import NotTheService


def sent(call: Call[Any]) -> httpx.Request:
    with ExitStack() as opened, httpx.Client(base_url="http://service") as client:
        request = client.build_request(**written(call, opened))
        request.read()
    return request


def test_what_was_not_given_is_not_sent_and_none_is_null() -> None:
    given = sent(requests.change_item(name="g", item_id="a/b c", label=None))

    assert given.url.raw_path == b"/v1/galleries/g/items/a%2Fb%20c"
    assert json.loads(given.content) == {"label": None}
    assert sent(requests.list_items(name="g", cursor=None)).url.query == b""
    assert sent(requests.list_items(name="g", ids=["a", "b"], limit=3)).url.query == b"limit=3&ids=a&ids=b"


def test_a_post_has_one_key_however_often_it_is_sent(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"pixels")
    call = requests.post_images(name="g", files=[image, File("b.png", b"more")], items=[{"id": "x"}, {"id": "y"}])

    first, second = sent(call), sent(call)

    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    for request in (first, second):
        assert b'filename="a.png"' in request.content
        assert b"pixels" in request.content
        assert b'[{"id": "x"}, {"id": "y"}]' in request.content
    assert sent(requests.evaluate(upgrade_id=1)).headers["Idempotency-Key"] != first.headers["Idempotency-Key"]
    assert "Idempotency-Key" not in sent(requests.get_gallery(name="g")).headers


def test_what_a_form_has_is_not_in_the_address_too() -> None:
    form = sent(requests.search_by_image(name="g", file=b"pixels", k=5, filter={"label": "cat"}, generation="next"))
    raw = sent(requests.search_by_image(name="g", content=b"pixels", k=5))

    assert form.url.query == b"generation=next"
    assert b'name="k"\r\n\r\n5\r\n' in form.content
    assert b'{"label": "cat"}' in form.content
    assert (raw.url.query, raw.content) == (b"k=5", b"pixels")


def test_a_training_is_a_form_with_pairs_and_json_without() -> None:
    alone = sent(requests.train_transformation(from_version="a", to_version="b", dataset="d", with_g=True))
    with_pairs = sent(requests.train_transformation(from_version="a", to_version="b", pairs=b"PAR1", with_g=True))

    assert json.loads(alone.content) == {"from_version": "a", "to_version": "b", "dataset": "d", "with_g": True}
    assert b'name="with_g"\r\n\r\ntrue\r\n' in with_pairs.content
    assert b"PAR1" in with_pairs.content


def test_a_form_of_which_no_file_was_given_is_a_form() -> None:
    request = sent(requests.register_model_version(name="v1", spec={"embedding_dim": 6}))

    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="spec"\r\n\r\n{"embedding_dim": 6}\r\n' in request.content
    assert b"filename" not in request.content


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"{}"), (201, b"<html>"), (201, b'{"name": "g"}')], ids=["status", "page", "other"]
)
def test_an_answer_of_something_else_is_told_as_such(status: int, body: bytes) -> None:
    call = requests.create_gallery(name="g", model_version="v1")

    with pytest.raises(NotTheService, match="POST /v1/galleries was answered"):
        read_answer(call, status, {"content-type": "application/json"}, body)


def test_what_a_newer_service_says_besides_is_kept() -> None:
    call = requests.evaluate(upgrade_id=1)

    answer = read_answer(call, 202, {"content-type": "application/json"}, b'{"report": 3, "since": "today"}')

    assert answer.report == 3
    assert answer.model_dump() == {"report": 3, "since": "today"}
