"""What an upgrade is compared with, written as its authors or a first attempt would."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import REAL, BigInteger, SmallInteger, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from torch import Tensor, nn

from models.transformation import ConvBlock, Transformation
from service.vectors.rows import Origin


class PublicForm(nn.Module):
    """The paper's public form of h: 1x1 convolutions over (B, D, 1, 1), each with BatchNorm and ReLU, in float32."""

    def __init__(self, network: Transformation) -> None:
        super().__init__()
        (member,) = network.members
        self.old_branch, self.side_branch, self.mixer = (
            _as_convolutions(part) for part in (member.old_branch, member.side_branch, member.mixer)
        )

    def forward(self, embedding: Tensor, side_information: Tensor) -> Tensor:
        """(B, D, 1, 1) and (B, S, 1, 1) -> (B, D_to, 1, 1)."""
        branches = torch.cat([self.old_branch(embedding), self.side_branch(side_information)], dim=1)
        output: Tensor = self.mixer(branches)
        return output


def _as_convolutions(part: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for block in part:
        linear = block[0] if isinstance(block, ConvBlock) else block
        assert isinstance(linear, nn.Linear)
        convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
        convolution.weight.data = linear.weight.data[:, :, None, None].clone()
        if convolution.bias is not None:
            convolution.bias.data = linear.bias.data.clone()
        layers.append(convolution)
        if isinstance(block, ConvBlock):
            norm = nn.BatchNorm2d(linear.out_features)
            norm.load_state_dict(block[1].state_dict())
            layers += [norm, nn.ReLU()]
    return nn.Sequential(*layers).eval()


def _mapped(table: str, dim: int) -> Any:
    """Return a class of a generation's rows."""

    class Base(DeclarativeBase):
        pass

    class Row(Base):
        __tablename__ = table
        item_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        revision: Mapped[int] = mapped_column(BigInteger)
        origin: Mapped[int] = mapped_column(SmallInteger)
        hops: Mapped[int] = mapped_column(SmallInteger)
        uncertainty: Mapped[float] = mapped_column(REAL)
        embedding: Mapped[object] = mapped_column(HALFVEC(dim))
        side_information: Mapped[object] = mapped_column(HALFVEC(dim))

    return Row


def naive_upgrade(
    session: Session, source: str, target: str, dim: int, networks: Iterable[nn.Module], rows_at_once: int
) -> int:
    """Read rows as ORM objects, run the networks in float32, and insert by `executemany`; return the rows written.

    `target` is an empty table of a generation's columns.
    """
    mapped = _mapped(source, dim)
    target_table = mapped.__table__.to_metadata(mapped.metadata, name=target)
    page = select(mapped).order_by(mapped.item_id).limit(rows_at_once)

    written, last = 0, 0
    while rows := session.scalars(page.where(mapped.item_id > last)).all():
        inputs = [
            torch.from_numpy(np.array([getattr(row, name) for row in rows], np.float32))
            for name in ("embedding", "side_information")
        ]
        with torch.inference_mode():
            outputs = [network(*inputs).numpy() for network in networks]

        session.execute(
            insert(target_table),
            [
                {
                    "item_id": row.item_id,
                    "revision": row.revision,
                    "origin": int(Origin.TRANSFORMED),
                    "hops": row.hops + 1,
                    "uncertainty": math.nan,
                    "embedding": embedding,
                    "side_information": side_information,
                }
                for row, embedding, side_information in zip(rows, *outputs, strict=True)
            ],
        )
        written, last = written + len(rows), rows[-1].item_id
        session.expunge_all()
    return written
