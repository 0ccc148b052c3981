"""Services by name, in a file of the user's: `~/.config/gallery-upgrade/config.toml`.

current = "home"

[contexts.home]
url = "http://127.0.0.1:8000"
key = "…"
"""

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


class BadContexts(Exception):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True)
class Context:
    url: str
    key: str | None = None


@dataclass
class Contexts:
    """All contexts by their names, and which one is used when none is named."""

    current: str | None = None
    named: dict[str, Context] = field(default_factory=dict)


def config_path() -> Path:
    """Return where the file is: GALLERY_CONFIG, or below XDG_CONFIG_HOME."""
    if "GALLERY_CONFIG" in os.environ:
        return Path(os.environ["GALLERY_CONFIG"])
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "gallery-upgrade" / "config.toml"


def read_contexts(path: Path) -> Contexts:
    """Return what the file has; nothing where there is none. Raises `BadContexts`."""
    if not path.exists():
        return Contexts()
    try:
        document = tomllib.loads(path.read_text())
        named = {name: Context(of["url"], of.get("key")) for name, of in document.get("contexts", {}).items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadContexts(f"{path} is not a file of contexts: {error}.") from error
    return Contexts(document.get("current"), named)


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Write the file, which its owner alone may read: it has keys."""
    lines = [] if contexts.current is None else [f"current = {_text(contexts.current)}"]
    for name, context in contexts.named.items():
        lines += ["", f"[contexts.{_text(name)}]", f"url = {_text(context.url)}"]
        lines += [] if context.key is None else [f"key = {_text(context.key)}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write("\n".join(lines).lstrip() + "\n")
    written.replace(path)


def _text(value: str) -> str:
    """Return a string of TOML, whose basic strings are JSON's."""
    return json.dumps(value, ensure_ascii=False)
