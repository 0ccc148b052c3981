"""The parts of an API process whose replicas read through a source that a test watches."""

from dataclasses import replace

from service.api.dependencies import Parts
from service.app import make_parts
from service.index.replica import Replicas
from service.settings import Settings
from tests.fakes import WatchedSource

_OPENING_SECONDS = 0.05  # so that a test need not wait for what another thread loads


def watched_parts(settings: Settings) -> tuple[Parts, WatchedSource]:
    parts = make_parts(settings)
    source = WatchedSource(parts.engine.follow(parts.search.encoders))
    replicas = Replicas(source, settings.follow_every_seconds, _OPENING_SECONDS)
    watched = replace(
        parts,
        replicas=replicas,
        writer=replace(parts.writer, replicas=replicas),
        search=replace(parts.search, replicas=replicas),
        upgrade_actions=replace(parts.upgrade_actions, replicas=replicas),
    )
    return watched, source
