"""Galleries, their generations and items, and one table of embeddings per generation."""

from datetime import datetime
from typing import get_args

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.domain.generation_stage import GenerationStage
from service.identity import DEFAULT_TENANT
from service.index.protocol import IndexOption, Metric
from service.tables.columns import Base, Json, Task, one_of
from service.tables.versions import ModelVersion, Transformation
from service.vectors.rows import StoredDtype, VectorFormat


class Gallery(Base):
    """A named set of items, of which `items` are live. `revision` counts its changes; its row lock orders every write
    to it. `index` is the kind that is built next (`service.index.kinds`), or `auto`: by the number of rows. `task` is
    what it is searched for: one certain item, or any item of a class. Of up to `probe_images` of its items the image is
    kept (`ProbeImage`)."""

    __tablename__ = "galleries"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    name: Mapped[str]
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
    probe_images: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("tenant", "name"),
        CheckConstraint("probe_images BETWEEN 0 AND 1000", name="probe_images"),
        CheckConstraint(one_of("metric", get_args(Metric)), name="metric"),
        CheckConstraint(one_of("dtype", get_args(StoredDtype)), name="dtype"),
        CheckConstraint(one_of("index", get_args(IndexOption)), name="index"),
        CheckConstraint(one_of("task", get_args(Task)), name="task"),
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

    __table_args__ = (CheckConstraint(one_of("state", GenerationStage), name="state"),)


class Item(Base):
    """One image's row. A deleted item keeps its row (its revision tells followers); recreating it reuses the row.

    `image_uri` says where the image is kept, if its user said so; nobody has looked whether it is there.
    """

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"))
    external_id: Mapped[str]
    metadata_: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    label: Mapped[str | None]
    image_uri: Mapped[str | None]
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
