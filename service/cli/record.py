"""`gallery-upgrade record`: verifies the record of an upgrade, without a service or a database."""

import json
from pathlib import Path
from typing import Annotated

import typer

record = typer.Typer(no_args_is_help=True, help="Verify records of upgrades, and make the key that signs them.")


@record.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What GET /v1/upgrades/ID/record gave.")],
    public_key: Annotated[str, typer.Option(help="What GET /v1/signing-key gave, kept from a time of trust.")],
) -> None:
    """Check that a record is as it was signed, and by which key. Exits with 1 and says what is wrong."""
    from service.canonical_json import digest_of
    from service.signatures import NotVerified, verify_signature

    try:
        document = json.loads(file.read_text())
        signed, signature = document["record"], document["signature"]
        verify_signature(signed, signature, public_key)
        upgrade = signed["upgrade"]
    except (ValueError, KeyError, TypeError) as error:
        what = str(error) if isinstance(error, NotVerified) else "It is no record of an upgrade."
        typer.echo(f"gallery-upgrade: {file}: {what}", err=True)
        raise typer.Exit(1) from error
    typer.echo(
        f"{file} is the record of upgrade {upgrade['id']} of gallery {upgrade['gallery']}, {upgrade['state']}, as it"
        f" was signed at {signed['made_at']}; its SHA-256 is {digest_of(signed)}, and the audit's newest entry had the"
        f" hash {signed['audit']['head']}"
    )


@record.command("key")
def key() -> None:
    """Print a new private key, for GALLERY_SIGNING_KEY, and its public key."""
    from service.signatures import Signer

    signer = Signer.new()
    typer.echo(f"GALLERY_SIGNING_KEY={signer.to_text()}")
    typer.echo(f"public key: {signer.public_key}")
