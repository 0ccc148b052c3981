"""The requests of the API, one function each. Written by `make client` from docs/openapi.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from gallery_upgrade.core.calls import UNSET, Call, Json, StreamCall, Unset, Upload, Uploads, given, quoted

if TYPE_CHECKING:
    from gallery_upgrade.api import models
    from gallery_upgrade.core.events import Event


def add_networks(
    *, name: str, embedding_model: Uploads, spec: Json, side_information_model: Uploads | Unset = UNSET
) -> Call[models.ModelVersionView]:
    """Add φ and, where the version has side-information, ψ to a version that was registered without networks. The form
    is that of a registration; its spec says the dimensions that the version has.
    """
    return Call(
        method="PUT",
        path=f"/v1/model-versions/{quoted(name)}/networks",
        answers={200: "ModelVersionView"},
        form={"spec": spec},
        files={"embedding_model": embedding_model, "side_information_model": side_information_model},
    )


def begin_backfill(
    *,
    name: str,
    generation: Literal["next", "active"],
    source: Literal["uri", "client", "thumbnails"],
    budget: Mapping[str, Any] | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    order: Literal["auto", "uncertainty", "traffic", "random"] | Unset = UNSET,
    seed: int | Unset = UNSET,
    speed: float | Unset = UNSET,
    stop: Literal["knee"] | Unset | None = UNSET,
) -> Call[models.BackfillDryRunView | models.BackfillView]:
    """Encode items again from pixels whose embeddings h made, while the gallery goes on answering and taking writes."""
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/backfills",
        answers={200: "BackfillDryRunView", 202: "BackfillView"},
        body=given(
            {
                "budget": budget,
                "dry_run": dry_run,
                "generation": generation,
                "order": order,
                "seed": seed,
                "source": source,
                "speed": speed,
                "stop": stop,
            }
        ),
    )


def begin_session(*, key: str) -> Call[models.IdentityView]:
    """Let a browser act by a key for twelve hours, by a cookie that no script and no other site can use. What it
    changes by it needs the header `X-Requested-With`.
    """
    return Call(method="POST", path="/v1/session", answers={201: "IdentityView"}, body=given({"key": key}))


def cancel_backfill(*, backfill_id: int) -> Call[models.BackfillView]:
    """Give up what is not done; what is done stays, each row being the better one for its item."""
    return Call(method="POST", path=f"/v1/backfills/{quoted(backfill_id)}/cancel", answers={200: "BackfillView"})


def cancel_external_upgrade(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """Give up an upgrade that is not live; a worker removes its new side."""
    return Call(
        method="POST", path=f"/v1/external-upgrades/{quoted(external_id)}/cancel", answers={200: "ExternalUpgradeView"}
    )


def cancel_job(*, job_id: int) -> Call[models.JobView]:
    """Give a training or an ingest up; cancelling it again is no error. 409 for a job that has ended or is a part of
    an upgrade. What an ingest has stored stays.
    """
    return Call(method="POST", path=f"/v1/jobs/{quoted(job_id)}/cancel", answers={200: "JobView"})


def cancel_upgrade(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Give up an upgrade that is not live; its generation is dropped."""
    return Call(method="POST", path=f"/v1/upgrades/{quoted(upgrade_id)}/cancel", answers={200: "UpgradeView"})


def change_gallery(
    *,
    name: str,
    index: Literal["auto", "flat", "hnsw", "ivf", "ivf_sq8"] | Unset = UNSET,
    probe_images: int | Unset = UNSET,
    task: Literal["instance", "class"] | Unset = UNSET,
) -> Call[models.GalleryView]:
    """Ask for another kind of index, or say that the gallery is searched for something else. A worker soon builds the
    index if there is a file of another kind; otherwise it takes effect when one is built. The task is what the next
    upgrade keeps to. Probe images are kept of what is ingested from now on, and removed beyond their number at
    once.
    """
    return Call(
        method="PATCH",
        path=f"/v1/galleries/{quoted(name)}",
        answers={200: "GalleryView"},
        body=given({"index": index, "probe_images": probe_images, "task": task}),
    )


def change_item(
    *,
    name: str,
    item_id: str,
    image_uri: str | Unset | None = UNSET,
    label: str | Unset | None = UNSET,
    metadata: Mapping[str, Any] | Unset = UNSET,
) -> Call[models.ItemView]:
    """Change an item's label, metadata or image_uri without its image; its embeddings stay."""
    return Call(
        method="PATCH",
        path=f"/v1/galleries/{quoted(name)}/items/{quoted(item_id)}",
        answers={200: "ItemView"},
        body=given({"image_uri": image_uri, "label": label, "metadata": metadata}),
    )


def change_transformation(*, transformation_id: int, default: bool) -> Call[models.TransformationView]:
    """Make a transformation the default between its versions, in the place of the one that was, or no longer so."""
    return Call(
        method="PATCH",
        path=f"/v1/transformations/{quoted(transformation_id)}",
        answers={200: "TransformationView"},
        body=given({"default": default}),
    )


def change_upgrade(
    *,
    upgrade_id: int,
    bake: Mapping[str, Any] | Unset | None = UNSET,
    canary: float | Unset = UNSET,
    speed: float | Unset = UNSET,
) -> Call[models.UpgradeView]:
    """Throttle an open upgrade with `speed`, from each worker's next batch on; 0 stops it. Let the candidate of a
    ready one answer a share of image queries with `canary`. Say how it is baked with `bake`; null ends a bake that
    runs.
    """
    return Call(
        method="PATCH",
        path=f"/v1/upgrades/{quoted(upgrade_id)}",
        answers={200: "UpgradeView"},
        body=given({"bake": bake, "canary": canary, "speed": speed}),
    )


