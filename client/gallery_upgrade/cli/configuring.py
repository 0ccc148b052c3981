"""Commands on the config file's contexts."""

from typing import Annotated

import typer

from gallery_upgrade.cli.contexts import Context, config_path, read_contexts, write_contexts
from gallery_upgrade.cli.session import USAGE, fail

context = typer.Typer(no_args_is_help=True, help="Services by name, in a config file: set, use, list, delete.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]


@context.command("set")
def set_context(
    name: Name,
    url: Annotated[str, typer.Option(help="Address of the service.")],
    key: Annotated[str | None, typer.Option(help="API key.")] = None,
) -> None:
    """Name a service, and use it from now on."""
    from gallery_upgrade.connection import connection_options
    from gallery_upgrade.errors import BadConnection

    try:
        connection_options(url, key, {})
    except BadConnection as error:
        fail(str(error), USAGE)
    contexts = read_contexts(config_path())
    contexts.named[name] = Context(url, key)
    contexts.current = name
    write_contexts(config_path(), contexts)
    typer.echo(f"{name} is {url}, in {config_path()}")


@context.command("use")
def use_context(name: Name) -> None:
    """Use a service from now on."""
    contexts = read_contexts(config_path())
    _known(name, contexts.named)
    contexts.current = name
    write_contexts(config_path(), contexts)


@context.command("list")
def list_contexts() -> None:
    """List the services; the one that is used has a star."""
    contexts = read_contexts(config_path())
    for name, found in sorted(contexts.named.items()):
        typer.echo(f"{'*' if name == contexts.current else ' '} {name}  {found.url}")


@context.command("delete")
def delete_context(name: Name) -> None:
    """Forget a service."""
    contexts = read_contexts(config_path())
    _known(name, contexts.named)
    del contexts.named[name]
    contexts.current = None if contexts.current == name else contexts.current
    write_contexts(config_path(), contexts)


def _known(name: str, named: dict[str, Context]) -> None:
    if name not in named:
        fail(f"There is no context {name!r}.", USAGE)
