"""The speed of long work, as requests give it."""

from typing import Annotated

from pydantic import Field

from service.api.json_bodies import Body

Speed = Annotated[float, Field(ge=0, le=1)]


class NewSpeed(Body):
    """`speed` is the share of the time that each worker works on it; 0 stops it."""

    speed: Speed
