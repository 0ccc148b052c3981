"""Asking the API everything that its own description allows, and what it does not (schemathesis), of the real
application on a real database: no answer may be a 5xx, or another one than the description has. With keys, it is asked
by those of one tenant, one of each scope: no answer may have anything of another one's.

`make fuzz` runs both at length.
"""

import io
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import schemathesis
import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import strategies as st
from schemathesis.engine import Status, events, from_schema
from schemathesis.python import asgi

from migrations import upgrade_database
from service.access.operations import Scope
from service.app import create_app
from service.db import create_database_engine
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from tests.access_matrix import SCOPES_OF_TENANTS
from tests.bad_files import BAD_FILES
from tests.keys import bearer, guarded, make_key
from tests.networks import encoder_bytes, image_bytes, transformation_bytes
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade
from tests.tenants import LABEL, meaning_of, settings_of_tenants, two_tenants
from workers.app import WorkerParts, make_worker_parts

_ARROW = "application/vnd.apache.arrow.stream"
_ARROW_FILE = "application/vnd.apache.arrow.file"
_PARQUET = "application/vnd.apache.parquet"


# Checks of which methods an address takes, and addresses that another path of the description has too: "delete" may be
# an item's id, what ends in /thumbnail is refused as one, and "train" as the id of a transformation.
_OF_METHODS = ("unsupported_method", "allow_header_conformance")
_OF_TEXTS = "parameter `ids` in query"  # whatever stands there is a list of one text
_OF_TWO_KINDS = (
    "/v1/galleries/{name}/items/{item_id}/thumbnail",
    "/v1/galleries/{name}/items/delete",
    "/v1/transformations/train",
)


@dataclass
class Fuzzed:
    """How many requests were made, how many of them for what is another tenant's by its id, and what was wrong of the
    answers: each failure once for its operation, with a request that shows it."""

    requests: int = 0
    of_another: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(self.answers.items()))
        others = f", {self.of_another} of them for what is another tenant's" if self.of_another else ""
        return f"{self.requests} requests{others}: {answers}; {len(self.failures)} kinds of failures"


@dataclass(frozen=True)
class Asker:
    """Who asks: the headers of a key; by parameters of addresses, what is its tenant's and what is another's, of which
    half of the addresses that are as described name one; and words that only the other may read."""

    headers: dict[str, str]
    named: Mapping[str, Sequence[str]]
    others: Mapping[str, str]
    words: Sequence[bytes]

    def watch(self, schema: schemathesis.BaseSchema, draw: random.Random, found: Fuzzed) -> None:
        """Have the requests name what there is, and the answers looked through."""

        @schema.hook
        def map_case(_context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
            if case.meta is not None and case.meta.generation.mode.is_positive and draw.random() < 0.5:
                for name in case.path_parameters:
                    case.path_parameters[name] = draw.choice(self.named[meaning_of(case.path, name)])
            return case

        @schema.hook
        def after_call(
            _context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
        ) -> None:
            meant = {meaning_of(case.path, name): str(value) for name, value in case.path_parameters.items()}
            is_anothers = any(self.others.get(name) == value for name, value in meant.items())
            found.of_another += is_anothers
            if (is_anothers and response.status_code < 400) or any(word in response.content for word in self.words):
                found.failures.setdefault(
                    f"{case.method} {case.path}: of another tenant",
                    f"{response.status_code} {response.content[:2_000]!r}",
                )


def fuzz(app: FastAPI, seed: int, phases: dict[str, Any], examples: int, asker: Asker | None = None) -> Fuzzed:
    """Ask an application in which `fill` was done; schemathesis starts it, and ends it when the process ends."""
    config = schemathesis.Config.from_dict(
        {
            "headers": {} if asker is None else asker.headers,
            "seed": seed,
            "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True, "database": "none"},
            "phases": phases,
            "checks": {
                # In its place stands `what_is_described_is_not_called_malformed`.
                "positive_data_acceptance": {"enabled": False},
                # Which methods a path has is told to whoever is an admin, or needs no key: to others it is 404.
                "unsupported_method": {"enabled": asker is None},
            },
        }
    )
    found = Fuzzed()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    if asker is not None:
        asker.watch(schema, random.Random(seed), found)
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found.failures[f"schemathesis: {event.label if isinstance(event, events.NonFatalError) else ''}"] = str(
                event
            )
        if isinstance(event, events.ScenarioFinished):
            _note(event, found)
    return found


def _note(event: events.ScenarioFinished, found: Fuzzed) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        found.requests += 1
        if interaction.response is not None:
            status = interaction.response.status_code
            found.answers[status] = found.answers.get(status, 0) + 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.status is Status.FAILURE and check.failure_info is not None:
                failure = check.failure_info
                if check.name in _OF_METHODS and str(failure.failure.operation).endswith(_OF_TWO_KINDS):
                    continue
                if check.name == "negative_data_rejection" and _OF_TEXTS in str(failure.failure):
                    continue
                found.failures.setdefault(
                    f"{failure.failure.operation}: {check.name}", f"{failure.failure}\n{failure.code_sample[:2_000]}"
                )


@schemathesis.check
def what_is_described_is_not_called_malformed(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """A request that is as the description says may be refused for a reason with a name, not as malformed; but for
    fields that do not fit each other, of which a description says nothing."""
    if case.meta is not None and case.meta.generation.mode.is_positive and response.status_code == 422:
        problem = response.json()
        is_of_fields_together = "Value error" in problem["detail"]
        assert problem["type"] != "about:blank" or is_of_fields_together, f"called malformed: {problem['detail']}"


@st.composite
def _tables(draw: st.DrawFn) -> pa.Table:
    """Tables of vectors, of references and of queries, mostly as they are to be."""
    ids = draw(st.lists(st.text(max_size=8), max_size=4))
    dim = draw(st.sampled_from([6, 6, 6, 0, 5, 8]))
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.string()),
        "embedding": pa.array(np.ones((len(ids), dim), np.float32).tolist(), pa.list_(pa.float32())),
        "side_information": pa.array(np.ones((len(ids), 5), np.float32).tolist(), pa.list_(pa.float32())),
        "label": pa.array([draw(st.none() | st.text(max_size=3)) for _ in ids], pa.string()),
        "metadata": pa.array([draw(st.sampled_from(["{}", '{"a": 1}', "[]", "{"])) for _ in ids], pa.string()),
        "image_uri": pa.array([draw(st.sampled_from(["file:///a.png", "http://x/y", ""])) for _ in ids], pa.string()),
    }
    wanted = draw(st.sets(st.sampled_from(sorted(columns)), min_size=1))
    return pa.table({name: columns[name] for name in columns if name in wanted | {"id"}})


