"""The replicas in one API process: every gallery's generations as indexes that follow the rows by revision.

A replica holds each complete generation (the active one, and the previous one until finalize) and the next one as soon
as its index is published. So cutover and rollback are one reference assignment here, and nobody waits for an
index to load. No SQL and no HTTP: rows come from a `GenerationSource`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from service import logs
from service.index.served import (
    GalleryState,
    GenerationGone,
    GenerationSource,
    GenerationState,
    NotServed,
    ServedGeneration,
    follow,
)

events = logs.Events(__name__)

_SWITCH_TRIES = 5
_CHANGES_TOGETHER_SECONDS = 0.005


@dataclass
class _GalleryReplica:
    """`opening` is held while a generation is loaded, `lock` for the moments in which what is held follows."""

    opening: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    revision: int = -1
    held: dict[int, ServedGeneration] = field(default_factory=dict)
    active: ServedGeneration | None = None
    next: ServedGeneration | None = None


class Replicas:
    """All galleries of this process, followed by one background thread and by the requests that write.

    Once everything that there was at the start is loaded, another thread loads what appears: new generations, and newer
    index files of those that are held. It loads one index at a time, and following never waits for it. While a newer
    file is loaded, and only then, memory holds two indexes of one generation.
    """

    def __init__(self, source: GenerationSource, follow_every_seconds: float, opening_seconds: float = 2.0) -> None:
        """`opening_seconds` is how long a request waits for another thread that loads what it needs."""
        self._source = source
        self._follow_every_seconds = follow_every_seconds
        self._opening_seconds = opening_seconds
        self._galleries: dict[int, _GalleryReplica] = {}
        self._lock = threading.Lock()
        self._tried = threading.Event()
        self._loaded = threading.Event()
        self._last_failures: dict[str, str] = {}
        self._changed: set[int] = set()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="replicas", daemon=True)
        self._loading: threading.Thread | None = None

    def start(self) -> None:
        """Load what is there and follow it, in the background."""
        self._thread.start()

    @property
    def is_loaded(self) -> bool:
        """Whether every gallery that there was at the start was loaded once."""
        return self._loaded.is_set()

    @property
    def has_tried(self) -> bool:
        """Whether it was tried once to load every gallery that there was at the start: one that cannot be loaded keeps
        this process from being loaded, and no other gallery from being served."""
        return self._tried.is_set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        for thread in (self._thread, self._loading):
            if thread is not None and thread.is_alive():
                thread.join(timeout=30)

    def note_change(self, gallery_id: int, revision: int | None) -> None:
        """Follow a gallery soon, without waiting for the next round, unless what is here is at `revision` already; None
        where its generations changed."""
        if revision is not None and self._replica(gallery_id).revision >= revision:
            return
        with self._lock:
            self._changed.add(gallery_id)
        self._wake.set()

    def answers_by(self, gallery_id: int, generation_id: int) -> bool:
        """Return whether queries here are answered by the generation, which is the active one in the gallery's row, or
        by one that is active since; load it if need be."""
        replica = self._replica(gallery_id)
        if replica.active is not None and replica.active.generation_id == generation_id:
            return True
        return any(self._is_switched(gallery_id) for _ in range(_SWITCH_TRIES))

    def _is_switched(self, gallery_id: int) -> bool:
        """Follow a gallery, and return whether its active generation answers; where it has gone, none is to."""
        self.sync_generations(gallery_id)
        active = self._replica(gallery_id).active
        states = self._source.galleries(only=gallery_id)
        return not states or (active is not None and active.generation_id == states[0].active_generation_id)

    def active(self, gallery_id: int, generation_id: int | None) -> ServedGeneration:
        """Return the serving pair of the active generation; take it once per request. Loads it when it is new here.

        `generation_id` is the active generation in the gallery's row: one that is held already is flipped to at once,
        and while another is still loading here, the present one goes on answering. Raises `NotServed`.
        """
        replica = self._replica(gallery_id)
        if replica.active is None:
            self.sync(gallery_id, 0)
        elif replica.active.generation_id != generation_id and generation_id in replica.held:
            self.refresh(gallery_id)
        if replica.active is None:
            raise NotServed(f"No generation of gallery {gallery_id} is loaded here.")
        return replica.active

    def next(self, gallery_id: int) -> ServedGeneration | None:
        """Return the pair of the open upgrade's generation, or None until its index is published."""
        if self._replica(gallery_id).next is None:
            self.refresh(gallery_id, every_generation=True)
        return self.loaded_next(gallery_id)

    def pinned(self, gallery_id: int, generation_id: int) -> ServedGeneration | None:
        """Return the pair of a generation that is stored and has an index; loads it when it is new here."""
        if self.loaded(gallery_id, generation_id) is None:
            self.refresh(gallery_id, every_generation=True)
        return self.loaded(gallery_id, generation_id)

    def loaded_next(self, gallery_id: int) -> ServedGeneration | None:
        """Return the pair of the open upgrade's generation if it is loaded here already; looks for nothing."""
        return self._replica(gallery_id).next

    def loaded(self, gallery_id: int, generation_id: int) -> ServedGeneration | None:
        """Return the pair of a generation if it is loaded here already; looks for nothing."""
        return self._replica(gallery_id).held.get(generation_id)

    def sync(self, gallery_id: int, revision: int) -> None:
        """Follow one gallery until it has at least `revision`: what a request wrote, its own next query sees."""
        replica = self._replica(gallery_id)
        if replica.revision < revision or replica.active is None:
            self.sync_generations(gallery_id)

    def sync_generations(self, gallery_id: int) -> None:
        """Follow one gallery now, as `refresh` does, although a generation of it is dropped just then."""
        try:
            self.refresh(gallery_id)
        except GenerationGone:  # since it was seen to be there: what was written must be seen all the same
            self.refresh(gallery_id)

    def refresh(self, gallery_id: int, *, every_generation: bool = False) -> None:
        """Follow one gallery now, and flip to the generation that is active now.

        A next generation that is still to be loaded is left to the background, unless `every_generation` is asked for.
        """
        replica = self._replica(gallery_id)
        for state in self._source.galleries(only=gallery_id):
            if self._open_missing(replica, state, every_generation):
                self.refresh(gallery_id)  # what was written meanwhile is applied before it is served
                return
            with replica.lock:
                self._apply(replica, state)

    def forget(self, gallery_id: int) -> None:
        """Let go of a deleted gallery."""
        with self._lock:
            self._galleries.pop(gallery_id, None)

    def sizes(self) -> dict[int, int]:
        """Return how many vectors each gallery's active index holds."""
        with self._lock:
            replicas = dict(self._galleries)
        return {id_: len(r.active.index) for id_, r in replicas.items() if r.active is not None}

    def revisions(self) -> dict[int, int]:
        """Return how far each gallery was followed here; -1 where nothing of it is loaded."""
        with self._lock:
            return {id_: replica.revision for id_, replica in self._galleries.items()}

    def _replica(self, gallery_id: int) -> _GalleryReplica:
        with self._lock:
            return self._galleries.setdefault(gallery_id, _GalleryReplica())

    def _follow(self) -> None:
        """Follow every gallery each `follow_every_seconds`, and in between those of which a change was noted."""
        round_due = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= round_due:
                self._try("replica.follow_failed", self._follow_all)
                round_due = time.monotonic() + self._follow_every_seconds
            elif self._wake.wait(round_due - time.monotonic()):
                self._wake.clear()
                self._try("replica.follow_failed", self._follow_changed)

    def _follow_all(self) -> None:
        states = self._source.galleries()
        with self._lock:
            for gallery_id in self._galleries.keys() - {state.id for state in states}:
                del self._galleries[gallery_id]
        if self._follow_each(states) and not any(map(self._is_missing, states)):
            self._loaded.set()
        self._tried.set()

    def _follow_changed(self) -> None:
        self._stopping.wait(_CHANGES_TOGETHER_SECONDS)  # of many writes in a row, one look sees several
        with self._lock:
            changed, self._changed = self._changed, set()
        for gallery_id in changed:
            self._follow_each(self._source.galleries(only=gallery_id))

    def _follow_each(self, states: Sequence[GalleryState]) -> bool:
        """Follow galleries, have loaded what is missing here, and return whether all could be followed."""
        followed = [
            self._try(
                "replica.sync_failed",
                partial(self._follow_gallery, self._replica(state.id), state),
                gallery_id=state.id,
            )
            for state in states
        ]
        to_load = [state.id for state in states if self._is_missing(state) or self._outdated(state)]
        if to_load and (self._loading is None or not self._loading.is_alive()):
            self._loading = threading.Thread(target=self._load_each, args=(to_load,), name="loading", daemon=True)
            self._loading.start()
        return all(followed)

    def _load_each(self, gallery_ids: list[int]) -> None:
        for gallery_id in gallery_ids:
            if not self._stopping.is_set():
                self._try("replica.load_failed", partial(self._load, gallery_id), gallery_id=gallery_id)

    def _load(self, gallery_id: int) -> None:
        self.refresh(gallery_id, every_generation=True)
        for state in self._source.galleries(only=gallery_id):
            for generation in self._outdated(state):
                self._fold_in(state, generation)

    def _is_missing(self, state: GalleryState) -> bool:
        held = self._replica(state.id).held
        return any(generation.id not in held for generation in state.generations)

    def _outdated(self, state: GalleryState) -> list[GenerationState]:
        """Return the generations that are held here and have another index file than the newest that was tried."""
        held = self._replica(state.id).held
        with_file = [generation for generation in state.generations if generation.index_sha256 is not None]
        return [g for g in with_file if g.id in held and held[g.id].index_sha256 != g.index_sha256]

    def _fold_in(self, state: GalleryState, generation: GenerationState) -> None:
        """Serve a generation from its newer index file.

        The new index first follows the rows beside the one that serves. Then, under the replica's lock, it is brought
        to the same revision and takes its place: a write that was found before is found after.
        """
        replica = self._replica(state.id)
        served = replica.held.get(generation.id)
        if served is None:
            return

        fresh = self._source.open_file(state.id, generation.id)
        if fresh is None:
            served.index_sha256 = generation.index_sha256
            return

        follow(self._source, fresh, served.revision, look_for_pending=True)
        with replica.lock:
            if replica.held.get(generation.id) is not served:
                return  # dropped meanwhile
            follow(self._source, fresh, served.revision, look_for_pending=not served.is_settled)
            fresh.is_settled = served.is_settled
            replica.held[generation.id] = fresh
            if replica.active is served:
                replica.active = fresh
            if replica.next is served:
                replica.next = fresh

        events.info("replica.folded_in", gallery_id=state.id, generation_id=generation.id, rows=len(fresh.index))

    def _try(self, event: str, step: Callable[[], None], **fields: object) -> bool:
        """Run one step of a loop that must outlive any single failure: log it, and let the next round try again.

        A failure that only repeats itself, as in an outage, is a line and no traceback.
        """
        try:
            step()
        except Exception as error:  # noqa: BLE001 - this loop is the process's only follower; logged, then retried
            key, reason = f"{event} {fields}", f"{type(error).__name__}: {error}"
            if self._last_failures.get(key) == reason:
                events.warning(event, reason="the same again", **fields)
            else:
                events.exception(event, error, **fields)
            self._last_failures[key] = reason
            return False
        return True

    def _follow_gallery(self, replica: _GalleryReplica, state: GalleryState) -> None:
        if not self.is_loaded:
            self.refresh(state.id, every_generation=True)
        elif replica.lock.acquire(blocking=False):  # a request that is syncing it does the same work
            try:
                self._apply(replica, state)
            finally:
                replica.lock.release()

    def _open_missing(self, replica: _GalleryReplica, state: GalleryState, every_generation: bool) -> bool:
        """Load the active generation, or every one, beside what is served; return whether there was one to load.

        It waits for nothing if nothing is to be loaded. If another thread is loading for long, it returns without.
        """
        wanted = [g.id for g in state.generations if every_generation or g.id == state.active_generation_id]
        if all(id_ in replica.held for id_ in wanted) or not replica.opening.acquire(timeout=self._opening_seconds):
            return False
        try:
            for generation_id in wanted:
                if generation_id not in replica.held:
                    replica.held[generation_id] = self._source.open(state.id, generation_id)
        finally:
            replica.opening.release()
        return True

    def _apply(self, replica: _GalleryReplica, state: GalleryState) -> None:
        """Bring what is held to `state`, and only then flip the references; the replica's lock is held.

        While the active generation is still to be loaded here, the one that was active follows on, and answers.
        """
        if state.revision < replica.revision:
            return  # an older snapshot than what a request applied meanwhile
        for generation in state.generations:
            served = replica.held.get(generation.id)
            if served is not None:
                follow(self._source, served, state.revision, look_for_pending=not served.is_settled)
                served.is_settled = not generation.is_next
        replica.next = next((replica.held[g.id] for g in state.generations if g.is_next and g.id in replica.held), None)
        replica.revision = state.revision
        if state.active_generation_id not in replica.held:
            return
        replica.active = replica.held[state.active_generation_id]
        for generation_id in set(replica.held) - {generation.id for generation in state.generations}:
            del replica.held[generation_id]
