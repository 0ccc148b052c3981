"""Where the API listens."""

import errno
import socket
from dataclasses import dataclass
from pathlib import Path


class ServeError(Exception):
    """What is to be served cannot start or go on, with a sentence for the operator."""


@dataclass(frozen=True)
class Address:
    """Where the API listens, and the files of its certificate, if it speaks TLS."""

    host: str
    port: int
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def options(self) -> list[str]:
        """The options of `gallery-upgrade api`."""
        return ["--host", self.host, "--port", str(self.port), *self.certificate_options]

    @property
    def certificate_options(self) -> list[str]:
        """Those that name the files of its certificate."""
        files = {"--ssl-certfile": self.certificate, "--ssl-keyfile": self.certificate_key}
        return [part for name, path in files.items() if path is not None for part in (name, str(path))]

    def url(self, host: str | None = None) -> str:
        """Return the address of the server, as reached by another name; an IPv6 address stands in brackets."""
        name = host or self.host
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://[{name}]:{self.port}" if ":" in name else f"{scheme}://{name}:{self.port}"

    def bind(self) -> list[socket.socket]:
        """Take the port at every address that the host's name has. Nobody is heard yet: who connects is refused.

        Raises `ServeError` where the port is taken, or may not be, at one of them.
        """
        bound: list[socket.socket] = []
        failure: OSError | None = None
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, place in dict.fromkeys(found):
                listener = socket.socket(family, kind, protocol)
                bound.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    listener.bind(place)
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise
                    failure = error  # a name may have an IPv6 address on a machine that has none
                    bound.pop().close()
            if failure is not None and not bound:
                raise failure
        except OSError as error:
            for listener in bound:
                listener.close()
            raise ServeError(
                f"Cannot listen on {self.host}, port {self.port}: {error.strerror}. Choose another --port."
            ) from error
        return bound
