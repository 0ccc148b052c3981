"""The URL of a gallery in another store, in parts. What it says of a password is shown nowhere."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from service.connectors.store import StoreRefused


@dataclass(frozen=True)
class Address:
    """A URL's scheme, place and parameters; `path` is decoded."""

    scheme: str
    path: str
    parameters: Mapping[str, str] = field(repr=False)
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def checked(self, required: Collection[str], optional: Collection[str] = ()) -> "Address":
        """Return itself; raises `StoreRefused` for parameters that are missing, empty or unknown."""
        known = f"A URL of {self.scheme} has the parameters {', '.join(required)}"
        known += f", and may have {', '.join(optional)}." if optional else "."
        unknown = sorted(set(self.parameters) - {*required, *optional})
        if unknown:
            raise StoreRefused(f"{known} Unknown: {', '.join(unknown)}.")
        missing = [name for name in required if not self.parameters.get(name)]
        if missing:
            raise StoreRefused(f"{known} Missing: {', '.join(missing)}.")
        return self

    @property
    def file(self) -> Path:
        """The path of a local file or folder, which is absolute. Raises `StoreRefused`."""
        if self.host or not self.path.startswith("/"):
            raise StoreRefused(f"A local path is written {self.scheme}:///absolute/path.")
        return Path(self.path.rstrip("/") or "/")

    @property
    def server(self) -> str:
        """The URL of an HTTP server, for schemes such as qdrant+https, without user and password."""
        if not self.host:
            raise StoreRefused(f"A server is written {self.scheme}://host:port/.")
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme.rpartition('+')[2]}://{self.host}{port}{self.path.rstrip('/')}"


def parse(url: str) -> Address:
    """Return the parts of a URL. Raises `StoreRefused`, whose sentence does not repeat the URL."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        port = parts.port
    except ValueError:  # whose text may hold a part of the password
        sentence = "The URL of the store cannot be read. Is a password percent-encoded, the query name=value&…?"
        raise StoreRefused(sentence) from None
    twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
    if twice:
        raise StoreRefused(f"A parameter is given once: {', '.join(twice)}.")
    return Address(
        scheme=parts.scheme,
        path=unquote(parts.path),
        parameters=dict(pairs),
        host=parts.hostname,
        port=port,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )
