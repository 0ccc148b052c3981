"""Pages of access: where a browser shows its key, and the keys there are."""

from fastapi import APIRouter, Request, Response

from service.access import keys
from service.access.operations import SCOPES
from service.api.console.rendering import PageRoute, render
from service.api.dependencies import SessionDependency

router = APIRouter(route_class=PageRoute)
_MOST_SHOWN = 1_000


@router.get("/console/login")
def show_login(request: Request, to: str = "/") -> Response:
    """Ask for a key; `to` is the page of ours that follows."""
    # A browser leaves out line breaks and tabs, so that "/\t/host" is another host's.
    is_ours = to.startswith("/") and to.isprintable() and not to.startswith(("//", "/\\"))
    return render(request, "pages/login.html", to=to if is_ours else "/")


@router.get("/console/keys")
def show_keys(request: Request, session: SessionDependency) -> Response:
    """Show the keys of the tenant, and how to make one."""
    return render(request, "pages/keys.html", keys=keys.list_keys(session, 0, _MOST_SHOWN), scopes=SCOPES)
