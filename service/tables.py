"""Every table (docs/architecture.md, "Rows"). In this project *model* is a network; `ModelVersion` is a row about one.

`embeddings_<generation id>` is not mapped here: one such table per generation is created with it, by
`create_embeddings_table`, because the column types fix its dimensions and dropping a generation is dropping a table.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from service.column_types import EnumeratedText, Leg, LegsJson
from service.domain.batch_state import BatchState
from service.domain.generation_stage import GenerationStage
from service.domain.job_state import UNFINISHED, JobState
from service.domain.upgrade_state import OPEN, State
from service.domain.verdict import Verdict
from service.index.protocol import IndexOption, Metric
from service.vectors.rows import StoredDtype, VectorFormat

Json = dict[str, Any]
NetworkKind = Literal["onnx", "safetensors", "torchscript"]
CutoverOption = Literal["auto", "manual"]
Task = Literal["instance", "class"]
BatchPhase = Literal["transforming", "catching_up"]
JobKind = Literal["index_build", "transformation_training"]
QueryKind = Literal["images", "vectors"]


def _one_of(column: str, values: Iterable[str]) -> str:
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
        list[Leg]: LegsJson,
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
    }


class ModelVersion(Base):
    """v = (φ, ψ): a registered pair of networks and their preprocessing; ψ may be absent."""

    __tablename__ = "model_versions"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    embedding_dim: Mapped[int]
    side_information_dim: Mapped[int | None]
    normalize: Mapped[bool]
    preprocessing: Mapped[Json]
    embedding_model_digest: Mapped[str]
    embedding_model_kind: Mapped[NetworkKind]
    side_information_model_digest: Mapped[str | None]
    side_information_model_kind: Mapped[NetworkKind | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Transformation(Base):
    """(h, g) from one model version to another; g may be absent, and then the way ends at `to_version`."""

    __tablename__ = "transformations"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    from_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    to_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    h_digest: Mapped[str]
    h_kind: Mapped[NetworkKind]
    g_digest: Mapped[str | None]
    g_kind: Mapped[NetworkKind | None]
    architecture: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    training: Mapped[Json | None]
    metrics: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "from_version_id", "to_version_id"),)

    @property
    def draws_to_classes(self) -> bool:
        """Whether h moves items towards the means of their classes, which makes them alike."""
        return self.architecture.get("h", {}).get("config", {}).get("classes") is not None

    def may_serve(self, task: Task) -> bool:
        """Whether a gallery of this task may be upgraded by it: one that is searched for items keeps them apart."""
        return task == "class" or not self.draws_to_classes


class Gallery(Base):
    """A named set of items, of which `items` are live. `revision` counts its changes; its row lock orders every write
    to it. `index` is the kind that is built next (`service.index.kinds`), or `auto`: by the number of rows. `task` is
    what it is searched for: one certain item, or any item of a class."""

    __tablename__ = "galleries"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    metric: Mapped[Metric]
    dtype: Mapped[StoredDtype]
    thumbnails: Mapped[bool]
    index: Mapped[IndexOption] = mapped_column(server_default=text("'auto'"))
    task: Mapped[Task] = mapped_column(server_default=text("'instance'"))
    active_generation_id: Mapped[int | None] = mapped_column(
        ForeignKey("generations.id", use_alter=True, name="fk_galleries_active_generation_id")
    )
    revision: Mapped[int] = mapped_column(server_default=text("0"))
    items: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint(_one_of("metric", get_args(Metric)), name="metric"),
        CheckConstraint(_one_of("dtype", get_args(StoredDtype)), name="dtype"),
        CheckConstraint(_one_of("index", get_args(IndexOption)), name="index"),
        CheckConstraint(_one_of("task", get_args(Task)), name="task"),
    )


class Generation(Base):
    """A gallery's embeddings and side-information under one model version.

    Its states are in `service.domain.generation_stage`. `has_side_information` says whether its rows carry ψ. The
    `index_*` columns name its index, if one was built: it holds every row that was current when the gallery was at
    `index_revision`.
    """

    __tablename__ = "generations"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    parent_generation_id: Mapped[int | None] = mapped_column(ForeignKey("generations.id", ondelete="CASCADE"))
    transformation_id: Mapped[int | None] = mapped_column(ForeignKey(Transformation.id))
    has_side_information: Mapped[bool]
    state: Mapped[GenerationStage]
    index_name: Mapped[str | None]
    index_sha256: Mapped[str | None]
    index_revision: Mapped[int | None]
    index_parameters: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint(_one_of("state", GenerationStage), name="state"),)


class Item(Base):
    """One image's row. A deleted item keeps its row (its revision tells followers); recreating it reuses the row."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"))
    external_id: Mapped[str]
    metadata_: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    label: Mapped[str | None]
    thumbnail: Mapped[bytes | None] = mapped_column(LargeBinary)
    revision: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("gallery_id", "external_id"),
        Index(None, "gallery_id", "revision"),
        Index(None, "gallery_id", "id"),
        Index("ix_items_label", "gallery_id", "label", postgresql_where=text("label IS NOT NULL")),
    )


