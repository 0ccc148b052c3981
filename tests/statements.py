"""Counting what a piece of code asks the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


@contextmanager
def recorded_statements(engine: Engine) -> Iterator[list[str]]:
    """Give a list that each statement sent to the database meanwhile is added to."""
    statements: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", record)


def least_statements(engine: Engine, look: Callable[[], object]) -> int:
    """Return the fewest statements of five looks, without those that set up a connection: what the process does beside
    them counts in some."""
    counts = []
    for _ in range(5):
        with recorded_statements(engine) as statements:
            look()
        counts.append(len([each for each in statements if not each.startswith("SET")]))
    return min(counts)
