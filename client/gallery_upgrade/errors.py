"""The errors that the client raises.

GalleryUpgradeError
  BadConnection           the URL or the key cannot be used, and nothing was asked
  WouldDeleteMost         an upload would delete more than half of what was sent, and nobody said that it may
  ServiceAway             no answer came within the deadline of the retries
  NotTheService           what answers at this address is no service of this kind
  Failed                  what was waited for ended otherwise; `state` and `error` say how
  Problem                 an answer that is an error
    BadRequest, Unauthorized, Forbidden, NotFound, Conflict, Gone, TooLarge, Unprocessable, TooManyRequests,
    Unavailable, ServiceFailed      by status; below them one class for each problem `type`: `gallery_upgrade.problems`
"""

from collections.abc import Sequence
from typing import Any


class GalleryUpgradeError(Exception):
    """The base of them all; the message is a sentence for a human."""


class BadConnection(GalleryUpgradeError, ValueError):
    """The URL or the key cannot be used, whatever the service does; raised where a client is made."""


class WouldDeleteMost(GalleryUpgradeError, ValueError):
    """More than half of the files that were sent once are gone, as if the folder were another one, or not mounted."""


class ServiceAway(GalleryUpgradeError):
    """No answer came within the deadline of the retries."""


class NotTheService(GalleryUpgradeError):
    """What answers at this address is no service of this kind, or one of another time."""


class Failed(GalleryUpgradeError):
    """What was waited for has ended, but not as it should."""

    def __init__(self, message: str, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class Problem(GalleryUpgradeError):
    """An answer that is an error. `errors` lists details where the service gives them; `type` names the kind."""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        type: str = "about:blank",
        errors: Sequence[dict[str, Any]] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.type = type
        self.errors = list(errors)
        self.retry_after_seconds = retry_after_seconds


class BadRequest(Problem):
    """400, and every other refusal of a request that has no class of its own."""


class Unauthorized(Problem):
    """401: a key is needed, or this one is not known."""


class Forbidden(Problem):
    """403: the key may not do this."""


class NotFound(Problem):
    """404."""


class Conflict(Problem):
    """409: the request is well formed, but the present state refuses it."""


class Gone(Problem):
    """410: begin again."""


class TooLarge(Problem):
    """413."""


class Unprocessable(Problem):
    """422: the payload itself is wrong."""


class TooManyRequests(Problem):
    """429: more is asked for than can be answered now."""


class Unavailable(Problem):
    """502, 503, 504: nothing is wrong with the request."""


class ServiceFailed(Problem):
    """Every other 5xx."""


BY_STATUS: dict[int, type[Problem]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    422: Unprocessable,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def status_class(status: int) -> type[Problem]:
    """Return the class of a status."""
    return BY_STATUS.get(status, BadRequest if status < 500 else ServiceFailed)


def problem_class(kind: str, status: int) -> type[Problem]:
    """Return the class of a problem's `type`; of its status where this client does not know the type."""
    from gallery_upgrade.problems import BY_TYPE

    found = BY_TYPE.get(kind)
    by_status = status_class(status)
    return found if found is not None and issubclass(found, by_status) else by_status
