"""What the OpenAPI document says of bodies that FastAPI cannot see."""

from typing import Any

from service.api.bodies import FILE, body_of, form_of
from service.app import create_app
from service.settings import Settings


def test_a_body_may_be_of_several_types_and_is_needed() -> None:
    text = {"type": "string"}

    described = body_of({"image/png": FILE, **form_of({"file": FILE, "k": text}, required=["file"])})

    form = {"type": "object", "required": ["file"], "properties": {"file": FILE, "k": text}}
    content = {"image/png": {"schema": FILE}, "multipart/form-data": {"schema": form}}
    assert described == {"requestBody": {"required": True, "content": content}}


def test_every_endpoint_that_reads_a_form_says_which_parts_are_needed() -> None:
    operations = [
        operation for path in create_app(Settings()).openapi()["paths"].values() for operation in path.values()
    ]

    forms = [form for operation in operations if (form := _form_of(operation)) is not None]
    assert forms
    for form in forms:
        assert form["required"]
        assert set(form["required"]) <= set(form["properties"])


def _form_of(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    form: dict[str, Any] | None = content.get("multipart/form-data", {}).get("schema")
    return form
