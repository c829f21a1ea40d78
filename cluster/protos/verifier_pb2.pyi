from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("schema_version", "request_id", "idempotency_key", "fence", "principle", "payload")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    PRINCIPLE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    request_id: str
    idempotency_key: str
    fence: int
    principle: str
    payload: bytes
    def __init__(self, schema_version: _Optional[int] = ..., request_id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., fence: _Optional[int] = ..., principle: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("schema_version", "principle")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRINCIPLE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    principle: str
    def __init__(self, schema_version: _Optional[int] = ..., principle: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("schema_version", "principle", "verifier", "verifier_version")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRINCIPLE_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_VERSION_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    principle: str
    verifier: str
    verifier_version: str
    def __init__(self, schema_version: _Optional[int] = ..., principle: _Optional[str] = ..., verifier: _Optional[str] = ..., verifier_version: _Optional[str] = ...) -> None: ...
