"""Answering a query: one serving pair, its encoder, its index, and the items that it found."""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.gallery.current_rows import read_current_vectors
from service.domain.gallery.galleries import Bake, Serving, find_serving
from service.domain.gallery.generations import (
    GenerationKey,
    NoNextGeneration,
    NoSuchGeneration,
    generation_stage,
    get_stored_generation,
)
from service.domain.gallery.items import UnknownItem
from service.domain.generation_stage import GenerationStage
from service.domain.indexes.query_samples import QuerySamples
from service.domain.judging.shadowed_queries import Shadowing
from service.domain.registry.versions import encoder_of
from service.domain.search import bakes, canary, groups, pages
from service.domain.search.answers import Answer, InvalidQuery, Neighbor, Query, Which
from service.domain.search.canary_counts import CanaryCounts
from service.domain.search.candidates import allowed_items, canonical_ids, excluded_items, nearest_of
from service.domain.search.cursors import FIRST, Cursor, CursorOutdated, InvalidCursor, digest_of_query
from service.domain.search.described_items import DescribedItem, DescribedItems
from service.domain.search.filters import compile_filter
from service.domain.search.rates import SearchRates
from service.errors import Conflict, GalleryError, Unavailable
from service.index.protocol import NO_ID, Ids, IndexGone, SearchResult, Vectors
from service.index.replica import Replicas
from service.index.served import GenerationGone, NotServed, ServedGeneration, difference
from service.networks.encoders import (
    Encoders,
    EncodingFailed,
    EncodingStopped,
    VersionEncoder,
    VersionWithoutNetworks,
)
from service.networks.micro_batching import ImageQueryMetrics
from service.tables import Item

_LONGEST = 1e18  # its square, and what is added to that, is within float32
_ATTEMPTS = 3

events = logs.Events(__name__)


class WrongSpace(Conflict):
    """The query was said to be of another model version than the generation that answers."""


class NoCurrentEmbedding(Conflict):
    """A query by an item that the generation which answers has no current embedding of yet."""


@dataclass(frozen=True)
class _Probe:
    """Query vectors (Q, D) float32, and the items that they are the embeddings of, (Q,) int64, to be left out. Of a
    page by an item, that item's `revision`."""

    vectors: Vectors
    own_ids: Ids | None = None
    revision: int | None = None


_Probing = Callable[[ServedGeneration], _Probe]


