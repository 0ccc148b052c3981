"""Commands on upgrades: planned, watched, judged, made live, given up."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gallery_upgrade.cli.session import Session, chosen, command, exit_by_verdict, json_option

if TYPE_CHECKING:
    from gallery_upgrade.upgrades import Upgrade

upgrade = typer.Typer(no_args_is_help=True, help="Upgrades: plan, start, watch, report, cutover, rollback, …")

Gallery = Annotated[str, typer.Argument(metavar="GALLERY", help="Name of the gallery.")]
UpgradeId = Annotated[int, typer.Argument(metavar="ID", help="Number of the upgrade.")]
To = Annotated[str, typer.Option("--to", help="Model version to upgrade to.")]
Transformation = Annotated[int | None, typer.Option(help="Number of the transformation; else one is found.")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Give up waiting after so many seconds.")]


@command(upgrade, "list")
def list_upgrades(session: Session, gallery: Gallery) -> None:
    """List the upgrades of a gallery."""
    rows = (found.view for found in session.client.galleries.get(gallery).upgrades())
    session.table(rows, ["id", "from_version", "to_version", "state", "cutover", "created_at", "error"])


@command(upgrade, "show")
def show_upgrade(session: Session, upgrade_id: UpgradeId) -> None:
    """Show one upgrade with its progress."""
    session.show(session.client.upgrade(upgrade_id).view)


@command(upgrade, "plan")
def plan(session: Session, gallery: Gallery, to_version: To, transformation: Transformation = None) -> None:
    """Say what an upgrade would take: its path, rows, bytes and seconds. Nothing is written."""
    given = chosen(transformation=transformation)
    session.show(session.client.galleries.get(gallery).plan_upgrade(to_version, **given))


@command(upgrade, "start")
def start(
    session: Session,
    gallery: Gallery,
    to_version: To,
    transformation: Transformation = None,
    auto: Annotated[bool, typer.Option("--auto", help="Go live by itself once its report passes.")] = False,
    speed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the time that workers work on it.")
    ] = None,
    gates: Annotated[str | None, typer.Option(help="Gates as JSON, or @FILE: [{metric, limit, slice?}].")] = None,
    smooth: Annotated[
        float | None, typer.Option(help="Move each row by this share, above 0 to 1, towards its nearest rows.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it, as `upgrade watch` does.")] = False,
) -> None:
    """Start an upgrade; the gallery goes on answering."""
    given = chosen(transformation=transformation, speed=speed, gates=json_option(gates, "--gates"))
    if smooth is not None:
        given["smoothing"] = {"share": smooth}
    if auto:
        given["cutover"] = "auto"
    started = session.client.galleries.get(gallery).upgrade(to_version, **given)
    if wait:
        _watch(session, started, None, None)
    else:
        session.say(f"upgrade {started.id}", started.view)


@command(upgrade, "watch")
def watch(
    session: Session,
    upgrade_id: UpgradeId,
    until: Annotated[str | None, typer.Option(help="State to wait for [default: ready or live].")] = None,
    timeout: Timeout = None,
) -> None:
    """Follow an upgrade until it is ready or live.

    Exits with 0 if its report passed, 3 if a gate failed, 4 if it is inconclusive or was not judged, 1 if it failed.
    """
    _watch(session, session.client.upgrade(upgrade_id), until, timeout)


@command(upgrade, "report")
def report(
    session: Session,
    upgrade_id: UpgradeId,
    number: Annotated[int | None, typer.Option(help="Which report [default: the newest].")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the newest report as a page.")] = None,
) -> None:
    """Show what an upgrade was judged to be worth.

    Exits with 0 for a pass, 3 if a gate failed, 4 if it is inconclusive or was not judged.
    """
    found = session.client.upgrade(upgrade_id)
    if html is not None:
        html.write_text(found.report_page())
    _show_report(session, found.report(number))


@command(upgrade, "evaluate")
def evaluate(session: Session, upgrade_id: UpgradeId, timeout: Timeout = None) -> None:
    """Have an upgrade that is ready judged anew, and show the report. Exits as `report` does."""
    _show_report(session, session.client.upgrade(upgrade_id).evaluate(timeout_seconds=timeout))


@command(upgrade, "references")
def references(
    session: Session,
    upgrade_id: UpgradeId,
    folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Send the images from here, by their ids as paths."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(exists=True, help="Send the new version's vectors of items: Parquet, Arrow, .npy with ids."),
    ] = None,
    wanted: Annotated[int, typer.Option(min=1, help="How many items.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Which items are drawn.")] = None,
) -> None:
    """Print the ids of items whose images let the upgrade be judged; with --folder, send those that are there, with
    --vectors what the new model version gives for them."""
    if folder is not None and vectors is not None:
        raise typer.BadParameter("give one of --folder and --vectors")
    found = session.client.upgrade(upgrade_id)
    if vectors is not None:
        given = found.give_reference_vectors(vectors)
        session.say(f"{sum(each.status == 'accepted' for each in given)} of {len(given)} references given", given)
        return
    ids = found.wanted_references(wanted, **({} if seed is None else {"seed": seed}))
    if folder is None:
        session.say("\n".join(ids), ids)
        return
    root = folder.resolve()

    def image(item_id: str) -> Path | None:
        path = (root / item_id).resolve()  # an id such as ../x names no file of the folder
        return path if path.is_relative_to(root) and path.is_file() else None

    results = found.give_references(image, ids)
    accepted = sum(result.status == "accepted" for result in results)
    session.say(f"{accepted} of {len(ids)} references given", results)


@command(upgrade, "cutover")
def cut_over(
    session: Session,
    upgrade_id: UpgradeId,
    override: Annotated[str | None, typer.Option(help="Go live past failed gates, for this reason.")] = None,
) -> None:
    """Make a ready upgrade live."""
    _said(session, session.client.upgrade(upgrade_id).cut_over(override=override))


@command(upgrade, "rollback")
def roll_back(
    session: Session,
    upgrade_id: UpgradeId,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Delete items that only the new has.")] = False,
) -> None:
    """Make the previous generation active again."""
    _said(session, session.client.upgrade(upgrade_id).roll_back(accept_loss=accept_loss))


@command(upgrade, "speed")
def set_speed(
    session: Session,
    upgrade_id: UpgradeId,
    speed: Annotated[float, typer.Argument(min=0, max=1, help="Share of the time; 0 stops it.")],
) -> None:
    """Throttle an upgrade."""
    _said(session, session.client.upgrade(upgrade_id).change(speed=speed))


@command(upgrade, "finalize")
def finalize(session: Session, upgrade_id: UpgradeId) -> None:
    """Drop the previous generation; there is no rollback afterwards."""
    _said(session, session.client.upgrade(upgrade_id).finalize())


@command(upgrade, "pause")
def pause(session: Session, upgrade_id: UpgradeId) -> None:
    """Stop an upgrade for a while."""
    _said(session, session.client.upgrade(upgrade_id).pause())


@command(upgrade, "resume")
def resume(session: Session, upgrade_id: UpgradeId) -> None:
    """Go on where the pause was."""
    _said(session, session.client.upgrade(upgrade_id).resume())


@command(upgrade, "retry")
def retry(session: Session, upgrade_id: UpgradeId) -> None:
    """Go on after a failure."""
    _said(session, session.client.upgrade(upgrade_id).retry())


@command(upgrade, "cancel")
def cancel(session: Session, upgrade_id: UpgradeId) -> None:
    """Give an upgrade up that is not live."""
    _said(session, session.client.upgrade(upgrade_id).cancel())


def _watch(session: Session, found: "Upgrade", until: str | None, timeout_seconds: float | None) -> None:
    found.wait(until=until, progress=session.progress, timeout_seconds=timeout_seconds)
    _said(session, found)
    judged = found.refresh().view.judged
    exit_by_verdict("not_judged" if judged is None else judged.verdict)


def _show_report(session: Session, found: Any) -> None:
    if session.as_json:
        session.print_json(found)
    else:
        session.say(f"report {found.report}: {found.verdict}, of {found.evidence} images")
        session.table(found.content.get("gates", []), ["metric", "slice", "value", "low", "high", "limit", "outcome"])
    exit_by_verdict(found.verdict)


def _said(session: Session, found: "Upgrade") -> None:
    session.say(f"upgrade {found.id} is {found.state}", found.view)
