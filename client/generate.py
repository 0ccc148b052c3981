"""Writes the operations, answers and errors of the client from what the service says of itself: `make client`.

An operation of docs/openapi.json becomes a builder of its request (`api/requests.py`), with every parameter and every
field of its body as a keyword, and a method of the two clients (`api/operations.py`); a schema that answers have
becomes a model (`api/models.py`); an error of the service a class (`problems.py`). What is written is committed, so
that it can be read and checked like any code, and a test says when it is not current.
"""

import importlib
import json
import keyword
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from textwrap import fill, indent
from typing import Any

Schema = dict[str, Any]

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_METHODS = ("get", "post", "put", "patch", "delete")
_PLAIN = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "None"}
_WROTE = "Written by `make client` from {source}."

# Operations whose functions in the service have the same name.
NAMES = {
    "GET /v1/backfills/{backfill_id}/events": "stream_backfill_events",
    "GET /v1/jobs/{job_id}/events": "stream_job_events",
    "GET /v1/upgrades/{upgrade_id}/events": "stream_upgrade_events",
    "PATCH /v1/backfills/{backfill_id}": "set_backfill_speed",
    "PATCH /v1/jobs/{job_id}": "set_job_speed",
    "POST /v1/backfills/{backfill_id}/images": "post_backfill_images",
    "POST /v1/galleries/{name}/images": "post_images",
    "POST /v1/galleries/{name}/images/references": "post_image_references",
    "POST /v1/upgrades/{upgrade_id}/references": "post_references",
}


def operation_name(method: str, path: str, operation: Schema) -> str:
    """Return the name of the method for an operation: its function's in the service, unless `NAMES` has another."""
    place = f"{method.upper()} {path}"
    suffix = re.sub(r"\W", "_", path) + "_" + method
    return NAMES.get(place, str(operation["operationId"]).removesuffix(suffix))


