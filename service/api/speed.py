"""The speed of long work, as requests give it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Speed = Annotated[float, Field(ge=0, le=1)]


class NewSpeed(BaseModel):
    """`speed` is the share of the time that each worker works on it; 0 stops it."""

    model_config = ConfigDict(extra="forbid")

    speed: Speed
