"""What the commands have in common: which service they ask, how they print, and with what code they exit.

0 is success or a pass, 1 an error, 2 wrong usage, 3 a failed gate, 4 a verdict that is inconclusive or not there, 130
an interrupt.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from gallery_upgrade.client import Client

ERROR, USAGE, GATE_FAILED, NOT_JUDGED, INTERRUPTED = 1, 2, 3, 4, 130
# What typer raises for an argument that it does not take; only a part of that has a name in typer's interface.
_WRONG_USAGE = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])
# Whether the command that runs was given `--json`.
_AS_JSON: ContextVar[bool] = ContextVar("as_json", default=False)
_VERDICTS = {"pass": 0, "fail": GATE_FAILED}

Url = Annotated[
    str | None, typer.Option(envvar="GALLERY_URL", help="Address of the service.", rich_help_panel="Service")
]
Key = Annotated[
    str | None, typer.Option(envvar="GALLERY_API_KEY", help="API key.", show_envvar=True, rich_help_panel="Service")
]
ContextName = Annotated[
    str | None,
    typer.Option(help="A context of the config file, instead of its current one.", rich_help_panel="Service"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.", rich_help_panel="Output")]
_SHARED: dict[str, Any] = {"url": Url, "key": Key, "context": ContextName, "as_json": AsJson}


@dataclass
class Session:
    """One run of a command."""

    url: str | None
    key: str | None
    context: str | None
    as_json: bool

    @cached_property
    def client(self) -> "Client":
        """The service that is meant: by the options, else the environment, else the context."""
        from gallery_upgrade.cli.contexts import BadContexts, config_path, read_contexts
        from gallery_upgrade.client import Client

        try:
            contexts = read_contexts(config_path())
        except BadContexts as error:
            fail(str(error), USAGE)
        name = self.context or contexts.current
        if self.context is not None and self.context not in contexts.named:
            fail(f"There is no context {self.context!r}: make it with `context set`.", USAGE)
        known = contexts.named.get(name) if name is not None else None
        url, key = self.url, self.key
        if known is not None and (url is None or self.context is not None):
            url, key = known.url, key or known.key
        return Client(url, key=key or "")

    @property
    def progress(self) -> bool:
        """Whether bars are drawn."""
        return sys.stderr.isatty() and not self.as_json

    def print_json(self, value: Any) -> None:
        typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))

    def say(self, text: str, value: Any = None) -> None:
        """Print a line; with `--json`, the value in its place."""
        if self.as_json:
            self.print_json(value)
        else:
            typer.echo(text)

    def show(self, value: Any) -> None:
        """Print the fields of one thing."""
        if self.as_json:
            self.print_json(value)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for name, field in _plain(value).items():
            text = field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)
            table.add_row(name, "" if field is None else text)
        Console(markup=False, emoji=False).print(table)

    def table(self, rows: Iterable[Any], columns: Sequence[str]) -> None:
        """Print a row for each thing, with some of its fields; with `--json`, all of them."""
        plain = [_plain(row) for row in rows]
        if self.as_json:
            self.print_json(plain)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None)
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in plain:
            table.add_row(*("" if row.get(name) is None else _cell(row[name]) for name in columns))
        Console(markup=False, emoji=False).print(table)


def command(app: typer.Typer, name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function `f(session, …)` a command that also takes the options of the service and `--json`.

    What goes wrong is said in a sentence on the standard error stream, as a problem document with `--json`; mistakes of
    the command line, too.
    """

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def run(**given: Any) -> None:
            session = Session(**{shared: given.pop(shared) for shared in _SHARED})
            with _told(session):
                function(session, **given)

        shared = [
            inspect.Parameter(
                word, inspect.Parameter.KEYWORD_ONLY, default=False if word == "as_json" else None, annotation=kind
            )
            for word, kind in _SHARED.items()
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined] # what inspect looks for
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        run.__doc__ = function.__doc__
        app.command(name, cls=_Command, **options)(run)
        return function

    return made


class _Command(TyperCommand):
    """A command that says as JSON what is wrong with its arguments, where these ask for JSON."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except _WRONG_USAGE as error:
            if not as_json:
                raise
            _print_problem(error.format_message())
            raise typer.Exit(USAGE) from error


@contextmanager
def _told(session: Session) -> Iterator[None]:
    """End the command with a sentence where something goes wrong that a user can do something about."""
    from gallery_upgrade.errors import BadConnection, GalleryUpgradeError, Problem, WouldDeleteMost

    as_json = _AS_JSON.set(session.as_json)
    try:
        yield
    except Problem as problem:
        if session.as_json:
            _print_problem(problem.detail, type=problem.type, status=problem.status, errors=problem.errors)
            raise typer.Exit(ERROR) from problem
        fail("\n  ".join([problem.detail, *(json.dumps(of, ensure_ascii=False) for of in problem.errors[:5])]))
    except ImportError as error:
        fail(f"{error}. Install it for this command: pip install {error.name}")
    except _WRONG_USAGE as error:
        if not session.as_json:
            raise
        fail(error.format_message(), USAGE)
    except (BadConnection, WouldDeleteMost) as error:
        fail(str(error), USAGE)
    except UnicodeEncodeError:
        fail("A name that was given is not Unicode (UTF-8).")
    except (GalleryUpgradeError, OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt as interrupt:
        fail(str(interrupt) or "Interrupted.", INTERRUPTED)
    finally:
        _AS_JSON.reset(as_json)
        if "client" in vars(session):
            session.client.close()


def fail(message: str, code: int = ERROR) -> NoReturn:
    """End the command with a sentence; as a problem document where the command was given `--json`."""
    if _AS_JSON.get():
        _print_problem(message)
    else:
        typer.echo(f"gallery-upgrade: {message}", err=True)
    raise typer.Exit(code)


def _print_problem(
    detail: str, type: str = "about:blank", status: int | None = None, errors: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print a problem document on the standard error stream; `status` is None where no service answered."""
    document = {"type": type, "status": status, "detail": detail, "errors": list(errors)}
    typer.echo(json.dumps(document, ensure_ascii=False), err=True)


def exit_by_verdict(verdict: str) -> None:
    """End the command with the code of a verdict."""
    code = _VERDICTS.get(verdict, NOT_JUDGED)
    if code:
        raise typer.Exit(code)


def chosen(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def json_option(text: str | None, name: str) -> Any:
    """Return what an option says in JSON, or what the file `@PATH` does. Ends with 2 if it is not JSON."""
    if text is None:
        return None
    try:
        if text.startswith("@"):
            text = Path(text[1:]).expanduser().read_text()
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{error}", param_hint=name) from error


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
