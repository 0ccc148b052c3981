"""How long judging an upgrade takes, from PostgreSQL to the report, and how much memory beside the worker's own.

    python -m benchmarks.evaluating --items 1000000

The gallery has random vectors in a hundred classes. Its upgrade is by an h of the default recipe's shape, and the
references are what the linear map beside it gives, with noise, so that three galleries are read: the old one, h's, and
the linear map's.
"""

import json
import time
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from sqlalchemy import text

from benchmarks.setting import (
    fill_gallery,
    machine,
    peak_memory_of,
    register_versions,
    run_batches,
    vacuum,
    worker_with_servers,
)
from models.artifacts import save_network
from models.transformation import Transformation
from service.domain.gallery.current_rows import read_current_vectors
from service.domain.gallery.generations import get_stored_generation
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.domain.upgrade.upgrades import get_upgrade
from workers.app import WorkerParts
from workers.evaluating import evaluate

_CLASSES = 100
_NOISE = 0.5


def run(
    items: Annotated[int, typer.Option(help="Size of the gallery.")] = 1_000_000,
    references: Annotated[int, typer.Option(help="Of them, given again.")] = 5_000,
    dim: Annotated[int, typer.Option(help="Of embedding and side-information, old and new.")] = 128,
) -> None:
    """Print the seconds and the memory."""
    with worker_with_servers() as parts:
        register_versions(parts, dim)
        _use_default_shape(parts, dim)
        fill_gallery(parts, "gallery", items, dim)
        with parts.database.session_scope() as session:
            session.execute(text(f"UPDATE items SET label = 'class ' || id % {_CLASSES}"))
            upgrade_id = plan_upgrade(session, parts.settings, WantedUpgrade("gallery", "v2")).id
        run_batches(parts, upgrade_id)
        _give_references(parts, upgrade_id, references)
        vacuum(parts)

        with parts.database.session_scope() as session:
            upgrade = get_upgrade(session, upgrade_id)
        began, computing_from = time.perf_counter(), time.process_time()
        report, memory = peak_memory_of(lambda: evaluate(parts, upgrade, seed=0))
        seconds, computing = time.perf_counter() - began, time.process_time() - computing_from
    assert json.loads(report.content)["measurements"]["own_items"]["linear"], "The linear map's gallery was not read."

    Console().print(
        f"{report.evidence:,} references against {items:,} items of {dim} float16: {seconds:.1f} s,"
        f" {computing:.1f} s of processor time in the worker, {memory / 2**20:,.0f} MiB over idle; {report.verdict};"
        f" {machine()}"
    )


def _use_default_shape(parts: WorkerParts, dim: int) -> None:
    """Let h's linear map give the old embedding as it is."""
    torch.manual_seed(0)
    network = Transformation(dim, dim, dim, 1024, members=2, linear=True)
    assert network.linear_map is not None
    network.linear_map.weights.weight.data = torch.eye(dim, 2 * dim)
    network.linear_map.weights.bias.data.zero_()
    h = parts.blobs.put(save_network(network))
    with parts.database.session_scope() as session:
        session.execute(text("UPDATE transformations SET h_digest = :h"), {"h": h})


def _give_references(parts: WorkerParts, upgrade_id: int, count: int) -> None:
    """Add references without images: the old encoder gives what is stored, and the new one that with noise."""
    generator = np.random.default_rng(0)
    with parts.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
        stored = get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id)
        drawn = session.scalars(text("SELECT id FROM items ORDER BY hashint8extended(id, 0) LIMIT :n"), {"n": count})
        ids, vectors = read_current_vectors(session, stored, count, np.array(drawn.all()))
        noise = _NOISE * generator.standard_normal(vectors.shape)
        session.execute(
            text(
                "INSERT INTO reference_pairs (gallery_id, from_version_id, to_version_id, item_id, revision,"
                " embedding_from, embedding_to) SELECT i.gallery_id, b.model_version_id, a.model_version_id, i.id,"
                " i.revision, :before, :after FROM items i, upgrades u"
                " JOIN generations b ON b.id = u.from_generation_id JOIN generations a ON a.id = u.to_generation_id"
                " WHERE i.id = :id AND u.id = :upgrade"
            ),
            [
                {"id": id_, "upgrade": upgrade_id, "before": before.tobytes(), "after": after.tobytes()}
                for id_, before, after in zip(ids.tolist(), vectors, (vectors + noise).astype("<f4"), strict=True)
            ],
        )


if __name__ == "__main__":
    typer.run(run)
