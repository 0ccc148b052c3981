"""The page of model versions and transformations: what is registered, and how to register or train more."""

from fastapi import APIRouter, Request, Response

from service.api.console.rendering import PageRoute, render
from service.api.dependencies import SessionDependency
from service.domain.registry.transformations import list_transformations
from service.domain.registry.versions import list_versions

router = APIRouter(route_class=PageRoute)
_MOST_SHOWN = 1_000


@router.get("/console/versions")
def show_versions(request: Request, session: SessionDependency) -> Response:
    """Show model versions, and the transformations between them."""
    return render(
        request,
        "pages/versions.html",
        versions=list_versions(session, 0, _MOST_SHOWN),
        transformations=list_transformations(session, 0, _MOST_SHOWN),
    )
