"""What can go wrong between drvm and its store, one function a kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.store_faults.proxy import (
    ALL,
    BODIES,
    READS,
    WRITES,
    Answer,
    Memory,
    Operation,
    React,
    Reaction,
    Request,
    Upstream,
)

_CREATES: frozenset[Operation] = frozenset(("create",))
_GETS: frozenset[Operation] = frozenset(("get",))
_LISTS: frozenset[Operation] = frozenset(("list",))
_PUTS: frozenset[Operation] = frozenset(("put", "create"))


@dataclass(frozen=True)
class Kind:
    """Whatever comes of it must be an error or the truth."""

    name: str
    operations: frozenset[Operation]
    react: React


def _error(status: int, code: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def _refuse(status: int, code: str) -> React:
    """The store says so and has done nothing."""

    def react(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
        return Reaction(_error(status, code))

    return react


def _done_but(status: int, code: str) -> React:
    """The store has done it and says otherwise."""

    def react(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
        upstream(request)
        return Reaction(_error(status, code))

    return react


def _no_answer(*, done: bool, reset: bool) -> React:
    def react(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
        if done:
            upstream(request)
        return Reaction(ending="reset" if reset else "silent")

    return react


def _part(*, silent: bool) -> React:
    """Half of the body under the whole one's length."""

    def react(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
        answer = upstream(request)
        half = len(answer.body) // 2
        return Reaction(answer, until=half, ending="silent" if silent else "reset")

    return react


def _altered(change: Callable[[Answer, Memory], Answer]) -> React:
    """The store's own answer, changed; its refusals stay."""

    def react(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
        answer = upstream(request)
        return Reaction(change(answer, memory) if answer.status < 300 else answer)

    return react


def _halved(answer: Answer, memory: Memory) -> Answer:
    return answer.with_body(answer.body[: len(answer.body) // 2])


def _flipped(answer: Answer, memory: Memory) -> Answer:
    body = bytearray(answer.body)
    if body:
        body[len(body) // 3] ^= 0x10
    return answer.with_body(bytes(body))


def _zeroed(answer: Answer, memory: Memory) -> Answer:
    return answer.with_body(bytes(len(answer.body)))


def _grown(answer: Answer, memory: Memory) -> Answer:
    return answer.with_body(answer.body + bytes(4096))


def _empty(answer: Answer, memory: Memory) -> Answer:
    return Answer(200, {}, b"")


def _portal(answer: Answer, memory: Memory) -> Answer:
    return Answer(200, {"Content-Type": "text/html"}, b"<html><body>please log in</body></html>")


def _of_another(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    answer = upstream(request)
    others = [
        one
        for target, one in list(memory.answers.items())
        if "list-type" not in target and one.body != answer.body
    ]
    return Reaction(others[-1] if others else _flipped(answer, memory))


def _stale(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    """What the same listing said before; the first time it says that there is nothing."""
    answer = upstream(request)
    empty = answer.with_body(_without_entries(answer.body, keep=0))
    return Reaction(memory.answers.get(request.target, empty))


def _whole(answer: Answer, memory: Memory) -> Answer:
    """The part that was asked for, given out as the whole object."""
    if answer.status != 206:
        return answer
    headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-range"}
    return Answer(200, headers, answer.body)


def _shifted(answer: Answer, memory: Memory) -> Answer:
    """Other bytes than were asked for, honestly labelled."""
    headers = dict(answer.headers)
    for name, value in answer.headers.items():
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", value)
        if name.lower() == "content-range" and match is not None:
            start, last, size = (int(number) for number in match.groups())
            headers[name] = f"bytes {start + 1}-{last + 1}/{size + 1}"
    if headers == dict(answer.headers):
        return _flipped(answer, memory)
    return Answer(answer.status, headers, answer.body)


_ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)


def _without_entries(body: bytes, keep: int) -> bytes:
    entries = _ENTRY.findall(body)
    for entry in entries[keep:]:
        body = body.replace(entry, b"", 1)
    return body


def _lost_page(answer: Answer, memory: Memory) -> Answer:
    """The second half of the listing is not there, and the answer calls itself complete."""
    return answer.with_body(_without_entries(answer.body, len(_ENTRY.findall(answer.body)) // 2))


def _doubled_page(answer: Answer, memory: Memory) -> Answer:
    end = b"</ListBucketResult>"
    entries = b"".join(_ENTRY.findall(answer.body))
    return answer.with_body(answer.body.replace(end, entries + end))


def _endless(answer: Answer, memory: Memory) -> Answer:
    body = answer.body.replace(b"<IsTruncated>false", b"<IsTruncated>true")
    token = b"<NextContinuationToken>round</NextContinuationToken></ListBucketResult>"
    return answer.with_body(body.replace(b"</ListBucketResult>", token))


def _twice(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    """Something in between sends the write again, and gives out the second answer."""
    upstream(request)
    return Reaction(upstream(request))


def _again_later(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    memory.duplicates.append(request)
    return Reaction(upstream(request))


def _lost_then_late(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    """The connection breaks; the write arrives when all is over."""
    memory.duplicates.append(request)
    return Reaction(ending="reset")


def _slow(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    return Reaction(upstream(request), slow=True)


def _garbage(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    return Reaction(raw=b"\x16\x03\x01 no http at all\r\n\r\n", ending="reset")


def _many_headers(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    lines = b"".join(b"X-Filler-%d: %s\r\n" % (n, b"x" * 1000) for n in range(200))
    return Reaction(raw=b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n", ending="reset")


def _elsewhere(request: Request, upstream: Upstream, memory: Memory) -> Reaction:
    body = _error(307, "TemporaryRedirect").body
    return Reaction(Answer(307, {"Location": "http://127.0.0.1:9/nowhere"}, body))


KINDS = (
    Kind("500 before", ALL, _refuse(500, "InternalError")),
    Kind("500 after", ALL, _done_but(500, "InternalError")),
    Kind("503 slow down", ALL, _refuse(503, "SlowDown")),
    Kind("503 after", WRITES, _done_but(503, "ServiceUnavailable")),
    Kind("429", ALL, _refuse(429, "TooManyRequests")),
    Kind("403 denied", ALL, _refuse(403, "AccessDenied")),
    Kind("400 expired", ALL, _refuse(400, "ExpiredToken")),
    Kind("403 skewed clock", ALL, _refuse(403, "RequestTimeTooSkewed")),
    Kind("507 full", _PUTS, _refuse(507, "XMinioStorageFull")),
    Kind("400 bad digest", _PUTS, _refuse(400, "BadDigest")),
    Kind("409 conflict", _CREATES, _refuse(409, "ConditionalRequestConflict")),
    Kind("412 untrue", _CREATES, _refuse(412, "PreconditionFailed")),
    Kind("412 after", _CREATES, _done_but(412, "PreconditionFailed")),
    Kind("404 untrue", _GETS, _refuse(404, "NoSuchKey")),
    Kind("404 no bucket", ALL, _refuse(404, "NoSuchBucket")),
    Kind("307 elsewhere", ALL, _elsewhere),
    Kind("reset before", ALL, _no_answer(done=False, reset=True)),
    Kind("reset after", ALL, _no_answer(done=True, reset=True)),
    Kind("silence before", ALL, _no_answer(done=False, reset=False)),
    Kind("silence after", WRITES, _no_answer(done=True, reset=False)),
    Kind("reset in body", BODIES, _part(silent=False)),
    Kind("silence in body", BODIES, _part(silent=True)),
    Kind("slow body", BODIES, _slow),
    Kind("half body", BODIES, _altered(_halved)),
    Kind("flipped bit", BODIES, _altered(_flipped)),
    Kind("zeroes", _GETS, _altered(_zeroed)),
    Kind("grown body", BODIES, _altered(_grown)),
    Kind("empty 200", READS, _altered(_empty)),
    Kind("portal page", READS, _altered(_portal)),
    Kind("another object", _GETS, _of_another),
    Kind("part as whole", _GETS, _altered(_whole)),
    Kind("other range", _GETS, _altered(_shifted)),
    Kind("lost page", _LISTS, _altered(_lost_page)),
    Kind("doubled page", _LISTS, _altered(_doubled_page)),
    Kind("stale listing", _LISTS, _stale),
    Kind("endless listing", _LISTS, _altered(_endless)),
    Kind("sent twice", WRITES, _twice),
    Kind("late duplicate", WRITES, _again_later),
    Kind("lost, then late", WRITES, _lost_then_late),
    Kind("no http", ALL, _garbage),
    Kind("endless headers", ALL, _many_headers),
)