class Upgrade(Base):
    """The job that derives the next generation; its states are in `service.domain.upgrade_state`.

    `legs` are tried in order for every item: the first is the path of fewest hops, a second one starts at the active
    generation when the first does not. Every live item with a revision up to `verified_revision` has a current row in
    the next generation; `live_revision` is the gallery's revision at the cutover. `gates` replace or add to the default
    ones, and with `observe` no verdict holds anything up. `evaluate_seed` is that of a report that was asked for and is
    not written yet. `decision` is on what verdict it goes live, or went, and who wanted it.
    """

    __tablename__ = "upgrades"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    from_generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    to_generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    legs: Mapped[list[Leg]]
    cutover: Mapped[CutoverOption]
    speed: Mapped[float] = mapped_column(server_default=text("1"))
    state: Mapped[State]
    resume_state: Mapped[State | None]
    start_revision: Mapped[int]
    verified_revision: Mapped[int] = mapped_column(server_default=text("0"))
    live_revision: Mapped[int | None]
    batches_planned_at: Mapped[datetime | None]
    cutover_requested_at: Mapped[datetime | None]
    gates: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    observe: Mapped[bool] = mapped_column(server_default=text("false"))
    evaluate_seed: Mapped[int | None]
    evaluate_asked_at: Mapped[datetime | None]
    decision: Mapped[Json | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    live_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("cutover", get_args(CutoverOption)), name="cutover"),
        CheckConstraint("speed BETWEEN 0 AND 1", name="speed"),
        Index(
            "uq_upgrades_open",
            "gallery_id",
            unique=True,
            postgresql_where=text(_one_of("state", (state for state in State if state in OPEN))),
        ),
    )


class UpgradeBatch(Base):
    """A range of item ids, both ends included, that held `items` items to transform when it was planned.

    Its states are in `service.domain.batch_state`. `rows` is how many rows it wrote; after a failure it waits for
    `retry_at`.
    """

    __tablename__ = "upgrade_batches"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    phase: Mapped[BatchPhase]
    first_item_id: Mapped[int]
    last_item_id: Mapped[int]
    items: Mapped[int]
    state: Mapped[BatchState] = mapped_column(server_default=text(f"'{BatchState.PENDING}'"))
    claim_token: Mapped[uuid.UUID | None]
    lease_expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    retry_at: Mapped[datetime | None]
    rows: Mapped[int] = mapped_column(server_default=text("0"))
    error: Mapped[str | None]
    done_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("state", BatchState), name="state"),
        CheckConstraint(_one_of("phase", get_args(BatchPhase)), name="phase"),
        Index(None, "upgrade_id", "state", "id"),
    )


class UpgradeEvent(Base):
    """One change of an upgrade's state; written with it, so that ids ascend in the order of the changes."""

    __tablename__ = "upgrade_events"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    state: Mapped[State]
    error: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "upgrade_id", "id"),)


class ReferencePair(Base):
    """An image of an item as both model versions encode it: evidence of what an upgrade to a version does.

    `embedding_from` and `embedding_to`, (D,) float32, little-endian, are those of the gallery's active version and of
    `model_version_id`. It counts while the item has the same revision.
    """

    __tablename__ = "reference_pairs"

    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), primary_key=True)
    from_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    to_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey(Item.id, ondelete="CASCADE"), primary_key=True)
    revision: Mapped[int]
    embedding_from: Mapped[bytes] = mapped_column(LargeBinary)
    embedding_to: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class QuerySet(Base):
    """Queries of a gallery of which a user says what they should find, kept for every upgrade: all of them images, or
    all of them vectors."""

    __tablename__ = "query_sets"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"))
    name: Mapped[str]
    kind: Mapped[QueryKind]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("gallery_id", "name"),
        CheckConstraint(_one_of("kind", get_args(QueryKind)), name="kind"),
    )


