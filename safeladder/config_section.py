"""What every part of the config is made of: a base that refuses unknown keys, and numbers with
bounds. A number is written as a number: neither ``true`` nor ``"20"`` is one, but ``1`` is a
float."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Flag = Annotated[bool, Field(strict=True)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
PositiveShare = Annotated[float, Field(gt=0, le=1, strict=True)]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
"""Bounded, so that no sum of weighted scores leaves the numbers."""
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
"""Of a moving average: at 1 it would never move."""


def _host_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"{address!r} is no host:port, such as 10.0.0.1:50051")
    if not 1 <= int(port[:6]) <= 65535:
        raise ValueError(f"{address!r}: a port is a number from 1 to 65535")
    return address


HostPort = Annotated[str, AfterValidator(_host_port)]


class Section(BaseModel):
    """Base of every part of the tree."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
