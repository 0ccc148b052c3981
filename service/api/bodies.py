"""What the OpenAPI document says of bodies that an endpoint reads itself, which FastAPI cannot see: forms and files."""

from typing import Any

Schema = dict[str, Any]

FILE: Schema = {"type": "string", "format": "binary"}
# A network in one file, or in several parts of one name: ONNX and the files that hold its weights.
FILES: Schema = {"type": "array", "items": FILE, "minItems": 1}
# Of a network that is registered: whether it is every tenant's.
SHARED: Schema = {
    "type": "string",
    "enum": ["true", "false"],
    "default": "false",
    "description": "Whether all tenants use it; said by an admin of the default tenant alone.",
}
# A table of vectors, by its media types.
TABLE = dict.fromkeys(
    ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file", "application/vnd.apache.parquet"), FILE
)


def body_of(schemas: dict[str, Schema]) -> Schema:
    """Return the `openapi_extra` of a body that is needed, from its schema by media type."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": schemas[kind]} for kind in schemas}}}


def form_of(properties: dict[str, Schema], required: list[str]) -> dict[str, Schema]:
    """Return the schema of a multipart form, by its media type."""
    return {"multipart/form-data": {"type": "object", "required": required, "properties": properties}}
