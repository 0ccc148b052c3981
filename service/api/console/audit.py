"""The page of the audit: who did what to what."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import identity
from service.api.console.rendering import PageRoute, render
from service.api.dependencies import SessionDependency
from service.audit import Act, Wanted, newest_entries

router = APIRouter(route_class=PageRoute)
_SHOWN = 100
Text = Annotated[str, Query(max_length=512)]


@router.get("/console/audit")
def show_audit(
    request: Request,
    session: SessionDependency,
    action: Text = "",
    kind: Text = "",
    subject: Text = "",
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """Show the tenant's entries, newest first, of one action or subject where one is given."""
    wanted = Wanted(identity.current.get().tenant, action or None, kind or None, subject or None)
    found = newest_entries(session, wanted, before, _SHOWN + 1)
    return render(
        request,
        "pages/audit.html",
        entries=found[:_SHOWN],
        has_more=len(found) > _SHOWN,
        given={"action": action, "kind": kind, "subject": subject},
        acts=list(Act),
    )
