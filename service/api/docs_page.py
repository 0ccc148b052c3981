"""`/docs`: the API as Swagger UI shows it, from files that came with a package: it works without the internet."""

from importlib import resources

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from service.api.browsers import content_policy

router = APIRouter(include_in_schema=False)
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_KEPT_SECONDS = 3_600
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gallery-upgrade: the HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});</script>
</html>
"""


@router.get("/docs")
def show_docs() -> HTMLResponse:
    """Return the page."""
    policy = content_policy(_PAGE, scripts_from_here=True)
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": policy})


@router.get("/docs/swagger-ui-bundle.js")
def docs_script() -> Response:
    """Return Swagger UI."""
    return _resource("swagger-ui-bundle.js")


@router.get("/docs/swagger-ui.css")
def docs_style() -> Response:
    """Return its looks."""
    return _resource("swagger-ui.css")


def _resource(name: str) -> Response:
    content = resources.files("fastapi_swagger.resources").joinpath(name).read_bytes()
    headers = {"Cache-Control": f"max-age={_KEPT_SECONDS}"}
    return Response(content, media_type=_MEDIA_TYPES[name], headers=headers)
