"""``drvm.json`` is read before anything is authenticated: noise is damage, news is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository import layout
from drvm.repository.layout import RepositoryConfig, decode_config

CONFIG = RepositoryConfig(0, "00112233445566778899aabbccddeeff", ())


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(CONFIG.encode()) | fields).encode()


def test_the_config_comes_back_as_it_went_in():
    assert decode_config(CONFIG.encode()) == CONFIG


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        changed(repository_id="xx"),
        changed(repository_id="00" * 16 + "\n"),
        changed(unknown=1),
        changed(format_version="0"),
        CONFIG.encode().replace(b"0011", b"\xff\xfe11"),
        b'{"format_version": 0, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_noise_is_damage(data):
    with pytest.raises(DamageFound, match=r"drvm\.json"):
        decode_config(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"format_version": 1, "whatever": "newer"},
        {"features": ["sparse"]},
        {"block_bytes": 8192},
        {"fanout": 64},
    ],
)
def test_what_another_drvm_wrote_is_refused(fields):
    with pytest.raises(UnsupportedFormat):
        decode_config(changed(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"features": ["x" * 100_000]},
        {"features": ["x"] * 100_000},
        {"repository_id": "x" * 100_000},
        {"x" * 100_000: 1},
        {"format_version": 10**4000},
    ],
)
def test_what_is_told_of_it_is_short(fields):
    with pytest.raises(RepositoryError) as caught:
        decode_config(changed(**fields))
    assert len(caught.value.message) < 500


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(RepositoryError):
        decode_config(data)


@given(st.text(max_size=120))
def test_only_names_that_drvm_makes_are_taken_for_packs_and_points(text):
    assert layout.pack_name(f"packs/{text}") is None or len(text) == 64
    assert layout.parse_point(f"points/{text}") is None or len(text) == 36 + 1 + 16 + 1 + 16


def test_names_of_packs_and_points_come_back():
    assert layout.pack_name(layout.pack_object(bytes(range(32)))) == bytes(range(32))
    parts = ("11111111-2222-4333-8444-555555555555", "0" * 16, "f" * 16)
    assert layout.parse_point(layout.point_object(*parts)) == parts
    assert layout.parse_point(layout.point_object(*parts) + "\n") is None
