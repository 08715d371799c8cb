"""The base of every configuration model: frozen, and with unknown keys forbidden."""

from pydantic import (
    BaseModel,
    ConfigDict,
)


class Section(BaseModel):
    """A part of the configuration: immutable, typed strictly enough for YAML, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")