def create_gallery(
    *,
    model_version: str,
    name: str,
    dtype: Literal["float16", "float32"] | Unset = UNSET,
    index: Literal["auto", "flat", "hnsw", "ivf", "ivf_sq8"] | Unset = UNSET,
    metric: Literal["l2", "cosine", "ip"] | Unset = UNSET,
    probe_images: int | Unset = UNSET,
    task: Literal["instance", "class"] | Unset = UNSET,
    thumbnails: bool | Unset = UNSET,
) -> Call[models.GalleryView]:
    """Create an empty gallery under a model version."""
    return Call(
        method="POST",
        path="/v1/galleries",
        answers={201: "GalleryView"},
        body=given(
            {
                "dtype": dtype,
                "index": index,
                "metric": metric,
                "model_version": model_version,
                "name": name,
                "probe_images": probe_images,
                "task": task,
                "thumbnails": thumbnails,
            }
        ),
    )


def create_key(
    *,
    name: str,
    scopes: Sequence[
        Literal["search", "read", "write", "upgrade", "cutover", "override", "models", "metrics", "admin"]
    ],
    days: int | Unset = UNSET,
    galleries: Sequence[str] | Unset = UNSET,
    tenant: str | Unset | None = UNSET,
) -> Call[models.NewKeyView]:
    """Make a key; the answer alone has its secret."""
    return Call(
        method="POST",
        path="/v1/keys",
        answers={201: "NewKeyView"},
        body=given({"days": days, "galleries": galleries, "name": name, "scopes": scopes, "tenant": tenant}),
    )


def cut_over(*, upgrade_id: int, override: Mapping[str, Any] | Unset | None = UNSET) -> Call[models.UpgradeView]:
    """Make a ready upgrade live; answered when queries here are answered by the new model version. 409 names the gates
    that failed; it goes live past them with `override` alone.
    """
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/cutover",
        answers={200: "UpgradeView"},
        body=given({"override": override}),
    )


def cut_over_external(
    *, external_id: int, override: Mapping[str, Any] | Unset | None = UNSET
) -> Call[models.ExternalUpgradeView]:
    """Have a worker switch the store of a ready upgrade, after what was written was brought along; `state` says when
    that is done. 409 names the gates that failed; it goes live past them with `override` alone.
    """
    return Call(
        method="POST",
        path=f"/v1/external-upgrades/{quoted(external_id)}/cutover",
        answers={202: "ExternalUpgradeView"},
        body=given({"override": override}),
    )


def delete_gallery(*, name: str) -> Call[None]:
    """Delete a gallery with everything in it; 409 while an upgrade of it is open."""
    return Call(method="DELETE", path=f"/v1/galleries/{quoted(name)}", answers={204: None})


def delete_item(*, name: str, item_id: str) -> Call[None]:
    """Delete an item from every generation."""
    return Call(method="DELETE", path=f"/v1/galleries/{quoted(name)}/items/{quoted(item_id)}", answers={204: None})


def delete_items(
    *, name: str, filter: Mapping[str, Any] | Unset | None = UNSET, ids: Sequence[str] | Unset | None = UNSET
) -> Call[models.DeletedView]:
    """Delete items from every generation, in transactions of 5,000: after a failure the same request deletes the rest.

    An id that no item has is not counted.
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/items/delete",
        answers={200: "DeletedView"},
        body=given({"filter": filter, "ids": ids}),
    )


def delete_model_version(*, name: str) -> Call[None]:
    """Delete a model version; 409 while a gallery or a transformation refers to it."""
    return Call(method="DELETE", path=f"/v1/model-versions/{quoted(name)}", answers={204: None})


def delete_query_set(*, gallery: str, name: str) -> Call[None]:
    """Delete a query set with its images and vectors; reports that were made with it stay."""
    return Call(method="DELETE", path=f"/v1/galleries/{quoted(gallery)}/query-sets/{quoted(name)}", answers={204: None})


def delete_transformation(*, transformation_id: int) -> Call[None]:
    """Delete a transformation that no upgrade used."""
    return Call(method="DELETE", path=f"/v1/transformations/{quoted(transformation_id)}", answers={204: None})


def draw_external_references(
    *, external_id: int, wanted: int | Unset = UNSET, seed: int | Unset = UNSET
) -> Call[models.DrawnReferencesView]:
    """Return keys of rows that were drawn as their ranges were written: what the new model version gives for their
    images lets the upgrade be judged.
    """
    return Call(
        method="GET",
        path=f"/v1/external-upgrades/{quoted(external_id)}/references",
        answers={200: "DrawnReferencesView"},
        query={"wanted": wanted, "seed": seed},
    )


def draw_references(
    *, upgrade_id: int, wanted: int | Unset = UNSET, seed: int | Unset = UNSET
) -> Call[models.WantedReferencesView]:
    """Draw items whose images, given again, let the upgrade be judged: of each label about its share of the gallery."""
    return Call(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/references",
        answers={200: "WantedReferencesView"},
        query={"wanted": wanted, "seed": seed},
    )


def end_session() -> Call[None]:
    """End the browser's session."""
    return Call(method="DELETE", path="/v1/session", answers={204: None})


def evaluate(*, upgrade_id: int, seed: int | Unset = UNSET) -> Call[models.EvaluationView]:
    """Have a worker write another report on an upgrade that is ready, with the evidence that there is now."""
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/evaluate",
        answers={202: "EvaluationView"},
        body=given({"seed": seed}),
    )


def evaluate_external(*, external_id: int, seed: int | Unset = UNSET) -> Call[models.EvaluationView]:
    """Have a worker write another report on an upgrade that is ready, with the references that there are now."""
    return Call(
        method="POST",
        path=f"/v1/external-upgrades/{quoted(external_id)}/evaluate",
        answers={202: "EvaluationView"},
        body=given({"seed": seed}),
    )


