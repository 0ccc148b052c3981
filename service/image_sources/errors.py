"""Why an image was not read. Sentences never repeat a URI: a signed one is a key."""

from service.errors import Unprocessable


class ImageNotRead(Unprocessable):
    """The image could not be read from where it is said to be."""


class LocationNotAllowed(ImageNotRead):
    """The place is not one that the operator lists, or leads out of it."""


class ImageAway(ImageNotRead):
    """The place does not answer, is too slow or overloaded: the same image may be read later."""