@dataclass(frozen=True)
class Search:
    """What searches need, made once per process; safe to use from many threads."""

    database: Database
    encoders: Encoders
    replicas: Replicas
    samples: QuerySamples
    shadowing: Shadowing
    metrics: ImageQueryMetrics
    canary_counts: CanaryCounts
    described_items: DescribedItems
    rates: SearchRates

    def by_image(self, gallery: str, data: bytes, query: Query) -> Answer:
        """Return the nearest items of an image, encoded by the generation's own model version.

        Its embedding may be kept as a sample, and a loaded candidate, or the previous generation of an upgrade that is
        baked, be asked too, off this path. Of a page it is encoded by itself, so that every page has the same vector.
        Raises `VersionWithoutNetworks` (409) where nothing encodes it.
        """
        if query.cursor is not None:
            return self._page(gallery, query, ["image", hashlib.sha256(data).hexdigest()], partial(self._apart, data))
        serving = self._serving(gallery)

        def encoded(served: ServedGeneration) -> _Probe:
            encoder = self._encoder_of(served)
            vectors = encoder.encode_embedding(lambda: [self.encoders.images.reduce(data, [encoder.preprocessing])])
            self.samples.note(served.gallery_id, served.version.id, vectors)
            candidate = self.replicas.loaded_next(served.gallery_id)
            if candidate is not None and candidate is not served and query.generation in (None, "active"):
                self.shadowing.offer(data, vectors[0], served, candidate)
            return _Probe(vectors)

        answer = self._answer_of_candidate(serving, query, encoded)
        return answer or self._answer_baked(gallery, serving, data, query, encoded)

    def by_vectors(self, gallery: str, vectors: Sequence[Sequence[float]], query: Query) -> Answer:
        """Return the nearest items of each vector; vectors of another space are a 4xx, never a wrong answer. Some may
        be kept as samples."""

        def checked(served: ServedGeneration) -> _Probe:
            array = _checked(served, vectors, query.model_version)
            if query.cursor in (None, FIRST):
                self.samples.note(served.gallery_id, served.version.id, array)
            return _Probe(array)

        if query.cursor is not None:
            _check_one(len(vectors))
            return self._page(gallery, query, ["vector", *vectors[0]], checked)
        return self._answer(gallery, query, checked)

    def by_vectors_together(
        self, gallery: str, asked: Sequence[Sequence[Sequence[float]]], query: Query
    ) -> list[Answer]:
        """Answer several requests that differ in nothing but their vectors by one look-up and one search, each as
        `by_vectors` would. `query` has no cursor and no groups. Raises what any one of them is refused for."""
        ends = list(itertools.accumulate(map(len, asked)))
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

        def checked(served: ServedGeneration) -> _Probe:
            array = _checked(served, [vector for vectors in asked for vector in vectors], query.model_version)
            for part in parts:
                self.samples.note(served.gallery_id, served.version.id, array[part])
            return _Probe(array)

        answer = self._answer(gallery, query, checked, searches=len(asked))
        return [replace(answer, neighbors=answer.neighbors[part]) for part in parts]

    def by_items(self, gallery: str, external_ids: Sequence[str], query: Query, *, exclude_self: bool) -> Answer:
        """Return the nearest items of each item, by its embedding in the generation that answers.

        With `exclude_self`, no item is its own neighbour. Raises `UnknownItem` (404) for an id without a live item, and
        `NoCurrentEmbedding` (409) for an item that an upgrade has yet to bring to the generation.
        """
        external_ids = canonical_ids(external_ids)

        def stored(served: ServedGeneration) -> _Probe:
            with self.database.session_scope(snapshot=True) as session:
                ids = _item_ids(session, gallery, served.gallery_id, external_ids)
                vectors = _embeddings_of(session, served, ids, external_ids)
                revision = None if query.cursor is None else _revision_of(session, ids[0])
            return _Probe(vectors, ids if exclude_self else None, revision)

        if query.cursor is not None:
            _check_one(len(external_ids))
            return self._page(gallery, query, ["item", external_ids[0], exclude_self], stored)
        return self._answer(gallery, query, stored)

    def _apart(self, data: bytes, served: ServedGeneration) -> _Probe:
        encoder = self._encoder_of(served)
        return _Probe(encoder.encode_embedding_apart([self.encoders.images.reduce(data, [encoder.preprocessing])]))

    def _answer_of_candidate(self, serving: Serving, query: Query, probe_for: _Probing) -> Answer | None:
        """Return a canary's answer; None for a query that is none, and where the candidate cannot answer it: then the
        active generation does."""
        trial = serving.canary
        if trial is None or query.generation is not None or query.max_distance is not None:
            return None  # a largest distance is one of the active space
        if not canary.takes(trial, query.canary_key):
            return None
        candidate = self.replicas.loaded_next(serving.gallery_id)
        if candidate is None:
            return None  # it is yet to be loaded here: the share waits
        try:
            answer = self._noted(serving, candidate, query, probe_for)
        except Exception as error:
            if not _is_fault(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            events.warning("canary.not_answered", upgrade_id=trial.upgrade_id, reason=reason)
            self.metrics.canary.labels(trial.upgrade_id, "active").inc()
            self.canary_counts.note(trial.upgrade_id, has_answered=False)
            return None
        self.metrics.canary.labels(trial.upgrade_id, "candidate").inc()
        self.canary_counts.note(trial.upgrade_id, has_answered=True)
        return answer

    def _answer_baked(self, gallery: str, serving: Serving, data: bytes, query: Query, probe_for: _Probing) -> Answer:
        """Search; where the query is one of a bake's share, have both generations compared off this path."""
        bake = serving.bake
        is_plain = query.max_distance is None and query.group_by is None
        is_comparable = query.generation in (None, "active") and is_plain
        if bake is None or not is_comparable or not self.shadowing.draws(bake.share):
            return self._answer(gallery, query, probe_for, serving)
        try:
            answer = self._answer(gallery, query, probe_for, serving)
        except Exception as error:
            if _is_fault(error):
                self.shadowing.run_later(partial(self._compare, serving, bake, data, query, has_failed=True))
            raise
        if answer.generation == serving.active_generation_id:
            self.shadowing.run_later(partial(self._compare, serving, bake, data, query, has_failed=False))
        return answer

    def _compare(
        self, serving: Serving, bake: Bake, data: bytes, query: Query, *, has_failed: bool
    ) -> Callable[[], None]:
        """Ask both generations of a bake, and return what notes it."""
        before = self.replicas.loaded(serving.gallery_id, bake.previous_generation_id)
        if before is None:
            return lambda: None  # it is yet to be loaded here, or is dropped by now
        after = self.replicas.loaded(serving.gallery_id, serving.active_generation_id)
        try:
            preprocessings = [self._encoder_of(each).preprocessing for each in (before, after) if each is not None]
        except VersionWithoutNetworks:
            return lambda: None  # only one of both can be asked
        image, query = self.encoders.images.reduce(data, preprocessings), replace(query, k=bakes.K)

        def ask(served: ServedGeneration) -> list[str]:
            vectors = self._encoder_of(served).encode_embedding_apart([image])
            answer = self._answer_from(serving, served, query, lambda _: _Probe(vectors))
            return [neighbor.item.id for neighbor in answer.neighbors[0]]

        return bakes.compare(self.database, bake, after, before, ask, has_failed=has_failed)

    def _encoder_of(self, served: ServedGeneration) -> VersionEncoder:
        return encoder_of(self.database, self.encoders, served.version)

    def _serving(self, gallery: str) -> Serving:
        return find_serving(self.database, gallery)

    def _page(self, gallery: str, query: Query, asked: list[Any], probe_for: _Probing) -> Answer:
        """Return a page of the neighbours of what was asked by, of the generation that answered the first page."""
        if query.group_by is not None:
            raise InvalidQuery("Groups have no pages: ask with group_by for more groups at once, or without a cursor.")
        if query.condition is not None:
            compile_filter(query.condition, 0)  # refused before it is digested
        serving = self._serving(gallery)
        digest = digest_of_query(serving.gallery_id, *asked, _options(query))
        after = None if query.cursor == FIRST else Cursor.of(query.cursor or "", digest)
        if after is not None and after.revision > serving.revision:
            raise InvalidCursor(f"Gallery {gallery!r} has not come to the cursor's revision.")

        def read(serving: Serving, served: ServedGeneration) -> Answer:
            began = time.monotonic()
            answer = self._page_from(serving, served, query, after, digest, probe_for)
            self.rates.note(serving.gallery_id, time.monotonic() - began)
            return answer

        generation = query.generation if after is None else after.generation_id
        return self._by_what_serves(gallery, generation, read, serving)

    def _answer(
        self, gallery: str, query: Query, probe_for: _Probing, known: Serving | None = None, searches: int = 1
    ) -> Answer:
        """Search the generation that the query is for; `known` is what was read of the gallery just now, and `searches`
        how many requests it is the answer of."""

        def search(serving: Serving, served: ServedGeneration) -> Answer:
            return self._noted(serving, served, query, probe_for, searches)

        return self._by_what_serves(gallery, query.generation, search, known)

    def _by_what_serves(
        self,
        gallery: str,
        generation: Which | None,
        search: Callable[[Serving, ServedGeneration], Answer],
        known: Serving | None,
    ) -> Answer:
        """Search; again, with the pair that is served by then, when the generation was dropped meanwhile."""
        for _ in range(_ATTEMPTS):
            serving, known = known or self._serving(gallery), None
            gallery_id = serving.gallery_id
            try:
                return search(serving, self._pair(serving, generation))
            except (ProgrammingError, GenerationGone, IndexGone, NotServed) as error:
                events.info("search.repeated", gallery_id=gallery_id, reason=f"{type(error).__name__}: {error}")
                with suppress(GenerationGone):
                    self.replicas.refresh(gallery_id)
        raise Unavailable("The gallery's generations change just now; try again.")

    def _pair(self, serving: Serving, generation: Which | None) -> ServedGeneration:
        if isinstance(generation, int):
            return self.replicas.pinned(serving.gallery_id, generation) or self._not_pinned(serving, generation)
        if generation == "next":
            served = self.replicas.next(serving.gallery_id)
            if served is None:
                raise NoNextGeneration("No open upgrade of this gallery has an index to ask yet.")
            return served
        return self.replicas.active(serving.gallery_id, serving.active_generation_id)

    def _not_pinned(self, serving: Serving, generation_id: int) -> NoReturn:
        """Say why a generation does not answer: it is not stored, its index is yet to be built, or to be loaded."""
        with self.database.session_scope() as session:
            stage = generation_stage(session, serving.gallery_id, generation_id)
        if stage is GenerationStage.BUILDING:
            raise NoNextGeneration(f"Generation {generation_id} has no index to ask yet.")
        if stage is GenerationStage.COMPLETE:
            raise NotServed(f"Generation {generation_id} is yet to be loaded here.")
        raise NoSuchGeneration(
            f"Generation {generation_id} of this gallery is not stored; {serving.active_generation_id} is active."
        )

    def _noted(
        self, serving: Serving, served: ServedGeneration, query: Query, probe_for: _Probing, searches: int = 1
    ) -> Answer:
        """Search for whoever waits for it, and note what that takes."""
        began = time.monotonic()
        answer = self._answer_from(serving, served, query, probe_for)
        self.rates.note(serving.gallery_id, time.monotonic() - began, searches)
        return answer

    def _answer_from(self, serving: Serving, served: ServedGeneration, query: Query, probe_for: _Probing) -> Answer:
        revision = served.revision  # read first: by the time the index is searched, it has followed at least as far
        probe = probe_for(served)
        allowed, passed_at = None, serving.revision
        excluded = None if probe.own_ids is None else probe.own_ids[:, None]
        if query.condition is not None:
            allowed, passed_at = allowed_items(self.database, served, query.condition)
        if query.exclude_id is not None or query.exclude_ids:
            excluded = excluded_items(self.database, served.gallery_id, query, len(probe.vectors))
        grouped: groups.Groups | None = None
        with self.metrics.index_seconds.time():
            if query.group_by is None:
                found = nearest_of(served, probe.vectors, query, allowed, excluded)
            else:
                grouped = self._grouped(served, probe.vectors, query, query.group_by, allowed, excluded)
                found = grouped.found
        with self.metrics.rows_seconds.time():
            items = self._described(serving, served, found.ids, passed_at)
        neighbors = _neighbors(found, items)
        answer = Answer(served.version.name, served.generation_id, revision, found.is_exact, neighbors)
        if grouped is None:
            return answer
        values = {item.id: grouped.values[id_] for id_, item in items.items()}
        best = [[replace(each, group=values[each.item.id]) for each in own] for own in neighbors]
        return replace(answer, neighbors=best, complete=grouped.complete)

    def _described(
        self, serving: Serving, served: ServedGeneration, ids: Ids, passed_at: int
    ) -> dict[int, DescribedItem]:
        """Return what is said of items: nothing older than the filter that they passed, and the vectors by which they
        were found."""
        is_active = served.generation_id == serving.active_generation_id
        at = max(passed_at, served.revision) if is_active else None
        key = GenerationKey(served.gallery_id, served.generation_id)
        return self.described_items.of(self.database, key, ids, at)

    def _grouped(
        self,
        served: ServedGeneration,
        vectors: Vectors,
        query: Query,
        field: str,
        allowed: Ids | None,
        excluded: Ids | None,
    ) -> groups.Groups:
        def search(rows: Ids, count: int) -> SearchResult:
            own = None if excluded is None else excluded[rows]
            return nearest_of(served, vectors[rows], replace(query, k=count), allowed, own)

        return groups.find_groups(self.database, field, query.k, len(vectors), search)

    def _page_from(
        self,
        serving: Serving,
        served: ServedGeneration,
        query: Query,
        after: Cursor | None,
        digest: bytes,
        probe_for: _Probing,
    ) -> Answer:
        """Read a page once the index has followed to its revision: the first page is of what was committed before."""
        at_least = serving.revision if after is None else after.revision
        if served.revision < at_least:
            self.replicas.sync_generations(served.gallery_id)
            served = self.replicas.loaded(served.gallery_id, served.generation_id) or served
        if served.revision < at_least:
            raise NotServed(f"Generation {served.generation_id} has yet to follow to revision {at_least} here.")
        revision = served.revision if after is None else after.revision
        probe = probe_for(served)
        if probe.revision is not None and probe.revision > revision:
            raise CursorOutdated("The item that is asked by was written since the first page; begin again with it.")

        allowed, passed_at = None, serving.revision
        if query.condition is not None:
            allowed, passed_at = allowed_items(self.database, served, query.condition)
        excluded = np.empty(0, np.int64) if probe.own_ids is None else probe.own_ids
        if query.exclude_id is not None or query.exclude_ids:
            excluded = excluded_items(self.database, served.gallery_id, query, 1)[0]
        key = GenerationKey(served.gallery_id, served.generation_id)
        wanted = pages.Wanted(
            probe.vectors[0], key, revision, query.k, after, allowed, excluded[excluded != NO_ID], query.max_distance
        )
        with self.metrics.index_seconds.time(), self.database.reading() as connection:
            page = pages.read_page(connection, served.index, wanted)
        with self.metrics.rows_seconds.time():
            items = self._described(serving, served, page.ids, passed_at)
        neighbors = [
            Neighbor(items[id_], distance)
            for id_, distance in zip(page.ids.tolist(), page.distances.tolist(), strict=True)
            if id_ in items
        ]
        ends = None
        if page.has_more:
            position, distance, item_id = wanted.position + len(page.ids), page.distances[-1], page.ids[-1]
            ends = str(Cursor(served.generation_id, revision, position, float(distance), int(item_id), digest))
        return Answer(served.version.name, served.generation_id, revision, page.is_exact, [neighbors], ends)


def _is_fault(error: Exception) -> bool:
    """Return whether an error is not the query's own."""
    return (
        not isinstance(error, GalleryError)
        or error.status_code >= 500
        or isinstance(error, EncodingFailed | EncodingStopped)
    )


def _checked(served: ServedGeneration, vectors: Sequence[Sequence[float]], model_version: str | None) -> Vectors:
    """Return query vectors as (Q, D) float32. Raises `WrongSpace` (409) and `InvalidQuery` (422)."""
    name, dim = served.version.name, served.version.embedding_dim
    if model_version not in (None, name):
        raise WrongSpace(f"Generation {served.generation_id} is under model version {name!r}, not {model_version!r}.")
    if any(len(vector) != dim for vector in vectors):
        raise InvalidQuery(f"Query vectors have {dim} numbers under model version {name!r}.")
    with np.errstate(over="ignore"):
        array = np.asarray(vectors, np.float32)
    if not np.isfinite(array).all():
        raise InvalidQuery("Query vectors are finite numbers within float32.")
    if (np.square(array, dtype=np.float64).sum(axis=1) > _LONGEST**2).any():
        raise InvalidQuery(f"Query vectors have a norm of at most {_LONGEST:.0e}: beyond it, distances overflow.")
    return array


def _item_ids(session: Session, gallery_name: str, gallery_id: int, external_ids: Sequence[str]) -> Ids:
    """Return the items' ids in order, or raise `UnknownItem` naming the first that is not live."""
    query = select(Item.external_id, Item.id).where(
        Item.gallery_id == gallery_id, Item.external_id.in_(external_ids), Item.deleted_at.is_(None)
    )
    ids: dict[str, int] = {row.external_id: row.id for row in session.execute(query)}
    for external_id in external_ids:
        if external_id not in ids:
            raise UnknownItem(f"Gallery {gallery_name!r} has no item {external_id!r}.")
    return np.array([ids[external_id] for external_id in external_ids], np.int64)


def _embeddings_of(session: Session, served: ServedGeneration, ids: Ids, external_ids: Sequence[str]) -> Vectors:
    """Return the embedding of each of (Q,) items in the generation, (Q, D) float32."""
    generation, wanted = get_stored_generation(session, served.gallery_id, served.generation_id), np.unique(ids)
    found, vectors = read_current_vectors(session, generation, len(wanted), wanted)
    missing = difference(wanted, found)
    if len(missing):
        name = external_ids[ids.tolist().index(missing[0])]
        raise NoCurrentEmbedding(f"Item {name!r} has no current embedding in generation {served.generation_id} yet.")
    return vectors[np.searchsorted(found, ids)]


def _check_one(queries: int) -> None:
    if queries != 1:
        raise InvalidQuery("A cursor goes through the neighbours of one query: ask by one vector, or by one item.")


def _options(query: Query) -> list[Any]:
    """Return what a query is besides what it asks by: all but how many neighbours it wants at once, and the place."""
    return [
        query.condition,
        query.generation,
        query.model_version,
        query.max_distance,
        query.exclude_id,
        [list(own) for own in query.exclude_ids],
    ]


def _revision_of(session: Session, item_id: int) -> int:
    return session.scalars(select(Item.revision).where(Item.id == int(item_id))).one()


def _neighbors(found: SearchResult, items: dict[int, DescribedItem]) -> list[list[Neighbor]]:
    """Return the found items as neighbours; one that was deleted since the index followed is left out."""
    return [
        [
            Neighbor(items[id_], distance)
            for id_, distance in zip(row_ids.tolist(), row_distances.tolist(), strict=True)
            if id_ in items
        ]
        for row_ids, row_distances in zip(found.ids, found.distances, strict=True)
    ]
