"""Bodies survive the way over the wire exactly, and bytes that are none are refused by name."""

from __future__ import annotations

import contextlib
import math
import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import wire
from cluster.wire import WireError
from safeladder.records import InvalidCause, Message, ScoreRequest, Verdict, VerdictStatus
from tests.cluster.verifier_fakes import make_request

DIGEST = "0" * 64
NAMES = st.text(min_size=1, max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
REQUESTS = st.builds(
    ScoreRequest,
    sample_id=NAMES,
    attempt=st.integers(0, 1000),
    messages=st.lists(st.builds(Message, st.text(), st.text()), max_size=4).map(tuple),
    response=st.text(),
    finish_reason=st.sampled_from(["stop", "length"]),
    num_tokens=st.integers(0, 10**6),
    route=NAMES,
    reference=st.none() | st.text(),
    lang=st.text(max_size=8),
    images=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
    meta=st.dictionaries(st.text(max_size=9), JSON, max_size=4),
)
COMMON = {
    "sample_id": NAMES,
    "principle": st.just("safety"),
    "verifier": st.just("tests:V"),
    "verifier_version": st.just("7"),
    "label": st.none() | st.text(max_size=40),
    "evidence": st.none() | st.text(max_size=200),
    "retryable": st.booleans(),
    "latency_ms": st.floats(0, 1e9),
    "disagreement": st.none() | st.floats(0, 1),
}
VERDICTS = st.one_of(
    st.builds(Verdict, **COMMON, status=st.just(VerdictStatus.OK), score=st.floats(0, 1)),
    st.builds(Verdict, **COMMON, status=st.just(VerdictStatus.NOT_APPLICABLE)),
    st.builds(
        Verdict,
        **COMMON,
        status=st.just(VerdictStatus.INVALID),
        cause=st.sampled_from(InvalidCause),
    ),
)


def request_fields(**changes: object) -> dict[str, object]:
    (fields,) = msgpack.unpackb(wire.join_requests([wire.pack_request(make_request())]))["requests"]
    return {**fields, **changes}


def request_body(**changes: object) -> bytes:
    body: bytes = msgpack.packb({"requests": [request_fields(**changes)]})
    return body


def answer_body(**changes: object) -> bytes:
    verdict = {
        "sample_id": "0/3/0",
        "status": "ok",
        "score": 0.5,
        "label": None,
        "evidence": None,
        "cause": None,
        "retryable": False,
        "latency_ms": 1.0,
        "disagreement": None,
    }
    body: bytes = msgpack.packb(
        {
            "request_sha256": DIGEST,
            "verifier": "v",
            "verifier_version": "1",
            "verdicts": [{**verdict, **changes}],
        }
    )
    return body


@settings(max_examples=25, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_requests_come_back_as_they_were_sent(requests: list[ScoreRequest]) -> None:
    body = wire.join_requests([wire.pack_request(request) for request in requests])
    assert wire.unpack_requests(body) == requests


@settings(max_examples=40, deadline=None)
@given(st.lists(VERDICTS, max_size=4))
def test_verdicts_come_back_as_they_were_sent(verdicts: list[Verdict]) -> None:
    answer = wire.unpack_answer(wire.pack_answer(DIGEST, "tests:V", "7", verdicts), "safety")
    assert list(answer.verdicts) == verdicts
    assert answer.request_sha256 == DIGEST


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_wire_error(body: bytes) -> None:
    for read in (wire.unpack_requests, lambda b: wire.unpack_answer(b, "safety")):
        with pytest.raises(WireError):
            read(body)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_byte_never_escapes_as_another_error(data: st.DataObject) -> None:
    body = bytearray(request_body(meta={"a": [1.5, None]}))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        wire.unpack_requests(bytes(body))


def test_every_truncation_is_refused() -> None:
    body = request_body()
    for length in range(len(body)):
        with pytest.raises(WireError):
            wire.unpack_requests(body[:length])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"meta": {"a": [{"b": math.nan}]}}, r"requests\[0\]\.meta\.a\[0\]\.b is nan"),
        ({"meta": {"a": -math.inf}}, r"meta\.a is -inf"),
        ({"meta": {"a": b"bytes"}}, r"meta\.a is bytes"),
        ({"meta": {1: 1}}, "map key"),
        ({"surprise": 1}, "surprise"),
        ({"attempt": -1}, "attempt"),
        ({"attempt": True}, "attempt"),
        ({"num_tokens": 1.5}, "num_tokens"),
        ({"response": b"bytes"}, "response"),
        ({"finish_reason": "tired"}, "finish_reason"),
        ({"images": ["https://example.org/x.png"]}, "images"),
        ({"messages": [["user"]]}, "messages"),
        ({"sample_id": ""}, "sample_id"),
    ],
)
def test_a_bad_field_of_a_request_is_named(changes: dict[str, object], names: str) -> None:
    with pytest.raises(WireError, match=names):
        wire.unpack_requests(request_body(**changes))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"score": math.nan}, r"verdicts\[0\].*score"),
        ({"score": 1.01}, r"verdicts\[0\].*score"),
        ({"score": None}, r"verdicts\[0\].*score"),
        ({"score": "0.5"}, "score"),
        ({"status": "invalid", "cause": "timeout"}, r"verdicts\[0\].*score"),
        ({"status": "invalid", "score": None}, r"verdicts\[0\].*cause"),
        ({"status": "fine"}, "status"),
        ({"cause": "mood", "status": "invalid", "score": None}, "cause"),
        ({"latency_ms": math.inf}, r"verdicts\[0\]\.latency_ms"),
        ({"latency_ms": -1.0}, r"verdicts\[0\]\.latency_ms"),
        ({"disagreement": math.nan}, r"verdicts\[0\]: .*disagreement"),
        ({"disagreement": 1.01}, r"verdicts\[0\]: .*disagreement"),
        ({"disagreement": "low"}, "disagreement"),
        ({"evidence": "x" * (wire.MAX_EVIDENCE_CHARS + 1)}, "evidence"),
    ],
)
def test_a_bad_field_of_an_answer_is_named(changes: dict[str, object], names: str) -> None:
    with pytest.raises(WireError, match=names):
        wire.unpack_answer(answer_body(**changes), "safety")


