"""Every table (docs/architecture.md, "Rows"). In this project *model* is a network; `ModelVersion` is a row about one.

`embeddings_<generation id>` is not mapped: one such table per generation is created with it, by
`create_embeddings_table`, because the column types fix its dimensions and dropping a generation is dropping a table.
"""

from service.tables.access import ApiKey, AuditEntry, BrowserSession, IdempotencyKey
from service.tables.backfills import Backfill, BackfillEvent, BackfillItem
from service.tables.columns import (
    BackfillOrder,
    BackfillOutcome,
    BackfillSource,
    Base,
    BatchPhase,
    ClaimedRow,
    CutoverOption,
    JobKind,
    Json,
    NetworkKind,
    QueryKind,
    Task,
    VoteFor,
)
from service.tables.external import (
    ExternalBatch,
    ExternalEvent,
    ExternalReference,
    ExternalReport,
    ExternalUpgrade,
)
from service.tables.galleries import (
    Gallery,
    Generation,
    Item,
    QuerySample,
    create_embeddings_table,
    drop_embeddings_table,
    embeddings_table,
)
from service.tables.jobs import Erasure, IngestBatch, IngestReference, Job
from service.tables.judging import (
    BakedQuery,
    BlindVote,
    JudgedQuery,
    ProbeImage,
    QuerySet,
    QueryVector,
    ReferencePair,
    Report,
    ShadowedQuery,
)
from service.tables.upgrades import Upgrade, UpgradeBatch, UpgradeEvent
from service.tables.versions import ModelVersion, Transformation

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Backfill",
    "BackfillEvent",
    "BackfillItem",
    "BackfillOrder",
    "BackfillOutcome",
    "BackfillSource",
    "BakedQuery",
    "Base",
    "BatchPhase",
    "BlindVote",
    "BrowserSession",
    "ClaimedRow",
    "CutoverOption",
    "Erasure",
    "ExternalBatch",
    "ExternalEvent",
    "ExternalReference",
    "ExternalReport",
    "ExternalUpgrade",
    "Gallery",
    "Generation",
    "IdempotencyKey",
    "IngestBatch",
    "IngestReference",
    "Item",
    "Job",
    "JobKind",
    "Json",
    "JudgedQuery",
    "ModelVersion",
    "NetworkKind",
    "ProbeImage",
    "QueryKind",
    "QuerySample",
    "QuerySet",
    "QueryVector",
    "ReferencePair",
    "Report",
    "ShadowedQuery",
    "Task",
    "Transformation",
    "Upgrade",
    "UpgradeBatch",
    "UpgradeEvent",
    "VoteFor",
    "create_embeddings_table",
    "drop_embeddings_table",
    "embeddings_table",
]
