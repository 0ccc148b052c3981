"""Commands on backfills and jobs."""

from typing import Annotated, Any

import typer

from gallery_upgrade.cli.session import Session, chosen, command

backfill = typer.Typer(no_args_is_help=True, help="Backfills: plan, start, watch, pause, resume, cancel, …")
jobs = typer.Typer(no_args_is_help=True, help="Jobs: list, show, watch, pause, resume, cancel.")

Gallery = Annotated[str, typer.Argument(metavar="GALLERY", help="Name of the gallery.")]
BackfillId = Annotated[int, typer.Argument(metavar="ID", help="Number of the backfill.")]
JobId = Annotated[int, typer.Argument(metavar="ID", help="Number of the job.")]
Generation = Annotated[str, typer.Option(help="active, or next: the candidate of an open upgrade.")]
Source = Annotated[str, typer.Option(help="Where images come from: uri, client or thumbnails.")]


@command(backfill, "plan")
def plan_backfill(
    session: Session, gallery: Gallery, source: Source = "uri", generation: Generation = "active"
) -> None:
    """Say what a backfill would be worth, by a simulation. Nothing is written."""
    session.show(_begun(session, gallery, source, generation, dry_run=True))


@command(backfill, "start")
def start_backfill(
    session: Session,
    gallery: Gallery,
    source: Source = "uri",
    generation: Generation = "active",
    order: Annotated[str | None, typer.Option(help="auto, uncertainty, traffic or random.")] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the candidates.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Seconds of encoding at most.")] = None,
    speed: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the time of workers.")] = None,
) -> None:
    """Encode items again from their images, those first that are worth it most."""
    budget = chosen(share=share, seconds=seconds)
    given = chosen(order=order, speed=speed, budget=budget or None)
    view = _begun(session, gallery, source, generation, **given)
    session.say(f"backfill {view.id}", view)


@command(backfill, "list")
def list_backfills(session: Session, gallery: Gallery) -> None:
    """List the backfills of a gallery."""
    rows = session.client.pages(session.client.api.list_backfills, name=gallery)
    session.table(rows, ["id", "model_version", "state", "order", "items", "created_at", "error"])


@command(backfill, "show")
def show_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Show one backfill with its progress."""
    session.show(session.client.api.get_backfill(backfill_id=backfill_id))


@command(backfill, "watch")
def watch_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Follow a backfill until it has ended. Exits with 1 unless it finished."""
    from gallery_upgrade.api import requests
    from gallery_upgrade.core.calls import UNSET
    from gallery_upgrade.errors import Failed
    from gallery_upgrade.following import follow
    from gallery_upgrade.progress import shown

    client = session.client
    with shown(session.progress) as show:
        view = follow(
            client,
            lambda: client.api.get_backfill(backfill_id=backfill_id),
            lambda last: requests.stream_backfill_events(
                backfill_id=backfill_id, last_event_id=UNSET if last is None else last
            ),
            lambda view: view.state in ("finished", "failed", "cancelled"),
            show=show,
        )
    if view.state != "finished":
        raise Failed(f"Backfill {backfill_id} is {view.state}. {view.error or ''}".rstrip(), state=view.state)
    session.say(f"backfill {backfill_id} is finished", view)


@command(backfill, "speed")
def set_backfill_speed(
    session: Session,
    backfill_id: BackfillId,
    speed: Annotated[float, typer.Argument(min=0, max=1, help="Share of the time; 0 stops it.")],
) -> None:
    """Throttle a backfill; 0 stops it."""
    _said(session, "backfill", session.client.api.set_backfill_speed(backfill_id=backfill_id, speed=speed))


@command(backfill, "pause")
def pause_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Stop a backfill for a while."""
    _said(session, "backfill", session.client.api.pause_backfill(backfill_id=backfill_id))


@command(backfill, "resume")
def resume_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Go on where the pause was."""
    _said(session, "backfill", session.client.api.resume_backfill(backfill_id=backfill_id))


@command(backfill, "retry")
def retry_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Go on after a failure."""
    _said(session, "backfill", session.client.api.retry_backfill(backfill_id=backfill_id))


@command(backfill, "cancel")
def cancel_backfill(session: Session, backfill_id: BackfillId) -> None:
    """Give up what is not done."""
    _said(session, "backfill", session.client.api.cancel_backfill(backfill_id=backfill_id))


@command(jobs, "list")
def list_jobs(session: Session) -> None:
    """List the jobs: trainings and ingests by reference."""
    rows = session.client.pages(session.client.api.list_jobs)
    session.table(rows, ["id", "kind", "state", "created_at", "finished_at", "error"])


@command(jobs, "show")
def show_job(session: Session, job: JobId) -> None:
    """Show one job with its progress."""
    session.show(session.client.api.get_job(job_id=job))


@command(jobs, "watch")
def watch_job(session: Session, job: JobId) -> None:
    """Follow a job until it has ended. Exits with 1 unless it succeeded."""
    ended = session.client.job(job).wait(progress=session.progress)
    _said(session, "job", ended.view)


@command(jobs, "pause")
def pause_job(session: Session, job: JobId) -> None:
    """Stop an ingest for a while."""
    _said(session, "job", session.client.api.pause_job(job_id=job))


@command(jobs, "resume")
def resume_job(session: Session, job: JobId) -> None:
    """Go on where the pause was."""
    _said(session, "job", session.client.api.resume_job(job_id=job))


@command(jobs, "cancel")
def cancel_job(session: Session, job: JobId) -> None:
    """Give up a training or an ingest."""
    _said(session, "job", session.client.api.cancel_job(job_id=job))


def _begun(session: Session, gallery: str, source: str, generation: str, **options: Any) -> Any:
    given: dict[str, Any] = {"source": source, "generation": generation, **options}
    return session.client.api.begin_backfill(name=gallery, **given)


def _said(session: Session, what: str, view: Any) -> None:
    session.say(f"{what} {view.id} is {view.state}", view)
