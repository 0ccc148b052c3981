"""Bars of what goes on, on the standard error stream of a terminal or in a notebook."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Show = Callable[[Mapping[str, Any]], None]


@contextmanager
def shown(progress: bool | Show) -> Iterator[Show | None]:
    """Give what draws a bar for each phase with `done` of `total`; None where none is wanted, and what was given where
    somebody draws it otherwise."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(phases: Mapping[str, Any]) -> None:
            for name, phase in phases.items():
                if not isinstance(phase, Mapping) or not phase.get("total"):
                    continue
                if name not in tasks:
                    tasks[name] = bars.add_task(name.replace("_", " "))
                bars.update(tasks[name], completed=phase["done"], total=phase["total"])

        yield show
