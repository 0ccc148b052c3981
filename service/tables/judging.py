"""What upgrades are judged by, and the reports on them."""

from datetime import datetime
from typing import get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from service.domain.verdict import Verdict
from service.tables.columns import Base, QueryKind, VoteFor, one_of
from service.tables.galleries import Gallery, Generation, Item
from service.tables.upgrades import Upgrade
from service.tables.versions import ModelVersion


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


class BlindVote(Base):
    """Which of an upgrade's two answers to an item somebody found better, who did not know which is which."""

    __tablename__ = "blind_votes"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey(Item.id, ondelete="CASCADE"), primary_key=True)
    choice: Mapped[VoteFor]
    at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint(one_of("choice", get_args(VoteFor)), name="choice"),)


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
        CheckConstraint(one_of("kind", get_args(QueryKind)), name="kind"),
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


class BakedQuery(Base):
    """What became of an image query that both generations were asked while an upgrade is baked: whether each failed,
    how long it took, how many items it found, and the share of the ten nearest before that are among the ten nearest
    after; null where there were none before. Nothing of the query itself is kept."""

    __tablename__ = "baked_queries"

    upgrade_id: Mapped[int] = mapped_column(ForeignKey(Upgrade.id, ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    failed_before: Mapped[bool]
    failed_after: Mapped[bool]
    seconds_before: Mapped[float]
    seconds_after: Mapped[float]
    found_before: Mapped[int]
    found_after: Mapped[int]
    overlap: Mapped[float | None]


class ProbeImage(Base):
    """The file of an item's image, as it was ingested: one of a uniform sample of the gallery's items, those of the
    smallest `priority`. Whatever writes or deletes the item replaces or removes it in the same transaction
    (`service.domain.gallery.probe_images`)."""

    __tablename__ = "probe_images"

    gallery_id: Mapped[int] = mapped_column(ForeignKey(Gallery.id, ondelete="CASCADE"), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey(Item.id, ondelete="CASCADE"), primary_key=True)
    priority: Mapped[int]
    image: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "item_id"),)


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

    __table_args__ = (CheckConstraint(one_of("verdict", Verdict), name="verdict"),)
