"""What the log says of a request beside its id: the gallery, upgrade, backfill or job that it is about."""

from fastapi import Request

from service import logs

_IDS = ("upgrade_id", "backfill_id", "job_id")


def name_subject(request: Request) -> None:
    """Have the lines of this request name what its path names."""
    named: dict[str, object] = {name: request.path_params[name] for name in _IDS if name in request.path_params}
    route = request.scope.get("route")
    if "name" in request.path_params and route is not None and "/galleries/{name}" in route.path:
        named["gallery"] = request.path_params["name"]
    if named:
        logs.about(**named)
