"""The base of every error a client may see. Subclasses sit beside the rule that raises them; `service.api.problems`
renders them all as problem+json."""

from collections.abc import Mapping


class GalleryError(Exception):
    """A refusal with a sentence for the client and its HTTP status; `errors` lists details where they help,
    `retry_after_seconds` says when the same request may succeed, and `headers` say more of that."""

    status_code = 400
    retry_after_seconds: int | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, errors: list[dict[str, object]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors


class Unauthorized(GalleryError):
    """Nobody knows who asks."""

    status_code = 401


class Forbidden(GalleryError):
    """Whoever asks may not do this."""

    status_code = 403


class NotFound(GalleryError):
    status_code = 404


class Conflict(GalleryError):
    """The request is well formed, but the present state refuses it."""

    status_code = 409


class Gone(GalleryError):
    """It was there once, or never was, and will not be again."""

    status_code = 410


class TooLarge(GalleryError):
    status_code = 413


class Unprocessable(GalleryError):
    """The payload itself is wrong."""

    status_code = 422


class Unavailable(GalleryError):
    """Nothing is wrong with the request; trying again later is right."""

    status_code = 503
    retry_after_seconds = 1


class TooManyRequests(GalleryError):
    """More is asked for than can be answered now."""

    status_code = 429

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
