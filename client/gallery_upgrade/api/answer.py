"""What all answers have in common."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pandas as pd

Item = TypeVar("Item")


class Answer(BaseModel):
    """An answer of the service. What a newer service says besides is kept as it is."""

    # Models are built when they are first used: most programs use few.
    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


class Page(Answer, Generic[Item]):
    """A page of a list; `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None

    def to_pandas(self) -> "pd.DataFrame":
        """Return the page as a table, a row for each item."""
        import pandas as pd

        return pd.DataFrame([as_row(item) for item in self.items])


def as_row(item: Any) -> Any:
    """Return an answer's fields by their names."""
    return item.model_dump() if isinstance(item, BaseModel) else item