class JudgedQuery(Base):
    """A query and what it should find: items with its `label`, or those of the `relevant` external ids, one of the two.

    `item_external_id` is the item that is the same image. Names are kept as they were given, whether the gallery has
    such items or not. An image is in the blob store under its digest.
    """

    __tablename__ = "judged_queries"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    query_set_id: Mapped[int] = mapped_column(ForeignKey(QuerySet.id, ondelete="CASCADE"))
    external_id: Mapped[str]
    item_external_id: Mapped[str | None]
    label: Mapped[str | None]
    relevant: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    slice: Mapped[str | None]
    image_digest: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("query_set_id", "external_id"),
        CheckConstraint("(label IS NULL) = (cardinality(relevant) > 0)", name="judgement"),
        Index("ix_judged_queries_image_digest", "image_digest", postgresql_where=text("image_digest IS NOT NULL")),
    )


class QueryVector(Base):
    """A query under a model version: as it was given, or as the version encoded the query's image.

    `vector` is (D,) float32, little-endian.
    """

    __tablename__ = "query_vectors"

    query_id: Mapped[int] = mapped_column(ForeignKey(JudgedQuery.id, ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class ShadowedQuery(Base):
    """An image query that an open upgrade's candidate was asked too: as both model versions encode it, and the ids of
    the nearest items of both generations.

    `embedding_from`, `side_information_from` (null where the version has no ψ) and `embedding_to` are (D,) float32,
    little-endian; the answers are of the active generation and of `to_generation_id`, nearest first, padded with -1.
    The newest of a fixed number are kept (`service.domain.judging.shadowed_queries`).
    """

    __tablename__ = "shadowed_queries"

    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), primary_key=True)
    from_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    to_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    to_generation_id: Mapped[int] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    embedding_from: Mapped[bytes] = mapped_column(LargeBinary)
    side_information_from: Mapped[bytes | None] = mapped_column(LargeBinary)
    embedding_to: Mapped[bytes] = mapped_column(LargeBinary)
    answers_before: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    answers_after: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Report(Base):
    """What judging an upgrade found, never changed: `content` is JSON, to the byte the same for the same rows and seed.

    `revision` is the gallery's when it was made, `evidence` how many images or queries by both versions it was made of.
    """

    __tablename__ = "reports"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    verdict: Mapped[Verdict]
    revision: Mapped[int]
    evidence: Mapped[int]
    content: Mapped[str]
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint(_one_of("verdict", Verdict), name="verdict"),)


class Job(Base):
    """Long work that is not an upgrade, or a part of one; its states are in `service.domain.job_state`.

    Of a training, `request` is what was asked for, `file_prefix` begins the names of its files in the blob store, and
    `attempts` counts the time slices that were begun since one was brought to its end.
    """

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    kind: Mapped[JobKind]
    state: Mapped[JobState]
    gallery_id: Mapped[int | None] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), index=True)
    generation_id: Mapped[int | None] = mapped_column(ForeignKey(Generation.id, ondelete="CASCADE"))
    upgrade_id: Mapped[int | None] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"))
    request: Mapped[Json | None]
    file_prefix: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    progress: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    result: Mapped[Json | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_jobs_unfinished", "id", postgresql_where=text(_one_of("state", sorted(UNFINISHED)))),)


class QuerySample(Base):
    """One of the queries that a gallery was asked by image or by vector, drawn at random: its vector under the model
    version that answered.

    `vector` is (D,) float32, little-endian. A later query takes a random `slot` of a fixed number, so that the sample
    is bounded and stays fresh (`service.domain.indexes.query_samples`).
    """

    __tablename__ = "query_samples"

    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id, ondelete="CASCADE"), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """The answer to a POST that carried `Idempotency-Key`; `status` is null until it was answered."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int | None]
    headers: Mapped[list[Any] | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


def embeddings_table(generation_id: int) -> str:
    """Return the name of a generation's table."""
    return f"embeddings_{int(generation_id)}"


_WIDEST_ROW_BYTES = 4_080  # so that a page of 8 KiB holds two; PostgreSQL's default is a quarter of a page


def create_embeddings_table(session: Session, generation_id: int, vector_format: VectorFormat) -> None:
    """Create a generation's table.

    A row stays in one piece up to half a page; a wider one keeps its vectors in the TOAST table, uncompressed. The
    primary key is there while rows are loaded: `ON CONFLICT` needs it, and it costs little, because ids ascend.
    """
    columns = ", ".join(f"{name} {sql_type} NOT NULL" for name, sql_type in vector_format.sql_types.items())
    session.execute(
        text(
            f"CREATE TABLE {embeddings_table(generation_id)} ({columns}, PRIMARY KEY (item_id))"
            f" WITH (toast_tuple_target = {_WIDEST_ROW_BYTES})"
        )
    )


def drop_embeddings_table(session: Session, generation_id: int) -> None:
    """Drop a generation's table with all its rows."""
    session.execute(text(f"DROP TABLE IF EXISTS {embeddings_table(generation_id)}"))