def test_a_missing_field_is_named() -> None:
    fields = request_fields()
    del fields["route"]
    with pytest.raises(WireError, match="route"):
        wire.unpack_requests(msgpack.packb({"requests": [fields]}))


def test_a_duplicate_map_key_is_refused_at_any_depth() -> None:
    for twice in (b"\x82\xa1a\x01\xa1a\x02", b"\x81\xa1b\x91\x82\xa1a\x01\xa1a\x02"):
        body = request_body(meta="PLACE").replace(b"\xa5PLACE", twice)
        with pytest.raises(WireError, match="duplicate map key 'a'"):
            wire.unpack_requests(body)


@pytest.mark.parametrize(
    ("hostile", "reason", "reason_in_meta"),
    [
        (b"\xdd" + struct.pack(">I", 1_000_000) + b"\x90" * 1_000_000, "array", "max_array_len"),
        (b"\xdc\x0f\xff" * 1000, "array", "truncated|depth"),
        (b"\x91" * 100_000, "array", "depth"),
        (b"\x91" * 900 + b"\xc0", "array", "not a map"),
        (b"\xd6\xff\x00\x00\x00\x01", "ext", "max_ext_len"),
        (b"\xc7\x00\x05", "ext", "extension type"),
        (b"\x90", "array", "not a map"),
        (b"\x81\xa1a\x01 trailing", "unknown field", "malformed"),
        (b"\xa1\xff", "str", "not a map|utf-8"),
        (b"\xc1", "malformed", "malformed"),
        (b"", "truncated", "truncated"),
        (b"\xdf\xff\xff\xff\xff", "truncated", "truncated"),
        (b"\xdb\xff\xff\xff\xff", "truncated", "truncated"),
        (b"\x00" * (wire.MAX_BODY_BYTES + 1), "limit", "limit"),
    ],
)
def test_hostile_bodies_are_refused_with_a_reason(
    hostile: bytes, reason: str, reason_in_meta: str
) -> None:
    with pytest.raises(WireError, match=reason):
        wire.unpack_requests(hostile)
    # Where any JSON map is welcome; the fields before it are in order.
    body = request_body(meta="PLACE")
    assert body.endswith(b"\xa5PLACE")
    with pytest.raises(WireError, match=reason_in_meta):
        wire.unpack_requests(body.removesuffix(b"\xa5PLACE") + hostile)


