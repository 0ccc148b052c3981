"""What all tables share: the base of their classes, and which SQL type a column has by its annotation."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, DateTime, Double, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.column_types import EnumeratedText, Leg, RecordJson, RecordsJson
from service.connectors.store import Description
from service.domain.backfill_state import BackfillState
from service.domain.batch_state import BatchState
from service.domain.decision import Decision
from service.domain.external_findings import Conflicts, Findings, Late
from service.domain.external_state import ExternalState
from service.domain.generation_stage import GenerationStage
from service.domain.guardrails import Bake, BakeResult
from service.domain.job_state import JobState
from service.domain.refused_rows import RefusedItems, RefusedKeys
from service.domain.upgrade_state import State
from service.domain.verdict import Verdict
from service.index.protocol import IndexOption, Metric
from service.vectors.rows import StoredDtype

Json = dict[str, Any]
NetworkKind = Literal["onnx", "safetensors", "torchscript"]
CutoverOption = Literal["auto", "manual"]
Task = Literal["instance", "class"]
BatchPhase = Literal["transforming", "catching_up", "smoothing"]
JobKind = Literal["index_build", "transformation_training", "image_ingest", "erasure"]
QueryKind = Literal["images", "vectors"]
BackfillOrder = Literal["uncertainty", "traffic", "random"]
BackfillSource = Literal["uri", "client", "thumbnails"]
VoteFor = Literal["before", "after", "neither"]
BackfillOutcome = Literal["backfilled", "superseded", "refused"]


def one_of(column: str, values: Iterable[str]) -> str:
    """Return the SQL condition that a column has one of the values, in their order."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        str: Text,
        int: BigInteger,
        float: Double,
        datetime: DateTime(timezone=True),
        Json: JSONB,
        list[Any]: JSONB,
        list[Leg]: RecordsJson(Leg),
        Decision: RecordJson(Decision),
        Bake: RecordJson(Bake),
        BakeResult: RecordJson(BakeResult),
        Description: RecordJson(Description),
        Findings: RecordJson(Findings),
        Late: RecordJson(Late),
        Conflicts: RecordJson(Conflicts),
        RefusedItems: RecordJson(RefusedItems),
        RefusedKeys: RecordJson(RefusedKeys),
        State: EnumeratedText(State),
        JobState: EnumeratedText(JobState),
        BatchState: EnumeratedText(BatchState),
        GenerationStage: EnumeratedText(GenerationStage),
        Verdict: EnumeratedText(Verdict),
        Metric: Text,
        StoredDtype: Text,
        IndexOption: Text,
        NetworkKind: Text,
        CutoverOption: Text,
        Task: Text,
        BatchPhase: Text,
        JobKind: Text,
        QueryKind: Text,
        BackfillState: EnumeratedText(BackfillState),
        ExternalState: EnumeratedText(ExternalState),
        BackfillOrder: Text,
        BackfillSource: Text,
        BackfillOutcome: Text,
        VoteFor: Text,
    }


class ClaimedRow(Base):
    """The columns of work that is claimed from rows (`service.domain.claims`); its states are in
    `service.domain.batch_state`. After a failure it waits for `retry_at`."""

    __abstract__ = True

    state: Mapped[BatchState] = mapped_column(server_default=text(f"'{BatchState.PENDING}'"))
    claim_token: Mapped[uuid.UUID | None]
    lease_expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    retry_at: Mapped[datetime | None]
    error: Mapped[str | None]
    done_at: Mapped[datetime | None]