def _written(write: Callable[[pa.Table, io.BytesIO], None]) -> st.SearchStrategy[bytes]:
    def serialize(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        write(table, sink)
        return sink.getvalue()

    return st.one_of(_tables().map(serialize), st.binary(max_size=64))


def _as_stream(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _as_file(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


_IMAGES = [*(image_bytes(seed) for seed in range(3)), *BAD_FILES.values()]
_NETWORKS = [encoder_bytes(6, seed=1), transformation_bytes(6, 5, 8, seed=7)]
schemathesis.openapi.media_type(_ARROW, _written(_as_stream))
schemathesis.openapi.media_type(_ARROW_FILE, _written(_as_file))
schemathesis.openapi.media_type(_PARQUET, _written(pq.write_table))
schemathesis.openapi.media_type("image/*", st.sampled_from(_IMAGES))
schemathesis.openapi.format("binary", st.sampled_from([*_IMAGES, *_NETWORKS]))


def fill(app: FastAPI) -> None:
    """Register two versions and a transformation, and make a gallery with a few images."""
    with TestClient(app) as client:
        create_upgradable_gallery(client)
        post_images(client, range(4))


def fuzz_with_keys(
    worker: WorkerParts, folder: Path, seed: int, phases: dict[str, Any], examples: int, scopes: Sequence[Scope]
) -> dict[Scope, Fuzzed]:
    """Ask as keys of each scope of tenant `b`, which has a gallery of the same name as tenant `a`; the worker's
    settings are those that `settings_of_tenants` gave."""
    found: dict[Scope, Fuzzed] = {}
    with two_tenants(worker, folder) as tenants:
        client = tenants.client
        client.headers.update(tenants.b)
        create_upgradable_gallery(client)
        post_images(client, range(4))
        own = {"upgrade_id": start_upgrade(client, "v2"), "version": "v1"}
        del client.headers["authorization"]
        before = tenants.seen_by(tenants.a)
        others = {name: value for name, value in tenants.ids.items() if name.endswith("_id") and name != "item_id"}
        named = {name: [value, str(own.get(name, value))] for name, value in tenants.ids.items()}
        words = [LABEL.encode(), str(folder).encode()]  # its query's label, and where its images are
        app = create_app(guarded(worker.settings))
        for scope in scopes:
            headers = bearer(make_key(client, scope, tenant="b")["key"])
            found[scope] = fuzz(app, seed, phases, examples, Asker(headers, named, others, words))
        asgi.shutdown_lifespans()
        if tenants.seen_by(tenants.a) != before:
            found[scopes[-1]].failures["after all"] = "what is another tenant's has changed"
    return found


def main(examples: int = 60, seed: int = 1, keys: bool = False) -> None:
    """Fuzz for long, on embedded servers: every phase, requests that follow from each other among them."""
    with tempfile.TemporaryDirectory() as place, EmbeddedServers(Path(place) / "servers") as servers:
        folder = Path(place)
        engine = create_database_engine(servers.database_url)
        upgrade_database(engine)
        engine.dispose()
        settings = Settings(
            data=folder / "data",
            database_url=servers.database_url,
            broker_url=servers.broker_url,
            allowed_hosts="testserver",
            cutover_wait_seconds=0.1,
            trust_torchscript=keys,
            precision="float32",
        )
        if keys:
            settings = settings_of_tenants(settings, folder)
            worker = make_worker_parts(settings, celery_application(settings))
            all_found: Mapping[Any, Fuzzed] = fuzz_with_keys(worker, folder, seed, {}, examples, SCOPES_OF_TENANTS)
            worker.database.engine.dispose()
        else:
            app = create_app(settings)
            fill(app)
            all_found = {"whoever": fuzz(app, seed, {}, examples)}
            asgi.shutdown_lifespans()
    for who, found in all_found.items():
        for name, sentence in sorted(found.failures.items()):
            typer.echo(f"{who}: {name}\n{sentence}\n")
    for who, found in all_found.items():
        typer.echo(f"{who}: {found.summary}")
    raise typer.Exit(any(found.failures for found in all_found.values()))


if __name__ == "__main__":
    typer.run(main)
