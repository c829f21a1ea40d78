"""MessagePack from strangers: typed where a type is known, counted where it is not.

Bytes are read straight into structures that know every field: a hostile body costs little more
than its size. Neither library refuses duplicate map keys or non-finite numbers: both are refused
here by hand. What does not fit is a ``WireError`` that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import msgpack  # type: ignore[import-untyped]
import msgspec

MAX_LENGTH = 4096
"""Values in one list or map of untyped values."""
MAX_DEPTH = 16
"""Levels of nesting of untyped values."""

Buffer = bytes | memoryview
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class WireError(ValueError):
    """Bytes that are no body of ours, or a record that no body can carry; names the field."""


class StructReader:
    """Reads maps into one type, whose fields are all required."""

    def __init__(self, struct: type[_Struct]) -> None:
        self._decode = msgspec.msgpack.Decoder(struct).decode
        self._num_fields = len(msgspec.structs.fields(struct))

    def read(self, body: Buffer, path: str) -> Any:
        """The structure in ``body``. Raises ``WireError``."""
        try:
            value = self._decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            text = str(error) or type(error).__name__
            raise WireError(f"{path}: {text[:200]}") from error
        # Every field is there and none is unknown: if there are more, one came twice.
        if _map_size(body) != self._num_fields:
            raise WireError(f"{path}: duplicate map key")
        return value


def pack(value: object) -> bytes:
    """MessagePack of a value. Raises ``WireError`` for what has no form there."""
    try:
        return msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"not MessagePack: {error}") from error


def read_json_map(body: Buffer, path: str, max_values: int) -> dict[str, Any]:
    """A map of JSON values, ``max_values`` in all. Raises ``WireError``."""
    if body == b"\x80":
        return {}
    counter = _Counter(path, max_values)
    try:
        value = msgpack.unpackb(
            body,
            strict_map_key=True,
            max_ext_len=0,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            ext_hook=counter.ext,
            list_hook=counter.list,
            object_pairs_hook=counter.pairs,
        )
    except WireError:
        raise
    except (ValueError, RecursionError) as error:  # of which msgpack's own errors are children
        raise WireError(f"{path}: {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        _refuse(path, f"{type(value).__name__}, not a map")
    _check_json(value, path, MAX_DEPTH)
    return value


class _Counter:
    """Hooks of the unpacker: counts every value of a body and refuses what a dict would hide."""

    def __init__(self, path: str, max_values: int) -> None:
        self._path = path
        self._max = self._left = max_values

    def list(self, values: list[Any]) -> list[Any]:
        self._take(len(values))
        return values

    def pairs(self, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        self._take(len(pairs))
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str):
                raise WireError(f"{self._path}: a map key is {type(key).__name__}, not text")
            if key in fields:
                raise WireError(f"{self._path}: duplicate map key {key[:100]!r}")
            fields[key] = value
        return fields

    def ext(self, code: int, data: bytes) -> NoReturn:
        # The limit of length lets the empty one through.
        raise WireError(f"{self._path}: an extension type ({code}, {len(data)} bytes)")

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise WireError(f"{self._path}: more than {self._max} values")


def _map_size(body: Buffer) -> int:
    """Number of entries that the map at the start of ``body`` says it has."""
    first = body[0]
    if first == 0xDE:
        return int.from_bytes(body[1:3])
    if first == 0xDF:
        return int.from_bytes(body[1:5])
    return first & 0x0F


def _check_json(value: object, path: str, depth: int) -> None:
    """Refuses what JSON has no word for: bytes, non-finite numbers, bottomless nesting."""
    if isinstance(value, bytes):
        _refuse(path, "bytes, not a JSON value")
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(path, f"{value}, not a finite number")
    if isinstance(value, dict | list) and depth == 0:
        _refuse(path, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_json(item, f"{path}.{key[:50]}", depth - 1)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_json(item, f"{path}[{position}]", depth - 1)


def _refuse(path: str, problem: str) -> NoReturn:
    raise WireError(f"{path} is {problem}")
