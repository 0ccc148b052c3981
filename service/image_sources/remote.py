"""Reading object stores and whatever else fsspec reaches, with the credentials of the process's environment."""

import errno
from concurrent.futures import ThreadPoolExecutor

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from service import logs
from service.image_sources.errors import ImageAway, ImageNotRead
from service.image_sources.locations import Location

events = logs.Events(__name__)

# File systems that are made of others, or read what a URI itself says: a prefix would not bound them.
_UNBOUNDED = {"blockcache", "cached", "data", "dir", "filecache", "generic", "libarchive", "reference", "simplecache"}
_UNBOUNDED |= {"tar", "zip"}


class RemoteReader:
    """Reads below one prefix; safe to use from many threads. Of file systems that cannot be told to stop, at most as
    many reads as there are threads go on after their time, and the ones behind them wait in vain."""

    def __init__(self, prefix: Location, seconds: float, threads: int) -> None:
        self._url = f"{prefix.scheme}://{prefix.authority}{prefix.path}"
        self._seconds = seconds
        try:
            kind = fsspec.get_filesystem_class(prefix.scheme)
        except ImportError as error:
            how = "pip install 'gallery-upgrade[s3]'" if prefix.scheme in ("s3", "s3a") else str(error)
            raise ValueError(f"GALLERY_IMAGES: what reads {prefix.scheme}:// is not installed: {how}") from error
        except ValueError as error:
            raise ValueError(f"GALLERY_IMAGES: nothing is known that reads {prefix.scheme}://.") from error
        if prefix.scheme in _UNBOUNDED or issubclass(kind, LocalFileSystem):
            raise ValueError(
                f"GALLERY_IMAGES: {prefix.scheme}:// is not accepted; list the places themselves (file://…)."
            )
        self._can_stop = bool(kind.async_impl)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"images-{prefix.scheme}")
        self._filesystem = fsspec.core.url_to_fs(self._url, skip_instance_cache=True)[0] if self._can_stop else None

    def read(self, location: Location, most_bytes: int) -> bytes:
        """Return up to `most_bytes` of an object. Raises `ImageNotRead` (422), within the time limit."""
        url = f"{location.scheme}://{location.authority}{location.path}"
        try:
            if self._filesystem is None:
                return self._threads.submit(self._read_apart, url, most_bytes).result(self._seconds)
            path = self._filesystem._strip_protocol(url)
            loop = self._filesystem.loop
            read: bytes = sync(loop, self._filesystem._cat_file, path, start=0, end=most_bytes, timeout=self._seconds)
            return read
        except FileNotFoundError as error:
            raise ImageNotRead("There is no such object.") from error
        except PermissionError as error:
            raise ImageNotRead("The store refuses the object (403): its credentials may not read it.") from error
        except IsADirectoryError as error:
            raise ImageNotRead("It is a folder, not an object.") from error
        except TimeoutError as error:
            raise ImageAway(f"The store did not answer in full within {self._seconds:g} s.") from error
        except Exception as error:
            if getattr(error, "errno", None) == errno.EINVAL:  # what s3fs makes of a range of an object without bytes
                return b""
            # Stores have errors of any class; most that are none of the above pass. What they say names endpoints.
            events.warning("images.store_failed", scheme=location.scheme, error=f"{type(error).__name__}: {error}")
            raise ImageAway(f"The store cannot give the object ({type(error).__name__}).") from error

    def _read_apart(self, url: str, most_bytes: int) -> bytes:
        """Read in one of the threads; fsspec keeps one file system for each of them."""
        filesystem = fsspec.core.url_to_fs(self._url)[0]
        read: bytes = filesystem.cat_file(filesystem._strip_protocol(url), start=0, end=most_bytes)
        return read
