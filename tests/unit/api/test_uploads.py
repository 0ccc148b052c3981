"""Forms with files: which parts there are, and every way in which one can be wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.api.problems import install_problem_handlers
from service.api.uploads import (
    UploadForm,
    name_part,
    network_part,
    optional_network_part,
    refuse_other_parts,
    text_part,
)
from service.settings import Settings
from tests.problems import check_problem

FORM = {"content-type": "multipart/form-data; boundary=x"}


@dataclass(frozen=True)
class OnlySettings:
    """What a form's reader needs of the process's parts."""

    settings: Settings


def read(form: UploadForm) -> dict[str, Any]:
    refuse_other_parts(form, {"name", "spec", "needed", "possible", "many"})
    possible = optional_network_part(form, "possible")
    return {
        "name": name_part(form, "name"),
        "spec": text_part(form, "spec"),
        "needed": network_part(form, "needed").decode(),
        "possible": None if possible is None else possible.decode(),
    }


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    install_problem_handlers(app)
    app.post("/")(read)
    app.state.parts = OnlySettings(Settings(max_files_per_request=4, max_json_bytes=1_000))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


GOOD = {"name": (None, "v1"), "spec": (None, "{}"), "needed": ("φ.onnx", b"network")}


def post(client: TestClient, parts: list[tuple[str, Any]]) -> Any:
    return client.post("/", files=parts)


def test_parts_are_read_by_their_names(client: TestClient) -> None:
    without = post(client, list(GOOD.items()))
    with_both = post(client, [*GOOD.items(), ("possible", ("ψ", b"more"))])

    assert without.json() == {"name": "v1", "spec": "{}", "needed": "network", "possible": None}
    assert with_both.json()["possible"] == "more"


def test_text_may_come_as_a_file_and_the_media_type_in_capitals(client: TestClient) -> None:
    parts = GOOD | {"spec": ("spec.json", b'{"a": 1}', "application/json")}
    request = client.build_request("POST", "/", files=parts)
    body, kind = request.read(), request.headers["content-type"]

    answer = client.post(
        "/", content=body, headers={"content-type": kind.replace("multipart/form-data", "Multipart/Form-Data")}
    )

    assert answer.json() == {"name": "v1", "spec": '{"a": 1}', "needed": "network", "possible": None}


WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, Any]], str]] = {
    "no text": ({"spec": None}, [], "one text part named 'spec'"),
    "text twice": ({}, [("spec", (None, "{}"))], "one text part named 'spec'"),
    "file of bytes for text": ({"spec": ("spec.json", b"\xff")}, [], "'spec' is to be text"),
    "no name": ({"name": (None, "")}, [], "'name' is not a name"),
    "name with a slash": ({"name": (None, "a/b")}, [], "'name' is not a name"),
    "no file": ({"needed": None}, [], "one file named 'needed'"),
    "file twice": ({}, [("needed", ("φ.onnx", b"x"))], "names of their own"),
    "two files without a network": ({"needed": ("a", b"x")}, [("needed", ("b", b"x"))], "one is an ONNX network"),
    "text for file": ({"needed": (None, "x")}, [], "one file named 'needed'"),
    "possible file twice": ({}, [("possible", ("x", b"x"))] * 2, "names of their own"),
    "text for possible file": ({}, [("possible", (None, "x"))], "one file named 'possible'"),
    "misspelt": ({}, [("Spec", (None, "x")), ("a", (None, "x"))], "not known: Spec, a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_part_that_is_missing_or_wrong_is_422_and_named(client: TestClient, name: str) -> None:
    changes, more, sentence = WRONG[name]
    parts = [part for part in (GOOD | changes).items() if part[1] is not None]

    answer = post(client, [*parts, *more])

    check_problem(answer, 422, sentence)


def test_more_files_than_a_request_may_carry_are_413(client: TestClient) -> None:
    files = [("many", (str(number), b"x")) for number in range(4)]

    check_problem(post(client, [*GOOD.items(), *files]), 413, "at most 4 files")
    assert post(client, [*GOOD.items(), *files[1:]]).status_code == 200


@pytest.mark.parametrize(
    "texts", [{"spec": (None, "x" * 1_001)}, {"spec": ("spec", b"x" * 1_001)}, {"spec": (None, "x" * 999)}]
)
def test_text_beyond_the_limit_of_json_is_413_however_it_comes(client: TestClient, texts: dict[str, Any]) -> None:
    check_problem(post(client, list((GOOD | texts).items())), 413, "1000 bytes")


@pytest.mark.parametrize(
    ("headers", "body", "sentence"),
    [
        ({"content-type": "application/json"}, b"{}", "multipart/form-data"),
        ({}, b"", "multipart/form-data"),
        ({"content-type": "multipart/form-data"}, b"--x--", "cannot be read"),
        (FORM, b"no boundary here", "cannot be read"),
        (FORM, b'--x\r\ncontent-disposition: form-data; name="a"\r\nbad\r\n', "cannot be read"),
    ],
)
def test_what_is_not_a_readable_form_is_400(
    client: TestClient, headers: dict[str, str], body: bytes, sentence: str
) -> None:
    answer = client.post("/", headers=headers, content=body)

    check_problem(answer, 400, sentence)


@pytest.mark.parametrize("charset", ["unicode_escape", "undefined", "idna", "punycode", "hex", "utf-7", "none", "a b"])
def test_a_form_in_a_charset_that_is_no_usual_one_is_400(client: TestClient, charset: str) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="name"\r\n\r\n\\ud800\xff..\r\n--x--\r\n'

    answer = client.post("/", headers={"content-type": f'{FORM["content-type"]}; charset="{charset}"'}, content=body)

    check_problem(answer, 400, "its charset is to be one of utf-8, ascii, iso8859-1")


def test_a_form_in_latin_1_is_read(client: TestClient) -> None:
    request = client.build_request("POST", "/", files=GOOD | {"spec": (None, "é".encode("latin-1"))})
    kind = f"{request.headers['content-type']}; charset=ISO-8859-1"

    assert client.post("/", content=request.read(), headers={"content-type": kind}).json()["spec"] == "é"
