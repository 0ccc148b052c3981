"""What readers of one gallery see, held against the model: rows, lists, answers, and what is left on the disk."""

from typing import Any

import numpy as np
from sqlalchemy import text

from service.vectors.rows import Origin
from tests.chaos.model import GalleryModel, Generation, Upgrade
from tests.chaos.offline import DIMS, Row, Vectors, query_of
from tests.chaos.world import Api, World

_ROUNDING = 5e-3
_DISTANCE_ROUNDING = 0.03
_PROBE = 0  # the image that is searched for; any would do, because every distance is compared


def check_storage(world: World, name: str, model: GalleryModel) -> None:
    """Upgrades are where they should be, every stored generation has its right rows, and nothing is left of others."""
    with world.database.session_scope(snapshot=True) as session:
        gallery = "SELECT id FROM galleries WHERE name = :name"
        query = text(f"SELECT id, state, speed FROM upgrades WHERE gallery_id = ({gallery}) ORDER BY id")
        upgrades = [tuple(row) for row in session.execute(query, {"name": name})]
        assert upgrades == [(upgrade.id, upgrade.state, upgrade.speed) for upgrade in model.upgrades]
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'embeddings\\_%'")).all()
        assert set(tables) == {f"embeddings_{id_}" for id_ in model.generations}
        for generation in model.generations.values():
            side = "NULL" if DIMS[generation.version][1] is None else "e.side_information::real[]"
            query = text(
                "SELECT i.external_id, i.deleted_at IS NULL, i.revision = e.revision, e.origin, e.embedding::real[],"
                f" {side} FROM embeddings_{generation.id} e LEFT JOIN items i ON i.id = e.item_id"
            )
            rows = session.execute(query).all()
            _check_generation(model, generation, [tuple(row) for row in rows])
    files = {name.split(".")[0] for name in world.index_files()}
    assert files <= {f"generation_{id_}" for id_ in model.generations}


def _check_generation(model: GalleryModel, generation: Generation, rows: list[tuple[Any, ...]]) -> None:
    current = {}
    for id_, live, is_current, origin, embedding, side in rows:
        if generation.complete:
            assert live, f"generation {generation.id} has a row of {id_!r}, which is deleted"
        if live and is_current:
            side_information = None if side is None else np.array(side, np.float32)
            current[id_] = Row(Origin(origin).label, np.array(embedding, np.float32), side_information)
        elif generation.id == model.active_id:
            raise AssertionError(f"the active generation has an old row of {id_!r}")
    for id_, row in current.items():
        expected = generation.rows.get(id_) or model.derived(generation, id_)
        assert expected is not None, f"generation {generation.id} has a row of {id_!r} that came from nothing"
        assert not row.differs_from(expected, _ROUNDING), f"{id_!r} in {generation.id}: {row}, not {expected}"
    assert set(generation.rows) <= set(current), f"generation {generation.id} lacks rows"
    generation.rows = current
    if generation.complete:
        generation.legs = []  # from now on it has what is written to it, and nothing is derived
    if generation.id == model.active_id:
        assert set(current) == set(model.items), "the active generation is not complete"


def check_lists(api: Api, name: str, model: GalleryModel) -> None:
    """The gallery and its items are what the model says."""
    gallery = api.client.get(f"/v1/galleries/{name}").json()
    shown = (gallery["generation"], gallery["model_version"], gallery["revision"], gallery["items"])
    assert shown == (model.active_id, model.active.version, model.revision, len(model.items))
    items = api.client.get(f"/v1/galleries/{name}/items").json()["items"]
    origins = {item["id"]: item["origin"] for item in items}
    assert len(origins) == len(items)
    assert origins == {id_: model.active.rows[id_].origin for id_ in model.items}


def check_answers(api: Api, name: str, model: GalleryModel, *, is_fresh: bool) -> None:
    """An answer is of one stored generation and has live items only; a fresh one is exact, and of the active one."""
    answer = api.search_image(name, _PROBE)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert model.generations[body["generation"]].version == body["model_version"]
    assert {neighbor["id"] for neighbor in body["neighbors"]} <= set(model.items)
    if not is_fresh:
        return
    assert (body["generation"], body["revision"]) == (model.active_id, model.revision)
    rows = model.active.rows
    _check_neighbors(body["neighbors"], query_of(model.active.version, _PROBE), rows)
    if rows:
        own = api.search_vectors(name, [row.embedding.tolist() for row in rows.values()]).json()
        assert (own["generation"], own["model_version"]) == (model.active_id, model.active.version)
        for row, neighbors in zip(rows.values(), own["neighbors"], strict=True):
            _check_neighbors(neighbors, row.embedding, rows)


def check_candidate(api: Api, name: str, model: GalleryModel, *, is_complete: bool) -> None:
    """The candidate answers as soon as it has an index, and only then; `is_complete` right after following."""
    answer = api.search_image(name, _PROBE, generation="next")
    upgrade = model.open_upgrade
    if upgrade is None or not has_index(upgrade):
        assert answer.status_code == 409, answer.text
        return
    assert answer.status_code == 200, answer.text
    body, generation = answer.json(), model.generations[upgrade.to_generation]
    assert (body["generation"], body["model_version"]) == (generation.id, generation.version)
    found = {neighbor["id"] for neighbor in body["neighbors"]}
    assert found <= set(generation.rows)
    rows = generation.rows if is_complete else {id_: generation.rows[id_] for id_ in found}
    _check_neighbors(body["neighbors"], query_of(generation.version, _PROBE), rows)


def has_index(upgrade: Upgrade) -> bool:
    return upgrade.reached in ("evaluating", "ready")


def _check_neighbors(neighbors: list[dict[str, Any]], query: Vectors, rows: dict[str, Row]) -> None:
    """All rows, each at its distance, nearest first: so an item's own vector finds it first."""
    distances = {neighbor["id"]: neighbor["distance"] for neighbor in neighbors}
    assert len(distances) == len(neighbors)
    assert distances.keys() == rows.keys()
    assert list(distances.values()) == sorted(distances.values())
    for id_, distance in distances.items():
        expected = float(np.linalg.norm(query - rows[id_].embedding))
        assert abs(distance - expected) < _DISTANCE_ROUNDING * (1 + expected), f"{id_!r}: {distance}, not {expected}"
    assert {neighbor["id"]: neighbor["origin"] for neighbor in neighbors} == {id_: rows[id_].origin for id_ in rows}
