"""Reading a domain XML within its bounds."""

from __future__ import annotations

import pytest

from drvm.core.errors import RestoreError
from drvm.restore.machine.source import (
    MAX_ATTRIBUTES,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    memory_bytes,
    parse,
)


def test_what_libvirt_writes_is_read() -> None:
    tree = parse(
        "<?xml version='1.0' encoding='UTF-8'?>\n<domain type='kvm'><name>ä</name></domain>"
    )
    assert tree.findtext("name") == "ä"


def _nested(depth: int) -> str:
    return "<domain>" + "<a>" * (depth - 1) + "</a>" * (depth - 1) + "</domain>"


def _wide(attributes: int) -> str:
    return "<domain " + " ".join(f"a{n}='1'" for n in range(attributes)) + "/>"


def _many(elements: int) -> str:
    return "<domain>" + "<a/>" * (elements - 1) + "</domain>"


def _long(size_bytes: int) -> str:
    frame = "<domain></domain>"
    return (
        "<domain>"
        + "é" * ((size_bytes - len(frame)) // 2)
        + " " * (size_bytes % 2 ^ 1)
        + ("</domain>")
    )


@pytest.mark.parametrize(
    "text",
    [_nested(MAX_DEPTH), _wide(MAX_ATTRIBUTES), _many(MAX_ELEMENTS), _long(MAX_BYTES)],
    ids=["depth", "attributes", "elements", "bytes"],
)
def test_the_bounds_themselves_are_allowed(text: str) -> None:
    assert parse(text).tag == "domain"


@pytest.mark.parametrize(
    "text",
    [
        _nested(MAX_DEPTH + 1),
        _wide(MAX_ATTRIBUTES + 1),
        _many(MAX_ELEMENTS + 1),
        _long(MAX_BYTES + 2),
    ],
    ids=["depth", "attributes", "elements", "bytes"],
)
def test_one_more_is_refused(text: str) -> None:
    with pytest.raises(RestoreError, match=r"deeper|more than|larger") as caught:
        parse(text)
    assert "--output" in caught.value.hint


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("<memory>1024</memory>", 1 << 20),
        ("<memory unit='KB'>1024</memory>", 1024_000),
        ("<memory unit='GiB'>2</memory>", 2 << 30),
        ("<memory unit='b'>7</memory>", 7),
        ("<memory unit='parsec'>7</memory>", 0),
        ("<memory>much</memory>", 0),
        ("", 0),
    ],
)
def test_memory_is_read_in_every_unit_that_libvirt_knows(memory: str, expected: int) -> None:
    assert memory_bytes(parse(f"<domain>{memory}</domain>")) == expected
