"""`ImageSource`: reads the image that a URI names, if the operator lets the service read there."""

from service.image_sources.errors import ImageNotRead, LocationNotAllowed
from service.image_sources.local import read_local
from service.image_sources.locations import WEB, Location, parse_location, parse_prefixes
from service.image_sources.remote import RemoteReader
from service.image_sources.web import WebReader
from service.settings import Settings


class ImageSource:
    """Made once per process; safe to use from many threads. Without prefixes in the settings, it reads nothing."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ValueError` with a sentence where the setting `images` is not a list of prefixes."""
        self._prefixes = parse_prefixes(settings.images)
        self._max_bytes = settings.max_image_bytes
        self._web = WebReader(settings.image_read_seconds)
        self._remote = {
            prefix: RemoteReader(prefix, settings.image_read_seconds, settings.image_reads_at_once)
            for prefix in self._prefixes
            if prefix.scheme not in ("file", *WEB)
        }

    def check(self, uri: str) -> None:
        """Raise `LocationNotAllowed` (422) unless the URI lies below a prefix; nothing is reached."""
        self._allowed(uri)

    def check_listed(self) -> None:
        """Raise `LocationNotAllowed` (422) where the operator lists no prefix at all."""
        if not self._prefixes:
            raise LocationNotAllowed("This service reads no images: its operator lists no prefix in GALLERY_IMAGES.")

    def read(self, uri: str) -> bytes:
        """Return the image's bytes, at most as many as an image may have.

        Raises `ImageNotRead` (422) with a sentence: `LocationNotAllowed` where nothing was reached, or no further than
        to a listed place, and `ImageAway` where trying again later may help.
        """
        location, prefix = self._allowed(uri)
        data = self._read(location, prefix)
        if len(data) > self._max_bytes:
            raise ImageNotRead(f"The image is larger than {self._max_bytes:,} bytes.")
        if not data:
            raise ImageNotRead("The image is empty.")
        return data

    def _read(self, location: Location, prefix: Location) -> bytes:
        most_bytes = self._max_bytes + 1  # one too many is enough to know
        if location.scheme == "file":
            return read_local(location, prefix, most_bytes)
        if location.scheme in WEB:
            return self._web.read(location, most_bytes)
        return self._remote[prefix].read(location, most_bytes)

    def _allowed(self, uri: str) -> tuple[Location, Location]:
        self.check_listed()
        location = parse_location(uri)
        for prefix in self._prefixes:
            if location.is_below(prefix):
                return location, prefix
        raise LocationNotAllowed("The image's URI is not below a prefix that the operator lists in GALLERY_IMAGES.")
