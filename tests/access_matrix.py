"""What keys of each scope may do with what is their tenant's, and with what is another's: every operation that names
something, or needs a scope, is asked by a key of each scope of two tenants.

    python -m tests.access_matrix
"""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import typer

from benchmarks.setting import markdown
from migrations import upgrade_database
from service.access.operations import SCOPE_OF, SCOPES, Scope
from service.db import create_database_engine
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from tests.keys import bearer, make_key
from tests.tenants import NAMING, Operation, Tenants, is_told_apart, settings_of_tenants, two_tenants
from workers.app import make_worker_parts

# Keys of other tenants than the default one cannot have the scope of the metrics, which are of all tenants.
SCOPES_OF_TENANTS: list[Scope] = [scope for scope in SCOPES if scope != "metrics"]
# The evidence of an upgrade may have no examples.
_MAY_BE_MISSING = {("GET", "/v1/upgrades/{upgrade_id}/report/examples")}
_ENDING = ("/cancel", "/cutover", "/finalize", "/rollback", "/rotate", "/delete", "/erasures")


@dataclass
class Row:
    """How an operation was answered, by the scope of the key: of what is its own tenant's, and of what is another's
    where it names something; `told_apart` are the keys to which what is another's was answered otherwise than what is
    nowhere."""

    operation: Operation
    needs: Scope
    own: dict[Scope, int] = field(default_factory=dict)
    others: dict[Scope, int] = field(default_factory=dict)
    told_apart: list[Scope] = field(default_factory=list)
    unnamed: list[Scope] = field(default_factory=list)  # to which a refusal did not name the scope that lacks

    def may(self, scope: Scope) -> bool:
        return scope in (self.needs, "admin") and self.needs != "metrics"

    @property
    def is_as_told(self) -> bool:
        """Whether every answer is one that the rules say."""
        return not self.told_apart and not self.unnamed and all(map(self._is_right, SCOPES_OF_TENANTS))

    def _is_right(self, scope: Scope) -> bool:
        own, other = self.own[scope], self.others.get(scope, 404)
        if not self.may(scope):
            return own == 403 and self.others.get(scope, 403) == 403
        # What was deleted by one key is not there for the next one.
        is_there = own != 404 or self.operation[0] == "DELETE" or self.operation in _MAY_BE_MISSING
        return own not in (401, 403) and own < 500 and is_there and other == 404


def every_operation() -> list[Row]:
    """Return the rows, unasked, in the order in which they can be asked."""
    return [Row(*each) for each in sorted(SCOPE_OF.items(), key=lambda each: _order(each[0]))]


def ask_as_another(tenants: Tenants, rows: list[Row]) -> None:
    """Ask for what is tenant `a`'s by keys of tenant `b`, and for what is nowhere."""
    keys = _keys(tenants, "b")
    for row in rows:
        for scope in SCOPES_OF_TENANTS if row.operation in NAMING else ():
            found, missing = (tenants.ask(keys[scope], row.operation, ids) for ids in (tenants.ids, tenants.nobodys))
            row.others[scope] = found.status_code
            if is_told_apart(row.operation, found, tenants.ids, missing, tenants.nobodys):
                row.told_apart.append(scope)


def ask_as_owner(tenants: Tenants, rows: list[Row]) -> None:
    """Ask for what is tenant `a`'s by its own keys; at the end it has it no more."""
    keys = _keys(tenants, "a")
    for row in rows:
        for scope in SCOPES_OF_TENANTS:
            answer = tenants.ask(keys[scope], row.operation, tenants.ids)
            row.own[scope] = answer.status_code
            if not row.may(scope) and row.needs != "metrics" and repr(row.needs) not in answer.text:
                row.unnamed.append(scope)


def _keys(tenants: Tenants, tenant: str) -> dict[Scope, dict[str, str]]:
    """Make a key of each scope, and return the headers that show them."""
    return {scope: bearer(make_key(tenants.client, scope, tenant=tenant)["key"]) for scope in SCOPES_OF_TENANTS}


def _order(operation: Operation) -> tuple[int, Operation]:
    """What ends something comes late, streams of what has ended then, and what removes it last."""
    method, path = operation
    if method == "DELETE":
        return 3, operation
    if path.endswith("/events"):
        return 2, operation
    return int(path.endswith(_ENDING)), operation


def summary(rows: list[Row]) -> str:
    """Return a table of how many operations were answered how, by the scope of the key."""
    lines = []
    for scope in SCOPES_OF_TENANTS:
        may = [row for row in rows if row.may(scope)]
        may_not = [row for row in rows if not row.may(scope)]
        answered = [row.own[scope] not in (401, 403) for row in may]
        hidden = [row.others[scope] == 404 and scope not in row.told_apart for row in may if row.others]
        refused = [row.own[scope] == 403 for row in may_not]
        refused_of_another = [row.others[scope] == 403 for row in may_not if row.others]
        counts = [f"{sum(each)} of {len(each)}" for each in (answered, hidden, refused, refused_of_another)]
        lines.append((f"`{scope}`", *counts))
    columns = ("key's scope", "answered", "another tenant's: 404", "beyond the scope: 403", "and another tenant's: 403")
    return markdown(columns, lines)


def whole(rows: list[Row]) -> str:
    """Return the table of all operations."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.operation[1], row.operation[0])):
        asked = [str(statuses.get(scope, "–")) for statuses in (row.own, row.others) for scope in (row.needs, "admin")]
        without = Counter(
            statuses[scope] for statuses in (row.own, row.others) for scope in statuses if not row.may(scope)
        )
        refused = ", ".join(f"{count} × {status}" for status, count in without.items())
        lines.append((f"`{' '.join(row.operation)}`", row.needs, *asked, refused))
    columns = ("operation", "scope", "own", "own, `admin`", "another's", "another's, `admin`", "keys without the scope")
    return markdown(columns, lines)


def main() -> None:
    """Print both tables; exit with 1 where an answer is not one that the rules say."""
    with tempfile.TemporaryDirectory() as place, EmbeddedServers(Path(place) / "servers") as servers:
        engine = create_database_engine(servers.database_url)
        upgrade_database(engine)
        engine.dispose()
        settings = Settings(
            data=Path(place) / "data",
            database_url=servers.database_url,
            broker_url=servers.broker_url,
            allowed_hosts="testserver",
            trust_torchscript=True,
            precision="float32",
        )
        settings = settings_of_tenants(settings, Path(place))
        worker = make_worker_parts(settings, celery_application(settings))
        with two_tenants(worker, Path(place)) as tenants:
            rows = every_operation()
            ask_as_another(tenants, rows)
            ask_as_owner(tenants, rows)
        worker.database.engine.dispose()
    wrong = [row for row in rows if not row.is_as_told]
    asked = sum(len(row.own) + len(row.others) for row in rows)
    typer.echo(f"{whole(rows)}\n{summary(rows)}\n{asked} answers; operations of which one is not as told: {len(wrong)}")
    for row in wrong:
        typer.echo(f"not as told: {row}")
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
