"""The commands of a client: alone as `gallery-upgrade-client`, and as a part of `gallery-upgrade`.

Here nothing is imported but typer: what a command runs with is imported when it runs.
"""

import typer

from gallery_upgrade.cli import configuring, connecting, galleries, networks, pairs, upgrades, work
from gallery_upgrade.cli.galleries import ReadStore
from gallery_upgrade.cli.session import command


def mount(app: typer.Typer, read_store: ReadStore | None = None) -> None:
    """Add the commands to an application; `read_store` opens a gallery in another store by its URL, where the
    application has what that takes."""
    app.add_typer(galleries.galleries, name="galleries")
    command(app, "upload")(galleries.upload)
    command(app, "search")(galleries.search)
    command(app, "doctor")(galleries.doctor_of(read_store))
    command(app, "import")(galleries.import_of(read_store))
    command(app, "export")(galleries.export)
    app.add_typer(networks.versions, name="versions")
    app.add_typer(networks.transformations, name="transformations")
    command(app, "train")(networks.train)
    app.add_typer(pairs.commands_of(read_store), name="pairs")
    app.add_typer(upgrades.upgrade, name="upgrade")
    app.add_typer(connecting.connect, name="connect")
    app.add_typer(work.backfill, name="backfill")
    app.add_typer(work.jobs, name="jobs")
    app.add_typer(configuring.context, name="context")


main = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
mount(main)
