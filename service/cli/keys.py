"""`gallery-upgrade keys`: makes and ends keys in the database itself, as whoever runs the service: the first key of all
is made here. Without GALLERY_DATABASE_URL it is the embedded one, whether `serve` runs on it at the moment or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.database import Data, database_session

if TYPE_CHECKING:
    from service.access.keys import NewKey

keys = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke keys of the API.")

KeyId = Annotated[str, typer.Argument(help="The 8 characters after gu_.")]


@keys.command("create")
def create(
    scopes: Annotated[str, typer.Option(help="What it may do, by commas; admin is everything.")],
    name: Annotated[str, typer.Option(help="Whose it is, or what for.")] = "made by the command line",
    galleries: Annotated[str, typer.Option(help="Names of galleries, by commas; * and ? stand for any.")] = "*",
    tenant: Annotated[str, typer.Option(help="Whose galleries it sees.")] = "default",
    days: Annotated[int, typer.Option(min=1, max=3_650, help="How long it is valid.")] = 90,
    unless_any: Annotated[bool, typer.Option("--unless-any", help="Do nothing if an admin's key is there.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="Write it to this new file, for its owner alone, and print its id.")
    ] = None,
    data: Data = None,
) -> None:
    """Make a key and print it, this once."""
    from service.access.keys import WantedKey, create_key, is_any_admin

    with database_session(data, migrated=True) as session:
        if unless_any and is_any_admin(session):
            return
        new = create_key(session, WantedKey(name, scopes.split(","), galleries.split(","), tenant, days))
        if to is None:
            _show(new)
        else:
            _write(to, new)


@keys.command("list")
def list_(data: Data = None) -> None:
    """Print every key without its secret, oldest first."""
    from service.access.keys import list_keys

    after_id = 0
    with database_session(data, migrated=True) as session:
        while found := list_keys(session, after_id, 1_000):
            for row in found:
                ended = "revoked" if row.revoked_at else f"valid until {row.expires_at:%Y-%m-%d %H:%M}"
                used = f"last used {row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never used"
                what = f"{','.join(row.scopes)} on {','.join(row.galleries)}"
                typer.echo(f"{row.key_id}  {row.tenant}  {row.name!r}  {what}  {ended}  {used}")
            after_id = found[-1].id


@keys.command("revoke")
def revoke(key_id: KeyId, data: Data = None) -> None:
    """End a key, in every process within 5 seconds."""
    from service.access.keys import revoke_key

    with database_session(data, migrated=True) as session:
        revoke_key(session, key_id)
    typer.echo(f"revoked {key_id}")


@keys.command("rotate")
def rotate(key_id: KeyId, data: Data = None) -> None:
    """Make a key that may do the same and print it; the old one is valid for an hour more."""
    from service.access.keys import rotate_key

    with database_session(data, migrated=True) as session:
        _show(rotate_key(session, key_id))


@keys.command("draw")
def draw() -> None:
    """Print a key that is in no database, for GALLERY_ADMIN_KEY."""
    from service.access.keys import draw_token

    typer.echo(draw_token())


def _show(new: "NewKey") -> None:
    typer.echo(new.token)
    typer.echo("This is the only time that the key is shown. Send it as `Authorization: Bearer <key>`.", err=True)


def _write(path: Path, new: "NewKey") -> None:
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(f"{new.token}\n")
    except OSError as error:
        raise RuntimeError(f"The key cannot be written to {path}, and was not made: {error.strerror}.") from error
    typer.echo(f"The key {new.row.key_id} is in {path}.")
