"""Model versions, and the transformations between them."""

from datetime import datetime

from sqlalchemy import ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.identity import DEFAULT_TENANT
from service.tables.columns import Base, Json, NetworkKind, Task


class ModelVersion(Base):
    """v = (φ, ψ): a registered pair of networks and their preprocessing; ψ may be absent. One without networks, whose φ
    and preprocessing are None, is of vectors alone until they are added, which is once. The `*_form` columns say how
    each takes images and which of its outputs is meant (`service.networks.encoders.EncoderForm`). One without a tenant
    is shared by all."""

    __tablename__ = "model_versions"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str | None] = mapped_column(server_default=DEFAULT_TENANT)
    name: Mapped[str]
    embedding_dim: Mapped[int]
    side_information_dim: Mapped[int | None]
    normalize: Mapped[bool]
    preprocessing: Mapped[Json | None]
    embedding_model_digest: Mapped[str | None]
    embedding_model_kind: Mapped[NetworkKind | None]
    side_information_model_digest: Mapped[str | None]
    side_information_model_kind: Mapped[NetworkKind | None]
    embedding_model_form: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    side_information_model_form: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (UniqueConstraint("tenant", "name", postgresql_nulls_not_distinct=True),)

    @property
    def has_networks(self) -> bool:
        """Whether it encodes images."""
        return self.embedding_model_digest is not None


class Transformation(Base):
    """(h, g) from one model version to another; g may be absent, and then the way ends at `to_version`. Of several of a
    tenant's, or shared by all, between the same two versions, one may be the default (`service.domain.choice`)."""

    __tablename__ = "transformations"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tenant: Mapped[str | None] = mapped_column(server_default=DEFAULT_TENANT)
    from_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    to_version_id: Mapped[int] = mapped_column(ForeignKey(ModelVersion.id))
    h_digest: Mapped[str]
    h_kind: Mapped[NetworkKind]
    g_digest: Mapped[str | None]
    g_kind: Mapped[NetworkKind | None]
    architecture: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    training: Mapped[Json | None]
    metrics: Mapped[Json | None]
    is_default: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index(None, "from_version_id", "to_version_id"),
        Index(
            "uq_transformations_default",
            "tenant",
            "from_version_id",
            "to_version_id",
            unique=True,
            postgresql_where=text("is_default"),
            postgresql_nulls_not_distinct=True,
        ),
    )

    @property
    def draws_to_classes(self) -> bool:
        """Whether h moves items towards the means of their classes, which makes them alike."""
        return self.architecture.get("h", {}).get("config", {}).get("classes") is not None

    def may_serve(self, task: Task) -> bool:
        """Whether a gallery of this task may be upgraded by it: one that is searched for items keeps them apart."""
        return task == "class" or not self.draws_to_classes
