"""`gallery-upgrade audit`: the audit as whoever runs the service looks after it, in the database itself."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from service.cli.database import Data, database_session

audit = typer.Typer(no_args_is_help=True, help="Verify the audit, and remove what need not be kept any more.")


@audit.command("verify")
def verify(
    head: Annotated[
        str | None, typer.Option(help="A hash that this command printed at another time: it must be there still.")
    ] = None,
    data: Data = None,
) -> None:
    """Walk over the chain of entries. Prints how many there are and the newest one's hash; keep that elsewhere, and a
    later --head shows whether entries were cut off at the end. Exits with 1 and names the first entry that is not as it
    was written."""
    from service.audit import verify as verify_chain

    with database_session(data, snapshot=True) as session:
        found = verify_chain(session, head)
    if found.fault is not None:
        typer.echo(f"gallery-upgrade: {found.fault} {found.entries} entries before are whole.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{found.entries} entries are as they were written; the newest has the hash {found.head}")


@audit.command("prune")
def prune(
    before: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The day (UTC) of the first to be kept.")],
    data: Data = None,
) -> None:
    """Remove the entries from before a day, for good. This is an entry itself, from which the chain goes on. Needs the
    database's owner."""
    from service.audit import prune as prune_entries

    with database_session(data) as session:
        removed = prune_entries(session, before.replace(tzinfo=UTC))
    typer.echo(f"removed {removed} entries")
