"""The record of an upgrade: by which networks it was made, on what evidence it went live, and who decided so.

It names everything by digests: of networks, trainings, reports and index files. It has entries of the audit, and the
hash of the newest one, so that a record that is kept is an anchor of the audit's chain too. No item is named in it.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.audit import Subject, content_of, entries_about, head_of
from service.canonical_json import digest_of
from service.domain.upgrade.upgrades import events_of, get_upgrade
from service.json_records import JsonRecord
from service.signatures import Signer
from service.tables import Gallery, Generation, Json, ModelVersion, Report, Transformation, Upgrade, UpgradeBatch

_FORMAT = "gallery-upgrade/upgrade-record/1"
_UNSIGNED = "The service has no key to sign with: its operator has not set GALLERY_SIGNING_KEY."


def signed_record(session: Session, upgrade_id: int, signer: Signer | None) -> Json:
    """Return the record of an upgrade as it is now, and its signature; without a signer, why it has none.

    The session sees a snapshot. Raises `UnknownUpgrade` (404).
    """
    record = record_of(session, upgrade_id)
    if signer is None:
        return {"record": record, "signature": None, "unsigned_because": _UNSIGNED}
    return {"record": record, "signature": signer.sign(record)}


def record_of(session: Session, upgrade_id: int) -> Json:
    """Return the record of an upgrade. Raises `UnknownUpgrade` (404)."""
    upgrade = get_upgrade(session, upgrade_id)
    gallery = session.get_one(Gallery, upgrade.gallery_id)
    generations = [session.get_one(Generation, id_) for id_ in (upgrade.from_generation_id, upgrade.to_generation_id)]
    return {
        "format": _FORMAT,
        "made_at": _at(datetime.now(UTC)),
        "upgrade": _upgrade(upgrade, gallery),
        "from": _generation(session, generations[0]),
        "to": _generation(session, generations[1]),
        "path": [
            {
                "generation": leg.generation_id,
                "transformations": [_transformation(session, id_) for id_ in leg.transformation_ids],
            }
            for leg in upgrade.legs
        ],
        "counts": {"items": gallery.items, **_counts(session, upgrade_id)},
        "reports": [_report(report) for report in _reports(session, upgrade_id)],
        "decision": _json(upgrade.decision),
        "bake": {"wanted": _json(upgrade.bake), "result": _json(upgrade.bake_result)},
        "events": [
            {"id": event.id, "state": event.state, "note": event.note, "at": _at(event.at)}
            for event in events_of(session, upgrade_id)
        ],
        "audit": {
            "head": head_of(session),
            "entries": [
                {**content_of(entry), "hash": entry.hash}
                for entry in entries_about(session, Subject("upgrade", upgrade_id))
            ],
        },
    }


def _upgrade(upgrade: Upgrade, gallery: Gallery) -> Json:
    return {
        "id": upgrade.id,
        "gallery": gallery.name,
        "metric": gallery.metric,
        "task": gallery.task,
        "state": upgrade.state,
        "cutover": upgrade.cutover,
        "observe": upgrade.observe,
        "gates": upgrade.gates,
        "smoothing": upgrade.smoothing,
        "start_revision": upgrade.start_revision,
        "live_revision": upgrade.live_revision,
        "created_at": _at(upgrade.created_at),
        "live_at": _at(upgrade.live_at),
        "finished_at": _at(upgrade.finished_at),
    }


def _generation(session: Session, generation: Generation) -> Json:
    version = session.get_one(ModelVersion, generation.model_version_id)
    return {
        "generation": generation.id,
        "state": generation.state,
        "model_version": {
            "name": version.name,
            "embedding_dim": version.embedding_dim,
            "side_information_dim": version.side_information_dim,
            "normalize": version.normalize,
            "preprocessing_sha256": None if version.preprocessing is None else digest_of(version.preprocessing),
            "embedding_model_sha256": version.embedding_model_digest,
            "side_information_model_sha256": version.side_information_model_digest,
        },
        "index": {
            "sha256": generation.index_sha256,
            "revision": generation.index_revision,
            "rows": (generation.index_parameters or {}).get("rows"),
        },
    }


def _transformation(session: Session, transformation_id: int) -> Json:
    transformation = session.get_one(Transformation, transformation_id)
    training = transformation.training
    return {
        "id": transformation.id,
        "h_sha256": transformation.h_digest,
        "g_sha256": transformation.g_digest,
        "training_sha256": None if training is None else digest_of(training),
        "dataset_sha256": None if training is None else training["dataset_sha256"],
        "metrics_sha256": None if transformation.metrics is None else digest_of(transformation.metrics),
    }


def _counts(session: Session, upgrade_id: int) -> Json:
    columns = func.count(), func.sum(UpgradeBatch.items), func.sum(UpgradeBatch.rows)
    of_h = UpgradeBatch.upgrade_id == upgrade_id, UpgradeBatch.phase != "smoothing"
    batches, items, rows = session.execute(select(*columns).where(*of_h)).one()
    return {"batches": batches, "items_planned": int(items or 0), "rows_transformed": int(rows or 0)}


def _reports(session: Session, upgrade_id: int) -> list[Report]:
    return list(session.scalars(select(Report).where(Report.upgrade_id == upgrade_id).order_by(Report.number)))


def _report(report: Report) -> Json:
    gates: list[Any] = json.loads(report.content)["gates"]
    return {
        "number": report.number,
        "verdict": report.verdict,
        "revision": report.revision,
        "evidence": report.evidence,
        "sha256": hashlib.sha256(report.content.encode()).hexdigest(),
        "gates": gates,
        "created_at": _at(report.created_at),
    }


def _json(kept: JsonRecord | None) -> Json | None:
    return None if kept is None else kept.to_json()


def _at(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds")