def operations(document: Schema) -> list[tuple[str, str, str, Schema]]:
    """Return (name, method, path, operation), in the order of names. Raises SystemExit where two have one name."""
    found = [
        (operation_name(method, path, operation), method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    ]
    names = [name for name, *_ in found]
    for name, method, path, _ in found:
        if names.count(name) > 1:
            raise SystemExit(f"More than one operation is called {name}: name {method.upper()} {path} in NAMES.")
    return sorted(found, key=lambda entry: entry[0])


class Writer:
    """Turns parts of one OpenAPI document into Python."""

    def __init__(self, document: Schema) -> None:
        self.schemas: dict[str, Schema] = document["components"]["schemas"]
        self.operations = operations(document)
        self.answered: set[str] = set()

    def resolved(self, schema: Schema) -> Schema:
        return self.schemas[_named(schema)] if "$ref" in schema else schema

    def argument(self, schema: Schema) -> str:
        """Return the type of a keyword. Objects are mappings: the service says what is wrong with one."""
        schema = self.resolved(schema)
        if "anyOf" in schema:
            return " | ".join(dict.fromkeys(self.argument(one) for one in schema["anyOf"]))
        if "enum" in schema or "const" in schema:
            return f"Literal[{', '.join(repr(value) for value in schema.get('enum', [schema.get('const')]))}]"
        if schema.get("contentMediaType") == "application/json" or schema.get("description", "").startswith("JSON"):
            return "Json"
        if schema.get("type") == "array":
            return f"Sequence[{self.argument(schema['items'])}]"
        return _PLAIN.get(schema.get("type", ""), "Mapping[str, Any]")

    def field(self, schema: Schema) -> str:
        """Return the type of an answer's field. What is one of a few words today may be another tomorrow: a string."""
        if "$ref" in schema:
            target = self.resolved(schema)
            return self.model(_named(schema)) if target.get("type") == "object" else self.field(target)
        if "anyOf" in schema:
            return " | ".join(dict.fromkeys(self.field(one) for one in schema["anyOf"]))
        if schema.get("type") == "array":
            return f"list[{self.field(schema['items'])}]"
        if schema.get("type") == "object":
            values = schema.get("additionalProperties")
            return f"dict[str, {self.field(values) if isinstance(values, dict) else 'Any'}]"
        if schema.get("format") == "date-time":
            return "datetime"
        return _PLAIN.get(schema.get("type", ""), "Any")

    def model(self, name: str) -> str:
        """Return the name of the model for a schema, and remember that answers have it."""
        if name not in self.answered:
            self.answered.add(name)
            for schema in self.schemas[name].get("properties", {}).values():
                self.field(schema)
        return re.sub(r"Page_(.*?)(View)?_", r"\1Page", name)

    def models(self) -> str:
        """Return `api/models.py`."""
        parts = [
            f'"""The answers of the API. {_WROTE.format(source="docs/openapi.json")}"""',
            "from __future__ import annotations",
            "from datetime import datetime\nfrom typing import Any",
            "from gallery_upgrade.api.answer import Answer, Page",
        ]
        for name in sorted(self.answered, key=lambda name: (name.startswith("Page_"), name)):  # pages have bases
            schema = self.schemas[name]
            required = schema.get("required", [])
            lines = []
            for field, of in schema.get("properties", {}).items():
                kind, default = self.field(of), ""
                if field not in required and "default" not in of:
                    kind, default = kind if "None" in kind else f"{kind} | None", " = None"
                elif field not in required and not isinstance(of["default"], dict | list):
                    default = f" = {of['default']!r}"
                elif field not in required:
                    kind, default = f"{kind} | None", " = None"
                lines.append(f"{field}: {kind}{default}")
            base = "Answer"
            if name.startswith("Page_"):
                base = f"Page[{self.field(schema['properties']['items']['items'])}]"
                lines = []
            text = _docstring(schema.get("description", ""))
            body = "\n".join(filter(None, [text, *lines])) or '"""A page."""'
            parts.append(f"\nclass {self.model(name)}({base}):\n{indent(body, '    ')}\n")
        return "\n\n".join(parts)

    def requests(self) -> str:
        """Return `api/requests.py`."""
        head = [
            f'"""The requests of the API, one function each. {_WROTE.format(source="docs/openapi.json")}"""',
            "from __future__ import annotations",
            "from collections.abc import Mapping, Sequence\nfrom typing import TYPE_CHECKING, Any, Literal",
            "from gallery_upgrade.core.calls import "
            "UNSET, Call, Json, StreamCall, Unset, Upload, Uploads, given, quoted",
            "if TYPE_CHECKING:\n    from gallery_upgrade.api import models\n"
            "    from gallery_upgrade.core.events import Event",
        ]
        return "\n\n".join(head + [self._request(*operation) for operation in self.operations])

    def _request(self, name: str, method: str, path: str, operation: Schema) -> str:
        parameters = operation.get("parameters", [])
        needed: dict[str, str] = {}
        optional: dict[str, str] = {}
        places: dict[str, dict[str, str]] = {"query": {}, "header": {}, "path": {}}
        for parameter in parameters:
            word = _word(parameter["name"])
            kind = self.argument(parameter["schema"])
            places[parameter["in"]][parameter["name"]] = word
            (needed if parameter.get("required") else optional)[word] = kind

        body = self._body(operation.get("requestBody", {}), needed, optional, list(places["path"].values()))
        stream, answer, answers = self._answer(operation)
        arguments = [f"{word}: {kind}" for word, kind in needed.items()]
        arguments += [f"{word}: {kind} | Unset = UNSET" for word, kind in optional.items() if word not in needed]
        filled = re.sub(r"\{(\w+)\}", lambda found: "{quoted(" + _word(found[1]) + ")}", path)
        call = [
            f'method="{method.upper()}"',
            f'path={"f" if "{" in path else ""}"{filled}"',
            f"answers={answers}",
            *(f"{argument}={_dict(places[place])}" for place, argument in _PLACED if places[place]),
            *body,
        ]
        summary = operation["summary"]
        if "str" in answer.split(" | "):
            call.append("text=True")
        text = _docstring(operation.get("description") or f"{summary}.")
        signature = f"def {name}({'*, ' if arguments else ''}{', '.join(arguments)})"
        kind = "StreamCall" if stream else "Call"
        return f"\n{signature} -> {kind}[{answer}]:\n{indent(text, '    ')}\n    return {kind}({', '.join(call)})\n"

    def _body(self, body: Schema, needed: dict[str, str], optional: dict[str, str], in_path: list[str]) -> list[str]:
        """Add the keywords of a request's body; return the arguments of the call that write it."""
        forms = {kind: media["schema"] for kind, media in body.get("content", {}).items()}
        alone = len(forms) == 1 and body.get("required", True)
        call = []
        if "application/json" in forms:
            schema = forms["application/json"]
            choices = [self.resolved(one) for one in schema.get("anyOf", [schema])]
            whole = next(one for one in choices if one.get("type") != "null")
            if whole.get("type") == "array":
                (needed if alone else optional)["body"] = "Sequence[Mapping[str, Any]]"
                call.append("body=body")
            else:
                names = {}
                for field, schema_of in whole.get("properties", {}).items():
                    word = _word(field) if _word(field) not in in_path else f"new_{_word(field)}"
                    names[field] = word
                    must = field in whole.get("required", []) and (alone or "multipart/form-data" in forms)
                    (needed if must else optional)[word] = self.argument(schema_of)
                call.append(f"body=given({_dict(names)})")
        if "multipart/form-data" in forms:
            schema = forms["multipart/form-data"]
            texts, files = {}, {}
            for field, schema_of in schema["properties"].items():
                word = _word(field) if _word(field) not in in_path else f"new_{_word(field)}"
                must = field in schema.get("required", []) and alone
                kind = self.argument(schema_of)
                if schema_of.get("format") == "binary":
                    files[field], kind = word, "Upload"
                elif schema_of.get("items", {}).get("format") == "binary":
                    files[field], kind = word, "Uploads"
                else:
                    texts[field] = word
                if word not in needed:
                    (needed if must else optional)[word] = kind
            call += [f"form={_dict(texts)}", f"files={_dict(files)}"]
        raw = [kind for kind in forms if kind not in ("application/json", "multipart/form-data")]
        if raw:
            (needed if len(forms) == len(raw) else optional)["content"] = "Upload"
            kinds = ", ".join(repr(kind) for kind in raw)
            (needed if len(raw) > 1 and len(forms) == len(raw) else optional)["content_type"] = f"Literal[{kinds}]"
            default = "" if "content_type" in needed else f" if content_type is not UNSET else {raw[0]!r}"
            call += ["content=content", f"content_type=content_type{default}"]
        return call

    def _answer(self, operation: Schema) -> tuple[bool, str, str]:
        """Return whether the answer is streamed, the type of it, and the models of each status."""
        kinds: list[str] = []
        answers: dict[int, str | None] = {}
        stream = False
        good = {int(code): of for code, of in operation["responses"].items() if code[0] in "23"}
        for code, of in sorted(good.items()):
            answers[code] = None
            content = of.get("content", {})
            for media, schema in ((media, entry.get("schema", {})) for media, entry in content.items()):
                if media == "application/json":
                    refs = [_named(one) for one in schema.get("anyOf", [schema]) if "$ref" in one]
                    alone = [ref for ref in refs if len(refs) == 1 or f"models.{ref}" not in kinds]
                    if alone:
                        answers[code] = self.model(alone[0])
                    kinds.append(f"models.{self.model(alone[0])}" if alone else "Any")
                elif media.startswith("text/event-stream"):
                    stream = True
                    kinds.append("Event")
                elif media.startswith("text/"):
                    kinds.append("str")
                elif "application/json" not in content:  # else a table is given to who asks for one
                    stream = stream or not media.startswith("image/")
                    kinds.append("bytes")
        return stream, " | ".join(dict.fromkeys(kinds)) or "None", repr(answers)

    def methods(self) -> str:
        """Return `api/operations.py`."""
        ways = {"Call": "answers", "bytes": "streams", "Event": "tells"}
        lines: dict[str, list[str]] = {"": [], "_async": []}
        for name, _, _, operation in self.operations:
            stream, answer, _ = self._answer(operation)
            way = ways[answer if stream else "Call"]
            for suffix, written in lines.items():
                written.append(f"    {name} = {way}{suffix}(requests.{name})")
        imports = "answers, answers_async, streams, streams_async, tells, tells_async"
        return (
            f'"""The operations of the API as methods. {_WROTE.format(source="docs/openapi.json")}"""\n\n'
            "from gallery_upgrade.api import requests\n"
            f"from gallery_upgrade.api.operation import Operations, {imports}\n\n\n"
            "class SyncOperations(Operations):\n"
            '    """Each operation of the API once; every parameter is a keyword."""\n\n'
            + "\n".join(lines[""])
            + '\n\n\nclass AsyncOperations(Operations):\n    """The same, to be awaited."""\n\n'
            + "\n".join(lines["_async"])
        )


_PLACED = (("query", "query"), ("header", "headers"))


def _named(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _word(name: str) -> str:
    word = re.sub(r"\W", "_", name).lower()
    return f"{word}_" if keyword.iskeyword(word) else word


def _dict(names: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {word}' for name, word in names.items()) + "}"


def _docstring(text: str) -> str:
    if not text:
        return ""
    paragraphs = [fill(" ".join(part.split()), 112, break_on_hyphens=False) for part in text.strip().split("\n\n")]
    whole = "\n\n".join(paragraphs)
    return f'"""{whole}"""' if len(whole) < 110 and "\n" not in whole else f'"""{whole}\n"""'


def problems() -> str:
    """Return `problems.py`: a class for each error of the service, below the one of its status."""
    sys.path.insert(0, str(_ROOT))
    service = importlib.import_module("service")
    for module in pkgutil.walk_packages(service.__path__, "service."):  # whatever was imported before, find all
        if not module.name.endswith("__main__"):
            _import(module.name)
    base = importlib.import_module("service.errors").GalleryError
    kind_of = importlib.import_module("service.api.problems").kind_of
    sys.path.insert(0, str(_HERE))
    status_class = importlib.import_module("gallery_upgrade.errors").status_class

    found: dict[str, tuple[str, str, str]] = {}
    left = list(base.__subclasses__())
    while left:
        error = left.pop()
        left += error.__subclasses__()
        of_status = status_class(error.status_code).__name__
        is_ours = error.__module__.startswith("service.") and not error.__name__.startswith("_")
        if error.__name__ != of_status and is_ours:
            text = error.__doc__ if error.__dict__.get("__doc__") else ""
            known = kind_of(error), of_status, _docstring((text or "").split("\n\n")[0])
            if found.setdefault(error.__name__, known) != known:
                raise SystemExit(f"{error.__module__}.{error.__name__} is a second kind of problem of that name.")
    imports = ", ".join(sorted({of_status for _, of_status, _ in found.values()} | {"Problem"}))
    parts = [
        f'"""One class for each kind of problem. {_WROTE.format(source="the errors of the service")}"""',
        f"from gallery_upgrade.errors import {imports}",
    ]
    for name, (_, of_status, text) in sorted(found.items()):
        label = text or '"""See its base."""'
        parts.append(f"\nclass {name}({of_status}):\n{indent(label, '    ')}\n")
    entries = ", ".join(f'"{urn}": {name}' for name, (urn, _, _) in sorted(found.items()))
    parts.append(f"\nBY_TYPE: dict[str, type[Problem]] = {{{entries}}}")
    return "\n\n".join(parts)


def _import(name: str) -> None:
    """Import a module of the service; one whose library is not installed is left out: it has no error of its own."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "service").startswith("service"):
            raise


def write(folder: Path) -> None:
    """Write the four files below a folder, as `ruff format` leaves them."""
    writer = Writer(json.loads((_ROOT / "docs/openapi.json").read_text()))
    files = {"api/requests.py": writer.requests(), "api/operations.py": writer.methods()}
    files |= {"api/models.py": writer.models(), "problems.py": problems()}  # requests say which models answers have
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    names = [str(folder / name) for name in files]
    config = ["--config", str(_ROOT / "pyproject.toml")]
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "--fix-only", *config, *names], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", *config, *names], check=True)


if __name__ == "__main__":
    write(_HERE / "gallery_upgrade")
