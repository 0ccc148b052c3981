"""What an upgrade is judged from: images that both versions encoded, what h gave for them, and the galleries that are
asked. Q queries, N references; labels are class numbers, -1 where there is none; ids are the items' keys, `NO_ID` where
there is none; vectors are float32, as they are stored and asked: of unit norm where the version normalises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.judging.search import NO_ID, Chunks, Ids
from models.metrics import Labels, Metric, Vectors


@dataclass(frozen=True)
class RelevantItems:
    """What each query should find: `ids[starts[i]:starts[i + 1]]`; starts: (Q + 1,) int64, ids: int64."""

    starts: NDArray[np.int64]
    ids: Ids

    def contain(self, answers: Ids) -> NDArray[np.bool_]:
        """(Q, k) ids -> (Q, k), which of them are relevant."""
        rows = [np.isin(row, self.of(place)) for place, row in enumerate(answers)]
        return np.stack(rows) if rows else np.zeros(answers.shape, bool)

    def of(self, query: int) -> Ids:
        return self.ids[self.starts[query] : self.starts[query + 1]]


@dataclass(frozen=True)
class Queries:
    """Images that both versions encoded.

    before: (Q, D_old) by φ_old, after: (Q, D_new) by φ_new; item_ids: (Q,) the item that is the same image, which no
    answer to it counts; labels: (Q,) or None; relevant: takes the place of labels where there are judgements;
    attributes: name -> (Q,) str, "" for none, by which they are sliced; source: where they come from, in words.
    """

    before: Vectors
    after: Vectors
    item_ids: Ids
    source: str
    labels: Labels | None = None
    relevant: RelevantItems | None = None
    attributes: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for unequal numbers of rows."""
        columns = [len(self.after), len(self.item_ids), *map(len, self.attributes.values())]
        columns += [] if self.labels is None else [len(self.labels)]
        if any(count != len(self.before) for count in columns):
            raise ValueError("Each query needs a value in every column.")
        if self.relevant is not None and len(self.relevant.starts) != len(self.before) + 1:
            raise ValueError("Each query needs its relevant items, if only none.")

    def __len__(self) -> int:
        return len(self.before)


@dataclass(frozen=True)
class References:
    """Queries that are images of items, with what stands for these items.

    transformed: (N, D_new) by h, whatever the next generation has for them; linear: (N, D_new) by the closed-form
    linear map (`models.training.linear_map`), fitted on none of them, or None; uncertainty: (N,) float32, the squared
    error that h expects of each, NaN where it does not say, or None.
    """

    queries: Queries
    transformed: Vectors
    linear: Vectors | None = None
    uncertainty: Vectors | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for unequal shapes, and for a reference that is no item."""
        shape = self.queries.after.shape
        if self.transformed.shape != shape or (self.linear is not None and self.linear.shape != shape):
            raise ValueError("Each reference needs a vector of the new space.")
        if self.uncertainty is not None and self.uncertainty.shape != shape[:1]:
            raise ValueError("Each reference needs an expected error, if only NaN.")
        if (self.queries.item_ids == NO_ID).any():
            raise ValueError("A reference is the image of an item.")

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class Galleries:
    """Both generations, read once each: chunks of ids (n,) with vectors (n, D), float16 or float32, the same items.

    linear: what the linear map gives for all of them, or None; item_ids and labels: (M,) of items that have a label.
    """

    metric: Metric
    before: Chunks
    after: Chunks
    linear: Chunks | None = None
    item_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    labels: Labels = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Answers:
    """What both generations answered to the same shadowed queries: (S, k) ids each, nearest first."""

    before: Ids
    after: Ids


@dataclass(frozen=True)
class Evidence:
    """All that there is; each part may be missing, except the galleries. `references` and `queries` are other images
    than each other; those that are judged by labels are one part of `queries`, those by relevant items another."""

    galleries: Galleries
    references: References | None = None
    queries: tuple[Queries, ...] = ()
    shadowed: Answers | None = None
