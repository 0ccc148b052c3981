"""Commands on galleries in other stores, upgraded there: planned, watched, judged, switched, given up."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gallery_upgrade.cli.session import Session, chosen, command, exit_by_verdict

connect = typer.Typer(no_args_is_help=True, help="Galleries in other stores: stores, plan, start, watch, cutover, …")

Store = Annotated[str, typer.Argument(metavar="STORE", help="Name that the operator gave the store.")]
ExternalId = Annotated[int, typer.Argument(metavar="ID", help="Number of the upgrade.")]
From = Annotated[str, typer.Option("--from", help="Model version that the store's embeddings are of.")]
To = Annotated[str, typer.Option("--to", help="Model version to upgrade to.")]
Transformation = Annotated[int | None, typer.Option(help="Number of the transformation; else one is chosen.")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Give up waiting after so many seconds.")]

_GIVEN_UP = ("failed", "cancelled", "rolled_back")
_IN_ORDER = ("planned", "transforming", "verifying", "ready", "live", "finalized")


@command(connect, "stores")
def list_stores(session: Session) -> None:
    """List the stores that the operator named, with what each holds."""
    rows = []
    for store in session.client.api.list_stores().items:
        described = {} if store.description is None else store.description.model_dump(mode="json")
        rows.append({"name": store.name, **described, "error": store.error})
    session.table(rows, ["name", "rows", "embedding_dim", "side_information_dim", "metric", "dtype", "error"])


@command(connect, "list")
def list_external(session: Session) -> None:
    """List the upgrades of other stores."""
    rows = session.client.pages(session.client.api.list_external_upgrades)
    session.table(rows, ["id", "store", "from_version", "to_version", "state", "cutover", "created_at", "error"])


@command(connect, "show")
def show_external(session: Session, external: ExternalId) -> None:
    """Show one upgrade with its progress."""
    session.show(session.client.api.get_external_upgrade(external_id=external))


@command(connect, "plan")
def plan(
    session: Session, store: Store, from_version: From, to_version: To, transformation: Transformation = None
) -> None:
    """Say what an upgrade would take, what its cutover does, and what cannot be told. Nothing is written."""
    session.show(_begun(session, store, from_version, to_version, transformation=transformation, dry_run=True))


@command(connect, "start")
def start(
    session: Session,
    store: Store,
    from_version: From,
    to_version: To,
    transformation: Transformation = None,
    auto: Annotated[bool, typer.Option("--auto", help="Switch by itself once its report passes.")] = False,
    speed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the time that workers work on it.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it, as `connect watch` does.")] = False,
) -> None:
    """Start an upgrade: its new side is written beside the old one, which goes on answering."""
    given = chosen(transformation=transformation, speed=speed, cutover="auto" if auto else None)
    view = _begun(session, store, from_version, to_version, **given)
    if wait:
        _watch(session, view.id, None, None)
    else:
        session.say(f"external upgrade {view.id}", view)


@command(connect, "watch")
def watch(
    session: Session,
    external: ExternalId,
    until: Annotated[str | None, typer.Option(help="State to wait for [default: ready or live].")] = None,
    timeout: Timeout = None,
) -> None:
    """Follow an upgrade until it is ready or live.

    Exits with 0 if its report passed, 3 if a gate failed, 4 if it is inconclusive or was not judged, 1 if it failed.
    """
    _watch(session, external, until, timeout)


@command(connect, "references")
def references(
    session: Session,
    external: ExternalId,
    vectors: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Give those of this Parquet file: id, embedding."),
    ] = None,
    wanted: Annotated[int, typer.Option(min=1, help="How many rows.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="In which order the rows come.")] = None,
) -> None:
    """Print the keys of rows by whose vectors of the new model version the upgrade can be judged; with --vectors, give
    these."""
    api = session.client.api
    if vectors is None:
        found = api.draw_external_references(external_id=external, wanted=wanted, **chosen(seed=seed))
        session.say("\n".join(found.ids), found)
        return
    given = api.give_external_references(
        external_id=external, content=vectors.read_bytes(), content_type="application/vnd.apache.parquet"
    )
    results = given.results
    accepted = sum(result.status == "accepted" for result in results)
    session.say(f"{accepted} of {len(results)} references accepted", results)


@command(connect, "evaluate")
def evaluate(session: Session, external: ExternalId, timeout: Timeout = None) -> None:
    """Have an upgrade that is ready judged anew, and show the report. Exits as `report` does."""
    from gallery_upgrade.following import look_for

    number = session.client.api.evaluate_external(external_id=external).report

    def written() -> Any:
        judged = session.client.api.get_external_upgrade(external_id=external).judged
        return judged if judged is not None and judged.report >= number else None

    look_for(written, f"Report {number}", timeout_seconds=timeout)
    _show_report(session, external)


@command(connect, "report")
def report(session: Session, external: ExternalId) -> None:
    """Show what an upgrade was judged to be worth.

    Exits with 0 for a pass, 3 if a gate failed, 4 if it is inconclusive or was not judged.
    """
    _show_report(session, external)


@command(connect, "cutover")
def cut_over(
    session: Session,
    external: ExternalId,
    override: Annotated[str | None, typer.Option(help="Switch past failed gates, for this reason.")] = None,
    timeout: Timeout = None,
) -> None:
    """Switch the store of a ready upgrade, and wait until that is done."""
    given = {} if override is None else {"override": {"reason": override}}
    session.client.api.cut_over_external(external_id=external, **given)
    _said(session, _followed(session, external, "live", timeout))


@command(connect, "rollback")
def roll_back(
    session: Session,
    external: ExternalId,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Leave rows without an embedding that were written since.")
    ] = False,
) -> None:
    """Let the store's searches see the old side again."""
    given: dict[str, Any] = {"accept_loss": True} if accept_loss else {}
    _said(session, session.client.api.roll_back_external(external_id=external, **given))