def test_a_field_that_comes_twice_is_refused_at_every_level() -> None:
    with pytest.raises(WireError, match="duplicate"):
        wire.unpack_requests(b"\x82\xa8requests\x91\x80" + request_body()[1:])
    body = request_body()
    fields = body[len(b"\x81\xa8requests\x91") :]
    assert fields[0] == 0x80 | 11
    for header in (b"\x8c", b"\xde\x00\x0c", b"\xdf\x00\x00\x00\x0c"):
        twice = b"\x81\xa8requests\x91" + header + b"\xa7attempt\x07" + fields[1:]
        with pytest.raises(WireError, match="duplicate"):
            wire.unpack_requests(twice)
    for header in (b"\xde\x00\x0b", b"\xdf\x00\x00\x00\x0b"):
        assert wire.unpack_requests(b"\x81\xa8requests\x91" + header + fields[1:])
    answer = answer_body()
    with pytest.raises(WireError, match="duplicate"):
        wire.unpack_answer(b"\x85\xa8verifier\xa1w" + answer[1:], "safety")
    verdict = answer.replace(
        b"\x89\xa9sample_id", b"\x8a\xa5score\xcb" + b"\x00" * 8 + b"\xa9sample_id"
    )
    with pytest.raises(WireError, match="duplicate"):
        wire.unpack_answer(verdict, "safety")


def test_an_image_is_bytes_below_a_size() -> None:
    assert wire.unpack_requests(request_body(images=[b"x" * wire.MAX_IMAGE_BYTES]))
    with pytest.raises(WireError, match="images"):
        wire.unpack_requests(request_body(images=[b"x" * (wire.MAX_IMAGE_BYTES + 1)]))


def test_a_lone_surrogate_in_a_verdict_does_not_cost_the_answer() -> None:
    verdict = Verdict(
        sample_id="s",
        principle="safety",
        verifier="v",
        verifier_version="1",
        status=VerdictStatus.OK,
        score=1.0,
        label="\ud800",
        evidence="said \udfff",
    )
    answer = wire.unpack_answer(wire.pack_answer(DIGEST, "v", "1", [verdict]), "safety")
    assert (answer.verdicts[0].label, answer.verdicts[0].evidence) == ("?", "said ?")


def test_meta_has_a_floor_and_a_limit_of_values() -> None:
    deep: object = 1
    for _ in range(wire.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(WireError, match="nested deeper"):
        wire.pack_request(make_request(meta={"deep": deep}))
    bottomless: object = 1
    for _ in range(450):
        bottomless = [bottomless]
    with pytest.raises(WireError, match="nested deeper"):
        wire.pack_request(make_request(meta={"deep": bottomless}))
    with pytest.raises(WireError, match="more than"):
        wire.pack_request(make_request(meta={"wide": [0] * wire.MAX_VALUES_PER_SAMPLE}))


@pytest.mark.parametrize(
    "meta", [{"a": object()}, {"a": 2**70}, {"a": math.nan}, {"a": "\ud800"}, {3: 1}]
)
def test_a_sample_that_no_body_can_carry_is_refused_by_the_sender(meta: dict[str, object]) -> None:
    with pytest.raises(WireError):
        wire.pack_request(make_request(meta=meta))


def test_samples_are_split_into_calls_that_keep_every_limit() -> None:
    big = [wire.pack_request(make_request(i, images=(b"x" * 1_500_000,))) for i in range(5)]
    assert wire.split_requests(big) == [[0, 1], [2, 3], [4]]
    small = [wire.pack_request(make_request(i)) for i in range(wire.MAX_REQUESTS + 1)]
    assert [len(call) for call in wire.split_requests(small)] == [wire.MAX_REQUESTS, 1]
    wide = make_request(meta={"wide": [0] * (wire.MAX_VALUES_PER_SAMPLE - 20)})
    items = [wire.pack_request(wide)] * wire.MAX_REQUESTS
    (call,) = wire.split_requests(items)
    assert len(wire.unpack_requests(wire.join_requests([items[i] for i in call]))) == len(items)
    assert wire.split_requests([]) == []


def test_an_answer_with_the_longest_evidence_fits_into_one_message() -> None:
    verdict = Verdict(
        sample_id="s" * 512,
        principle="safety",
        verifier="v",
        verifier_version="1",
        status=VerdictStatus.INVALID,
        cause=InvalidCause.ERROR,
        evidence="\N{GRINNING FACE}" * 100_000,
    )
    body = wire.pack_answer(DIGEST, "v", "1", [verdict] * wire.MAX_REQUESTS)
    answer = wire.unpack_answer(body, "safety")
    assert answer.verdicts[0].evidence == "\N{GRINNING FACE}" * wire.MAX_EVIDENCE_CHARS