def finalize(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Drop the previous generation of a live upgrade; from then on there is no rollback."""
    return Call(method="POST", path=f"/v1/upgrades/{quoted(upgrade_id)}/finalize", answers={200: "UpgradeView"})


def finalize_external(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """End a live upgrade for good: a worker removes the old side; from then on there is no rollback."""
    return Call(
        method="POST",
        path=f"/v1/external-upgrades/{quoted(external_id)}/finalize",
        answers={200: "ExternalUpgradeView"},
    )


def get_backfill(*, backfill_id: int) -> Call[models.BackfillView]:
    """Return a backfill with its progress, counted from rows."""
    return Call(method="GET", path=f"/v1/backfills/{quoted(backfill_id)}", answers={200: "BackfillView"})


def get_embeddings(
    *,
    name: str,
    generation: str | Unset = UNSET,
    format: Literal["arrow", "parquet"] | Unset = UNSET,
    limit: int | Unset | None = UNSET,
    cursor: str | Unset | None = UNSET,
) -> StreamCall[bytes]:
    """Stream a generation's rows as an Arrow IPC stream or a Parquet file, all of one revision of the gallery, with
    the columns id, embedding, side_information?, origin, hops, uncertainty, label, metadata (JSON) and image_uri.

    `cursor`, from Next-Cursor or from the custom metadata of an Arrow batch, continues while the generation's rows
    are the same; else 410. What comes out can be imported again.
    """
    return StreamCall(
        method="GET",
        path=f"/v1/galleries/{quoted(name)}/embeddings",
        answers={200: None},
        query={"generation": generation, "format": format, "limit": limit, "cursor": cursor},
    )


def get_examples(
    *,
    upgrade_id: int,
    kind: Literal["negative_flips", "positive_flips", "churn", "hubs", "uncertain"],
    limit: int | Unset = UNSET,
) -> Call[models.ExamplesView]:
    """Return items for which an upgrade changes most, with what both generations answer."""
    return Call(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/report/examples",
        answers={200: "ExamplesView"},
        query={"kind": kind, "limit": limit},
    )


def get_external_report(*, external_id: int) -> Call[models.ExternalReportView]:
    """Return the newest report on an upgrade."""
    return Call(
        method="GET", path=f"/v1/external-upgrades/{quoted(external_id)}/report", answers={200: "ExternalReportView"}
    )


def get_external_upgrade(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """Return an upgrade with its progress, counted from rows."""
    return Call(method="GET", path=f"/v1/external-upgrades/{quoted(external_id)}", answers={200: "ExternalUpgradeView"})


def get_gallery(*, name: str) -> Call[models.GalleryView]:
    """Return one gallery."""
    return Call(method="GET", path=f"/v1/galleries/{quoted(name)}", answers={200: "GalleryView"})


def get_item(*, name: str, item_id: str) -> Call[models.ItemView]:
    """Return one live item."""
    return Call(method="GET", path=f"/v1/galleries/{quoted(name)}/items/{quoted(item_id)}", answers={200: "ItemView"})


def get_job(*, job_id: int) -> Call[models.JobView]:
    """Return one job."""
    return Call(method="GET", path=f"/v1/jobs/{quoted(job_id)}", answers={200: "JobView"})


def get_model_version(*, name: str) -> Call[models.ModelVersionView]:
    """Return one model version."""
    return Call(method="GET", path=f"/v1/model-versions/{quoted(name)}", answers={200: "ModelVersionView"})


def get_newest_report(
    *, upgrade_id: int, format: Literal["json", "html"] | Unset | None = UNSET
) -> Call[models.ReportView | str]:
    """Return the newest report on an upgrade: as one HTML page where `Accept` prefers that, else as JSON."""
    return Call(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/report",
        answers={200: "ReportView"},
        query={"format": format},
        text=True,
    )


def get_public_key() -> Call[models.PublicKeyView]:
    """Return the public key by which records are verified; 404 where they are not signed."""
    return Call(method="GET", path="/v1/signing-key", answers={200: "PublicKeyView"})


def get_quality(*, name: str) -> Call[models.QualityView]:
    """Say where a gallery's embeddings come from, what error h expects of them, and what the upgrades that led here
    measured. Reads every row of the active generation once.
    """
    return Call(method="GET", path=f"/v1/galleries/{quoted(name)}/quality", answers={200: "QualityView"})


def get_query_set(*, gallery: str, name: str) -> Call[models.QuerySetView]:
    """Return one query set."""
    return Call(
        method="GET", path=f"/v1/galleries/{quoted(gallery)}/query-sets/{quoted(name)}", answers={200: "QuerySetView"}
    )


def get_record(*, upgrade_id: int) -> Call[models.RecordView]:
    """Return what an upgrade was made by, on what evidence it went live, and who decided so: digests of networks,
    trainings, reports and indexes, counts, events, and entries of the audit, signed.

    `gallery-upgrade record verify` checks it, anywhere.
    """
    return Call(method="GET", path=f"/v1/upgrades/{quoted(upgrade_id)}/record", answers={200: "RecordView"})


def get_report(
    *, upgrade_id: int, number: int, format: Literal["json", "html"] | Unset | None = UNSET
) -> Call[models.ReportView | str]:
    """Return a report on an upgrade, as HTML or JSON like the newest; 404 until it is written."""
    return Call(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/reports/{quoted(number)}",
        answers={200: "ReportView"},
        query={"format": format},
        text=True,
    )


def get_tally(*, upgrade_id: int) -> Call[models.TallyView]:
    """Return the tally of the blind votes."""
    return Call(method="GET", path=f"/v1/upgrades/{quoted(upgrade_id)}/votes", answers={200: "TallyView"})


def get_thumbnail(*, name: str, item_id: str) -> Call[bytes]:
    """Return an item's thumbnail as JPEG."""
    return Call(
        method="GET", path=f"/v1/galleries/{quoted(name)}/items/{quoted(item_id)}/thumbnail", answers={200: None}
    )


def get_transformation(*, transformation_id: int) -> Call[models.TransformationView]:
    """Return one transformation."""
    return Call(
        method="GET", path=f"/v1/transformations/{quoted(transformation_id)}", answers={200: "TransformationView"}
    )


def get_transformation_artifact(
    *,
    transformation_id: int,
    part: Literal["h", "g"],
    format: Literal["onnx", "safetensors"] | Unset | None = UNSET,
    if_none_match: str | Unset | None = UNSET,
) -> StreamCall[bytes]:
    """Return h or g as it was registered, or one of our own networks as ONNX; 406 for a format that it cannot have."""
    return StreamCall(
        method="GET",
        path=f"/v1/transformations/{quoted(transformation_id)}/artifacts/{quoted(part)}",
        answers={200: None, 304: None},
        query={"format": format},
        headers={"if-none-match": if_none_match},
    )


def get_upgrade(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Return an upgrade with its progress, counted from rows."""
    return Call(method="GET", path=f"/v1/upgrades/{quoted(upgrade_id)}", answers={200: "UpgradeView"})


def get_version_artifact(
    *, name: str, part: Literal["embedding_model", "side_information_model"], if_none_match: str | Unset | None = UNSET
) -> StreamCall[bytes]:
    """Return a network of a model version, byte for byte as it was registered."""
    return StreamCall(
        method="GET",
        path=f"/v1/model-versions/{quoted(name)}/artifacts/{quoted(part)}",
        answers={200: None, 304: None},
        headers={"if-none-match": if_none_match},
    )


def give_external_references(
    *,
    external_id: int,
    content: Upload,
    content_type: Literal[
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
    ],
) -> Call[models.VectorsAnswer]:
    """Take an Arrow IPC stream or a Parquet file with columns id and embedding: what the new model version gives for
    rows that were drawn. One that was not is rejected alone; 422 only if every one is.
    """
    return Call(
        method="POST",
        path=f"/v1/external-upgrades/{quoted(external_id)}/references",
        answers={200: "VectorsAnswer"},
        content=content,
        content_type=content_type,
    )


def lease(*, backfill_id: int, limit: int | Unset = UNSET) -> Call[models.LeaseView]:
    """Lease items to a client that has their images; what it does not send in time comes back to others."""
    return Call(
        method="POST",
        path=f"/v1/backfills/{quoted(backfill_id)}/lease",
        answers={200: "LeaseView"},
        query={"limit": limit},
    )


def list_all_upgrades(*, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET) -> Call[models.UpgradePage]:
    """Return the upgrades of all galleries, oldest first."""
    return Call(
        method="GET", path="/v1/upgrades", answers={200: "UpgradePage"}, query={"limit": limit, "cursor": cursor}
    )


def list_backfills(
    *, name: str, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.BackfillPage]:
    """Return a gallery's backfills, oldest first."""
    return Call(
        method="GET",
        path=f"/v1/galleries/{quoted(name)}/backfills",
        answers={200: "BackfillPage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_entries(
    *,
    limit: int | Unset = UNSET,
    cursor: str | Unset | None = UNSET,
    action: Literal[
        "model_version.registered",
        "model_version.networks_added",
        "model_version.deleted",
        "transformation.registered",
        "transformation.changed",
        "transformation.deleted",
        "training.started",
        "job.cancelled",
        "gallery.created",
        "gallery.changed",
        "gallery.deleted",
        "items.deleted",
        "query_set.deleted",
        "upgrade.opened",
        "upgrade.changed",
        "upgrade.cancelled",
        "upgrade.overridden",
        "upgrade.cut_over",
        "upgrade.rolled_back",
        "upgrade.finalized",
        "backfill.started",
        "backfill.cancelled",
        "external_upgrade.opened",
        "external_upgrade.cancelled",
        "external_upgrade.overridden",
        "external_upgrade.cut_over",
        "external_upgrade.rolled_back",
        "external_upgrade.finalized",
        "erasure.asked",
        "erasure.done",
        "key.created",
        "key.rotated",
        "key.revoked",
        "audit.pruned",
    ]
    | Unset
    | None = UNSET,
    subject_kind: str | Unset | None = UNSET,
    subject: str | Unset | None = UNSET,
    since: str | Unset | None = UNSET,
    until: str | Unset | None = UNSET,
) -> Call[models.EntryPage]:
    """Return entries of the tenant, oldest first, of one action, subject, or time (from `since` to before `until`): as
    JSON, or by `Accept: application/vnd.apache.arrow.stream` as a table, whose `before` and `after` are JSON and
    whose cursor is in `Next-Cursor`.
    """
    return Call(
        method="GET",
        path="/v1/audit",
        answers={200: "EntryPage"},
        query={
            "limit": limit,
            "cursor": cursor,
            "action": action,
            "subject_kind": subject_kind,
            "subject": subject,
            "since": since,
            "until": until,
        },
    )


def list_external_upgrades(
    *, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.ExternalUpgradePage]:
    """Return the upgrades of other stores, oldest first."""
    return Call(
        method="GET",
        path="/v1/external-upgrades",
        answers={200: "ExternalUpgradePage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_galleries(*, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET) -> Call[models.GalleryPage]:
    """Return galleries in the order they were created."""
    return Call(
        method="GET", path="/v1/galleries", answers={200: "GalleryPage"}, query={"limit": limit, "cursor": cursor}
    )


def list_items(
    *,
    name: str,
    limit: int | Unset = UNSET,
    cursor: str | Unset | None = UNSET,
    ids: Sequence[str] | Unset | None = UNSET,
) -> Call[models.ItemPage]:
    """Return live items in the order they were first created; with `ids`, repeated, all of those that are there, in
    the order of the ids.
    """
    return Call(
        method="GET",
        path=f"/v1/galleries/{quoted(name)}/items",
        answers={200: "ItemPage"},
        query={"limit": limit, "cursor": cursor, "ids": ids},
    )


def list_jobs(*, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET) -> Call[models.JobPage]:
    """Return jobs, oldest first."""
    return Call(method="GET", path="/v1/jobs", answers={200: "JobPage"}, query={"limit": limit, "cursor": cursor})


def list_keys(*, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET) -> Call[models.KeyPage]:
    """Return keys, oldest first; those that ended too."""
    return Call(method="GET", path="/v1/keys", answers={200: "KeyPage"}, query={"limit": limit, "cursor": cursor})


def list_model_versions(
    *, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.ModelVersionPage]:
    """Return model versions, oldest first."""
    return Call(
        method="GET",
        path="/v1/model-versions",
        answers={200: "ModelVersionPage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_query_sets(
    *, gallery: str, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.QuerySetPage]:
    """Return a gallery's query sets in the order they were created."""
    return Call(
        method="GET",
        path=f"/v1/galleries/{quoted(gallery)}/query-sets",
        answers={200: "QuerySetPage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_refused_items(
    *, backfill_id: int, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.RefusedItemPage]:
    """Return the items whose images were refused, with the reasons, in the backfill's order."""
    return Call(
        method="GET",
        path=f"/v1/backfills/{quoted(backfill_id)}/refused",
        answers={200: "RefusedItemPage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_rejected(
    *, job_id: int, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.RejectedImagePage]:
    """Return the images that an ingest rejected so far, in the order of its list."""
    return Call(
        method="GET",
        path=f"/v1/jobs/{quoted(job_id)}/rejected",
        answers={200: "RejectedImagePage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_reports(
    *, upgrade_id: int, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.ReportLinePage]:
    """Return an upgrade's reports, oldest first, without their content."""
    return Call(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/reports",
        answers={200: "ReportLinePage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_stores() -> Call[models.StoresAnswer]:
    """Return the stores that an operator named, with what each says of itself now."""
    return Call(method="GET", path="/v1/stores", answers={200: "StoresAnswer"})


def list_transformations(
    *, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.TransformationPage]:
    """Return transformations, oldest first."""
    return Call(
        method="GET",
        path="/v1/transformations",
        answers={200: "TransformationPage"},
        query={"limit": limit, "cursor": cursor},
    )


def list_upgrades(
    *, name: str, limit: int | Unset = UNSET, cursor: str | Unset | None = UNSET
) -> Call[models.UpgradePage]:
    """Return a gallery's upgrades, oldest first."""
    return Call(
        method="GET",
        path=f"/v1/galleries/{quoted(name)}/upgrades",
        answers={200: "UpgradePage"},
        query={"limit": limit, "cursor": cursor},
    )


def livez() -> Call[models.Health]:
    """Answer while the process runs, also when every thread is taken."""
    return Call(method="GET", path="/livez", answers={200: "Health"})


def metrics() -> Call[str]:
    """Return metrics in the Prometheus text format: of this process and its requests, and what was last found in rows;
    docs/operations/metrics.md lists them. It asks no other server, and answers while the database is away. They are
    of all galleries and tenants: 403 for a key of another tenant than the default one, or for some galleries. Where
    several processes share the port it is 409: each serves its own on a port of its own, GALLERY_API_METRICS_PORT.
    """
    return Call(method="GET", path="/metrics", answers={200: None}, text=True)


def pause_backfill(*, backfill_id: int) -> Call[models.BackfillView]:
    """Pause; answered when nothing of it is in flight."""
    return Call(method="POST", path=f"/v1/backfills/{quoted(backfill_id)}/pause", answers={200: "BackfillView"})


def pause_external_upgrade(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """Pause; answered when nothing of it is in flight."""
    return Call(
        method="POST", path=f"/v1/external-upgrades/{quoted(external_id)}/pause", answers={200: "ExternalUpgradeView"}
    )


def pause_job(*, job_id: int) -> Call[models.JobView]:
    """Let an ingest rest; nothing of it is stored after the answer. 409 for other jobs, and for one that has ended."""
    return Call(method="POST", path=f"/v1/jobs/{quoted(job_id)}/pause", answers={200: "JobView"})


def pause_upgrade(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Pause; answered when no batch is in flight."""
    return Call(method="POST", path=f"/v1/upgrades/{quoted(upgrade_id)}/pause", answers={200: "UpgradeView"})


def plan_external_upgrade(
    *,
    from_version: str,
    store: str,
    to_version: str,
    cutover: Literal["auto", "manual"] | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    speed: float | Unset = UNSET,
    transformation: int | Unset | None = UNSET,
) -> Call[models.ExternalDryRunView | models.ExternalUpgradeView]:
    """Upgrade a gallery in another store: a worker writes the new side beside the old one, which goes on answering."""
    return Call(
        method="POST",
        path="/v1/external-upgrades",
        answers={200: "ExternalDryRunView", 202: "ExternalUpgradeView"},
        body=given(
            {
                "cutover": cutover,
                "dry_run": dry_run,
                "from_version": from_version,
                "speed": speed,
                "store": store,
                "to_version": to_version,
                "transformation": transformation,
            }
        ),
    )


def plan_upgrade(
    *,
    name: str,
    to_version: str,
    bake: Mapping[str, Any] | Unset | None = UNSET,
    cutover: Literal["auto", "manual"] | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    gates: Sequence[Mapping[str, Any]] | Unset = UNSET,
    observe: bool | Unset = UNSET,
    smoothing: Mapping[str, Any] | Unset | None = UNSET,
    speed: float | Unset = UNSET,
    transformation: int | Unset | None = UNSET,
) -> Call[models.DryRunView | models.UpgradeView]:
    """Start an upgrade: the worker derives the next generation while the active one goes on answering."""
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/upgrades",
        answers={200: "DryRunView", 202: "UpgradeView"},
        body=given(
            {
                "bake": bake,
                "cutover": cutover,
                "dry_run": dry_run,
                "gates": gates,
                "observe": observe,
                "smoothing": smoothing,
                "speed": speed,
                "to_version": to_version,
                "transformation": transformation,
            }
        ),
    )


def post_backfill_images(
    *, backfill_id: int, files: Uploads, items: Json | Unset = UNSET
) -> Call[models.BackfillImagesAnswer]:
    """Take images of leased items. One that cannot be read or is another item's is refused alone, and its item is not
    asked for again; 422 only if every one is.
    """
    return Call(
        method="POST",
        path=f"/v1/backfills/{quoted(backfill_id)}/images",
        answers={200: "BackfillImagesAnswer"},
        form={"items": items},
        files={"files": files},
    )


def post_embeddings(
    *,
    name: str,
    content: Upload,
    content_type: Literal[
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
    ],
    model_version: str | Unset | None = UNSET,
) -> Call[models.ImportAnswer]:
    """Store an Arrow IPC stream or a Parquet file with columns id, embedding, side_information?, label?, metadata?,
    image_uri?, and origin?, hops?, uncertainty? of vectors that were upgraded elsewhere.

    All rows or none. With `model_version`, 409 unless it is the active generation's. Between a cutover and its
    finalize, previous_embedding and previous_side_information keep the rows for a rollback.
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/embeddings",
        answers={200: "ImportAnswer"},
        query={"model_version": model_version},
        content=content,
        content_type=content_type,
    )


def post_erasure(
    *,
    gallery: str | Unset | None = UNSET,
    ids: Sequence[str] | Unset | None = UNSET,
    tenant: str | Unset | None = UNSET,
) -> Call[models.JobView]:
    """Queue a job that removes all that the service has of items, a gallery or a tenant: rows of every generation,
    indexes, samples of queries, references, queries that are the same images, kept images, kept answers.

    Its `result` is the proof: what was found, removed and is there in each place, what is left elsewhere and why,
    and a SHA-256 of it all, which is in the audit too. 409 for a whole gallery while an upgrade or a backfill of it
    is open.
    """
    return Call(
        method="POST",
        path="/v1/erasures",
        answers={202: "JobView"},
        body=given({"gallery": gallery, "ids": ids, "tenant": tenant}),
    )


def post_image_references(
    *,
    name: str,
    body: Sequence[Mapping[str, Any]] | Unset = UNSET,
    content: Upload | Unset = UNSET,
    content_type: Literal[
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
    ]
    | Unset = UNSET,
) -> Call[models.JobView]:
    """Queue a job that reads, encodes and stores the images of a list: JSON, or an Arrow IPC stream or a Parquet file
    with columns id, image_uri, label?, metadata?.

    One that cannot be read is rejected alone, with its reason in `/v1/jobs/{id}/rejected`; what can be refused of
    the list itself is refused at once (422), and nothing of it is kept.
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/images/references",
        answers={202: "JobView"},
        body=body,
        content=content,
        content_type=content_type if content_type is not UNSET else "application/vnd.apache.arrow.file",
    )


def post_images(*, name: str, files: Uploads, items: Json | Unset = UNSET) -> Call[models.ImagesAnswer]:
    """Encode and store images. One bad file is rejected alone; 422 only if every file is."""
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/images",
        answers={200: "ImagesAnswer"},
        form={"items": items},
        files={"files": files},
    )


def post_queries(
    *,
    gallery: str,
    name: str | Unset = UNSET,
    model_version: str | Unset | None = UNSET,
    files: Uploads | Unset = UNSET,
    queries: Json | Unset = UNSET,
    content: Upload | Unset = UNSET,
    content_type: Literal[
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
    ]
    | Unset = UNSET,
) -> Call[models.QuerySetView]:
    """Store a new set of images, from a form; or vectors under a model version, from an Arrow IPC stream or a Parquet
    file with columns id, embedding, item_id?, label?, relevant?, slice?, and the parameters `name` and
    `model_version`.

    All queries or none. Vectors under another version are added by posting them under the same name and ids.
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(gallery)}/query-sets",
        answers={201: "QuerySetView"},
        query={"name": name, "model_version": model_version},
        form={"name": name, "queries": queries},
        files={"files": files},
        content=content,
        content_type=content_type if content_type is not UNSET else "application/vnd.apache.arrow.file",
    )


def post_reference_vectors(
    *,
    upgrade_id: int,
    content: Upload,
    content_type: Literal[
        "application/vnd.apache.arrow.file", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
    ],
) -> Call[models.ReferencesAnswer]:
    """Take an Arrow IPC stream or a Parquet file with columns id and embedding: what the new model version gives for
    the images of items. One whose stored embedding was made by h is rejected alone; 422 only if every one is.
    """
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/references/vectors",
        answers={200: "ReferencesAnswer"},
        content=content,
        content_type=content_type,
    )


def post_references(*, upgrade_id: int, files: Uploads, items: Json | Unset = UNSET) -> Call[models.ReferencesAnswer]:
    """Take images of items, which both model versions encode; no image is kept. One that is not the item's image is
    rejected alone; 422 only if every one is.
    """
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/references",
        answers={200: "ReferencesAnswer"},
        form={"items": items},
        files={"files": files},
    )


def readyz() -> Call[models.Health]:
    """Answer once the replicas are loaded, the database answers, and no encoder is found to give other embeddings here
    than it gave; 503 otherwise. A disk without room keeps queries from nothing: 200, and says so.
    """
    return Call(method="GET", path="/readyz", answers={200: "Health"})


def register_model_version(
    *,
    name: str,
    spec: Json,
    embedding_model: Uploads | Unset = UNSET,
    shared: Literal["true", "false"] | Unset = UNSET,
    side_information_model: Uploads | Unset = UNSET,
) -> Call[models.ModelVersionView]:
    """Register φ and optionally ψ: ONNX, safetensors of our own networks, or TorchScript where it is trusted. ONNX
    that keeps its weights in other files comes with them, in parts of the same name.

    Without files, the version is of vectors alone: its galleries import and search vectors, and encode no images
    until its networks are added.
    """
    return Call(
        method="POST",
        path="/v1/model-versions",
        answers={201: "ModelVersionView"},
        form={"name": name, "shared": shared, "spec": spec},
        files={"embedding_model": embedding_model, "side_information_model": side_information_model},
    )


def register_transformation(
    *,
    from_version: str,
    h: Uploads,
    to_version: str,
    g: Uploads | Unset = UNSET,
    shared: Literal["true", "false"] | Unset = UNSET,
    spec: Json | Unset = UNSET,
) -> Call[models.TransformationView]:
    """Register a trained h, and optionally g, from one model version to another."""
    return Call(
        method="POST",
        path="/v1/transformations",
        answers={201: "TransformationView"},
        form={"from_version": from_version, "shared": shared, "spec": spec, "to_version": to_version},
        files={"g": g, "h": h},
    )


def resume_backfill(*, backfill_id: int) -> Call[models.BackfillView]:
    """Go on where the pause was."""
    return Call(method="POST", path=f"/v1/backfills/{quoted(backfill_id)}/resume", answers={200: "BackfillView"})


def resume_external_upgrade(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """Go on where the pause was."""
    return Call(
        method="POST", path=f"/v1/external-upgrades/{quoted(external_id)}/resume", answers={200: "ExternalUpgradeView"}
    )


def resume_job(*, job_id: int) -> Call[models.JobView]:
    """Go on where the pause was."""
    return Call(method="POST", path=f"/v1/jobs/{quoted(job_id)}/resume", answers={200: "JobView"})


def resume_upgrade(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Go on where the pause was."""
    return Call(method="POST", path=f"/v1/upgrades/{quoted(upgrade_id)}/resume", answers={200: "UpgradeView"})


def retry_backfill(*, backfill_id: int) -> Call[models.BackfillView]:
    """Go on after a failure; what is done is kept."""
    return Call(method="POST", path=f"/v1/backfills/{quoted(backfill_id)}/retry", answers={200: "BackfillView"})


def retry_external_upgrade(*, external_id: int) -> Call[models.ExternalUpgradeView]:
    """Go on after a failure; what is done is kept."""
    return Call(
        method="POST", path=f"/v1/external-upgrades/{quoted(external_id)}/retry", answers={200: "ExternalUpgradeView"}
    )


def retry_upgrade(*, upgrade_id: int) -> Call[models.UpgradeView]:
    """Go on after a failure; finished batches are kept."""
    return Call(method="POST", path=f"/v1/upgrades/{quoted(upgrade_id)}/retry", answers={200: "UpgradeView"})


def revoke_key(*, key_id: str) -> Call[models.KeyView]:
    """End a key, in every process within 5 seconds."""
    return Call(method="DELETE", path=f"/v1/keys/{quoted(key_id)}", answers={200: "KeyView"})


def roll_back(*, upgrade_id: int, accept_loss: bool | Unset = UNSET) -> Call[models.UpgradeView]:
    """Make the previous generation active again. 409 names the items that only the new generation has; they are
    deleted with `accept_loss=true`.
    """
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/rollback",
        answers={200: "UpgradeView"},
        query={"accept_loss": accept_loss},
    )


def roll_back_external(*, external_id: int, accept_loss: bool | Unset = UNSET) -> Call[models.ExternalUpgradeView]:
    """Let the store's searches see the old side again; a worker removes the new one. 422 says how many rows were
    written since the switch, where the store knows; with `accept_loss=true` they are left without an embedding.
    """
    return Call(
        method="POST",
        path=f"/v1/external-upgrades/{quoted(external_id)}/rollback",
        answers={200: "ExternalUpgradeView"},
        query={"accept_loss": accept_loss},
    )


def rotate_key(*, key_id: str) -> Call[models.NewKeyView]:
    """Make a key that may do the same; the old one is valid for an hour more."""
    return Call(method="POST", path=f"/v1/keys/{quoted(key_id)}/rotate", answers={201: "NewKeyView"})


def search_by_image(
    *,
    name: str,
    generation: Literal["active", "next"] | int | Unset = UNSET,
    k: int | Unset = UNSET,
    filter: Json | Unset = UNSET,
    max_distance: float | Unset = UNSET,
    exclude_id: str | Unset = UNSET,
    canary_key: str | Unset = UNSET,
    cursor: str | Unset = UNSET,
    group_by: str | Unset = UNSET,
    file: Upload | Unset = UNSET,
    content: Upload | Unset = UNSET,
    content_type: Literal["image/*"] | Unset = UNSET,
) -> Call[models.ImageAnswer]:
    """Return the nearest items of an image; `generation=next` asks an open upgrade's candidate before its cutover, and
    `active` never does, and a generation's id is answered by that one while it is stored (410 after). Without it,
    the candidate answers the share that the upgrade's canary says.
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/search",
        answers={200: "ImageAnswer"},
        query={
            "generation": generation,
            "k": k,
            "filter": filter,
            "max_distance": max_distance,
            "exclude_id": exclude_id,
            "canary_key": canary_key,
            "cursor": cursor,
            "group_by": group_by,
        },
        form={
            "canary_key": canary_key,
            "cursor": cursor,
            "exclude_id": exclude_id,
            "filter": filter,
            "group_by": group_by,
            "k": k,
            "max_distance": max_distance,
        },
        files={"file": file},
        content=content,
        content_type=content_type if content_type is not UNSET else "image/*",
    )


def search_by_items(
    *,
    name: str,
    ids: Sequence[str],
    generation: Literal["active", "next"] | int | Unset = UNSET,
    cursor: str | Unset | None = UNSET,
    exclude_self: bool | Unset = UNSET,
    filter: Mapping[str, Any] | Unset | None = UNSET,
    group_by: str | Unset | None = UNSET,
    k: int | Unset = UNSET,
    max_distance: float | Unset | None = UNSET,
) -> Call[models.BatchAnswer]:
    """Return the nearest items of each item, by its embedding in the answering generation; 404 for an unknown id, and
    409 for an item that an open upgrade has yet to bring to `generation=next`. By its id, any generation that is
    stored answers (410 otherwise).
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/search/items",
        answers={200: "BatchAnswer"},
        query={"generation": generation},
        body=given(
            {
                "cursor": cursor,
                "exclude_self": exclude_self,
                "filter": filter,
                "group_by": group_by,
                "ids": ids,
                "k": k,
                "max_distance": max_distance,
            }
        ),
    )


def search_by_vectors(
    *,
    name: str,
    vectors: Sequence[Sequence[float]],
    generation: Literal["active", "next"] | int | Unset = UNSET,
    cursor: str | Unset | None = UNSET,
    exclude_id: str | Unset | None = UNSET,
    exclude_ids: Sequence[Sequence[str]] | Unset | None = UNSET,
    filter: Mapping[str, Any] | Unset | None = UNSET,
    group_by: str | Unset | None = UNSET,
    k: int | Unset = UNSET,
    max_distance: float | Unset | None = UNSET,
    model_version: str | Unset | None = UNSET,
) -> Call[models.BatchAnswer]:
    """Return the nearest items of each vector, which must be of the answering generation's model version. `generation`
    is `active`, `next`, or the id of one that is stored (410 otherwise).
    """
    return Call(
        method="POST",
        path=f"/v1/galleries/{quoted(name)}/search/vectors",
        answers={200: "BatchAnswer"},
        query={"generation": generation},
        body=given(
            {
                "cursor": cursor,
                "exclude_id": exclude_id,
                "exclude_ids": exclude_ids,
                "filter": filter,
                "group_by": group_by,
                "k": k,
                "max_distance": max_distance,
                "model_version": model_version,
                "vectors": vectors,
            }
        ),
    )


def set_backfill_speed(*, backfill_id: int, speed: float) -> Call[models.BackfillView]:
    """Throttle an open backfill, from each worker's next items on; 0 stops it."""
    return Call(
        method="PATCH",
        path=f"/v1/backfills/{quoted(backfill_id)}",
        answers={200: "BackfillView"},
        body=given({"speed": speed}),
    )


def set_external_speed(*, external_id: int, speed: float) -> Call[models.ExternalUpgradeView]:
    """Throttle an open upgrade, from each worker's next range on; 0 stops it."""
    return Call(
        method="PATCH",
        path=f"/v1/external-upgrades/{quoted(external_id)}",
        answers={200: "ExternalUpgradeView"},
        body=given({"speed": speed}),
    )


def set_job_speed(*, job_id: int, speed: float) -> Call[models.JobView]:
    """Throttle an ingest, from each worker's next batch on; 0 stops it."""
    return Call(
        method="PATCH", path=f"/v1/jobs/{quoted(job_id)}", answers={200: "JobView"}, body=given({"speed": speed})
    )


def show_session() -> Call[models.IdentityView]:
    """Return whose key the request comes with."""
    return Call(method="GET", path="/v1/session", answers={200: "IdentityView"})


def stream_backfill_events(*, backfill_id: int, last_event_id: int | Unset = UNSET) -> StreamCall[Event]:
    """Stream the backfill's changes of state (`state`, each with an id, from after `Last-Event-ID` on) and its
    progress (`progress`, whenever it changed); ends when the backfill has ended.
    """
    return StreamCall(
        method="GET",
        path=f"/v1/backfills/{quoted(backfill_id)}/events",
        answers={200: None},
        headers={"Last-Event-ID": last_event_id},
    )


def stream_external_events(*, external_id: int, last_event_id: int | Unset = UNSET) -> StreamCall[Event]:
    """Stream the upgrade's changes of state (`state`, each with an id, from after `Last-Event-ID` on) and its progress
    (`progress`, whenever it changed); ends when the upgrade has ended.
    """
    return StreamCall(
        method="GET",
        path=f"/v1/external-upgrades/{quoted(external_id)}/events",
        answers={200: None},
        headers={"Last-Event-ID": last_event_id},
    )


def stream_job_events(*, job_id: int) -> StreamCall[Event]:
    """Stream the job's state (`state`, first as it is and then whenever it changed) and its progress (`progress`,
    likewise); ends when the job has ended.
    """
    return StreamCall(method="GET", path=f"/v1/jobs/{quoted(job_id)}/events", answers={200: None})


def stream_upgrade_events(*, upgrade_id: int, last_event_id: int | Unset = UNSET) -> StreamCall[Event]:
    """Stream the upgrade's changes of state (`state`) and what is noted of its canary and its bake (`note`), each with
    an id, from after `Last-Event-ID` on, and its progress (`progress`, whenever it changed); ends when the upgrade
    has ended.
    """
    return StreamCall(
        method="GET",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/events",
        answers={200: None},
        headers={"Last-Event-ID": last_event_id},
    )


def train_transformation(
    *,
    from_version: str,
    to_version: str,
    dataset: str | Unset | None = UNSET,
    options: Mapping[str, Any] | Unset = UNSET,
    with_g: bool | Unset = UNSET,
    pairs: Upload | Unset = UNSET,
) -> Call[models.JobView]:
    """Train h, and with `with_g` also g, from a data set or from uploaded paired vectors.

    The pairs are a Parquet file with columns embedding_from, embedding_to, and optionally side_information_from,
    side_information_to and label. The answer is the job that trains; its result names the transformation.
    """
    return Call(
        method="POST",
        path="/v1/transformations/train",
        answers={202: "JobView"},
        body=given(
            {
                "dataset": dataset,
                "from_version": from_version,
                "options": options,
                "to_version": to_version,
                "with_g": with_g,
            }
        ),
        form={
            "dataset": dataset,
            "from_version": from_version,
            "options": options,
            "to_version": to_version,
            "with_g": with_g,
        },
        files={"pairs": pairs},
    )


def vote(*, upgrade_id: int, better: Literal["left", "right", "neither"], id: str) -> Call[models.TallyView]:
    """Say which of two answers is better without knowing which generation gave which; a later vote on the same item
    takes the place of the one before. The tally is shown with the report, and gates nothing.
    """
    return Call(
        method="POST",
        path=f"/v1/upgrades/{quoted(upgrade_id)}/votes",
        answers={200: "TallyView"},
        body=given({"better": better, "id": id}),
    )
