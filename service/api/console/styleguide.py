"""The page that shows what pages are made of, for who changes them."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from service.api.console.comparisons import Found, compared
from service.api.console.rendering import PageRoute, render

router = APIRouter(route_class=PageRoute)
_BEFORE = [("a tabby", "cat"), ("a fox", "dog"), ("a kitten", "cat")]
_AFTER = [("a kitten", "cat"), ("a tabby", "cat"), ("a lynx", "cat")]


@router.get("/console/styleguide")
def show_styleguide(request: Request) -> Response:
    """Show every part once."""
    before, after = (
        [Found(id_, label, 0.1 * rank, has_thumbnail=False) for rank, (id_, label) in enumerate(answer)]
        for answer in (_BEFORE, _AFTER)
    )
    now = datetime.now(tz=UTC)
    return render(request, "pages/styleguide.html", found=compared(before, after), now=now)