@command(connect, "finalize")
def finalize(session: Session, external: ExternalId) -> None:
    """Remove the old side; there is no rollback afterwards."""
    _said(session, session.client.api.finalize_external(external_id=external))


@command(connect, "speed")
def set_speed(
    session: Session,
    external: ExternalId,
    speed: Annotated[float, typer.Argument(min=0, max=1, help="Share of the time; 0 stops it.")],
) -> None:
    """Throttle an upgrade."""
    _said(session, session.client.api.set_external_speed(external_id=external, speed=speed))


@command(connect, "pause")
def pause(session: Session, external: ExternalId) -> None:
    """Stop an upgrade for a while."""
    _said(session, session.client.api.pause_external_upgrade(external_id=external))


@command(connect, "resume")
def resume(session: Session, external: ExternalId) -> None:
    """Go on where the pause was."""
    _said(session, session.client.api.resume_external_upgrade(external_id=external))


@command(connect, "retry")
def retry(session: Session, external: ExternalId) -> None:
    """Go on after a failure."""
    _said(session, session.client.api.retry_external_upgrade(external_id=external))


@command(connect, "cancel")
def cancel(session: Session, external: ExternalId) -> None:
    """Give an upgrade up that is not live; its new side is removed."""
    _said(session, session.client.api.cancel_external_upgrade(external_id=external))


def _begun(session: Session, store: str, from_version: str, to_version: str, **options: Any) -> Any:
    given = {"store": store, "from_version": from_version, "to_version": to_version, **chosen(**options)}
    return session.client.api.plan_external_upgrade(**given)


def _watch(session: Session, external: int, until: str | None, timeout_seconds: float | None) -> None:
    view = _followed(session, external, until, timeout_seconds)
    _said(session, view)
    exit_by_verdict("not_judged" if view.judged is None else view.judged.verdict)


def _followed(session: Session, external: int, until: str | None, timeout_seconds: float | None) -> Any:
    """Return an upgrade once it has a state, or without one, once nothing more will happen by itself."""
    from gallery_upgrade.api import requests
    from gallery_upgrade.core.calls import UNSET
    from gallery_upgrade.errors import Failed
    from gallery_upgrade.following import follow
    from gallery_upgrade.progress import shown

    def settled(view: Any) -> bool:
        if view.state in _GIVEN_UP or view.state == until:
            return True
        if until is not None:
            return until in _IN_ORDER and view.state in _IN_ORDER[_IN_ORDER.index(until) :]
        switches = view.cutover == "auto" and view.judged is not None and view.judged.verdict == "pass"
        return view.state in ("live", "finalized") or (view.state == "ready" and not switches)

    client = session.client
    with shown(session.progress) as show:
        view = follow(
            client,
            lambda: client.api.get_external_upgrade(external_id=external),
            lambda last: requests.stream_external_events(
                external_id=external, last_event_id=UNSET if last is None else last
            ),
            settled,
            show=show,
            timeout_seconds=timeout_seconds,
        )
    if view.state in _GIVEN_UP and view.state != until:
        raise Failed(f"External upgrade {external} is {view.state}. {view.error or ''}".rstrip(), state=view.state)
    return view


def _show_report(session: Session, external: int) -> None:
    found = session.client.api.get_external_report(external_id=external)
    if session.as_json:
        session.print_json(found)
    else:
        session.say(f"report {found.report}: {found.verdict}, of {found.evidence} references")
        session.table(found.content.get("gates", []), ["metric", "value", "low", "high", "limit", "outcome"])
    exit_by_verdict(found.verdict)


def _said(session: Session, view: Any) -> None:
    session.say(f"external upgrade {view.id} is {view.state}", view)
