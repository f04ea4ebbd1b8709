"""Key slots: the right passphrase opens them, and hostile ones cost nothing."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, RepositoryError, WrongKey
from drvm.repository import keys
from drvm.repository.crypto import MasterKeys
from drvm.repository.keys import make_slot, open_slots
from drvm.repository.layout import RepositoryConfig

CONFIG = RepositoryConfig(0, "00112233445566778899aabbccddeeff", ())
OTHER = RepositoryConfig(0, "ff112233445566778899aabbccddeeff", ())
MASTER = MasterKeys(bytes(range(32)), bytes(range(32, 64)))
PASSPHRASE = b"correct horse"
REAL_BOUNDS = (keys._MEMORY_BOUNDS, keys._PASSES_BOUNDS, keys._LANES_BOUNDS)  # before a fixture


def slot(config: RepositoryConfig = CONFIG, passphrase: bytes = PASSPHRASE) -> bytes:
    return make_slot(passphrase, MASTER, config)


def with_fields(**fields: object) -> bytes:
    return json.dumps(json.loads(slot()) | fields).encode()


def opened(*slots: bytes, passphrase: bytes = PASSPHRASE, config: RepositoryConfig | None = CONFIG):
    return open_slots(passphrase, [(f"keys/{n}", data) for n, data in enumerate(slots)], config)


def test_the_passphrase_opens_its_slot():
    assert opened(slot()) == (MASTER, CONFIG)


def test_any_of_several_slots_serves():
    assert opened(slot(passphrase=b"other"), b"noise", slot())[0] == MASTER


def test_another_passphrase_opens_nothing():
    with pytest.raises(WrongKey):
        opened(slot(), passphrase=b"battery staple")


def test_no_slots_at_all_is_damage():
    with pytest.raises(DamageFound, match="no key slots"):
        opened()


def test_a_config_that_was_changed_behind_the_slot_is_damage():
    with pytest.raises(DamageFound, match="changed"):
        opened(slot(), config=OTHER)


def test_a_slot_left_by_an_init_that_died_does_not_shut_out_its_successor():
    assert opened(slot(OTHER), slot())[0] == MASTER


def test_without_a_config_the_authenticated_copy_in_the_slot_serves():
    assert opened(slot(), config=None) == (MASTER, CONFIG)


@pytest.mark.parametrize(
    "fields",
    [
        {"kdf": "scrypt"},
        {"memory_kib": 63},
        {"memory_kib": 1 << 40},
        {"memory_kib": -64},
        {"passes": 0},
        {"passes": 1000},
        {"lanes": 0},
        {"lanes": 1 << 20},
        {"salt": "00"},
        {"salt": "zz" * 32},
        {"wrapped": ""},
        {"unknown": 1},
    ],
)
def test_a_slot_out_of_bounds_is_left_out_before_any_work(fields, monkeypatch):
    hostile = with_fields(**fields)
    monkeypatch.setattr(keys, "_stretch", lambda *_: pytest.fail("the slot was believed"))
    with pytest.raises(WrongKey, match="damaged and left out"):
        opened(hostile)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"kdf": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        slot().replace(b"argon2id", b"argon\xff\xfed"),
        b'{"kdf": "\\ud800"}',
    ],
)
def test_noise_is_left_out(data):
    with pytest.raises(WrongKey, match="damaged and left out"):
        opened(data)


def test_the_real_bounds_refuse_slots_that_were_weakened_or_blown_up():
    memory_kib, passes, lanes = REAL_BOUNDS
    assert (memory_kib, passes, lanes) == (range(65536, 1048577), range(3, 17), range(1, 17))


def test_slots_that_cost_more_are_tried_last(monkeypatch):
    hostile, own = with_fields(memory_kib=1024, passes=16), slot()
    costs = []
    stretch = keys._stretch

    def watched(*arguments):
        costs.append(arguments[2] * arguments[3])
        return stretch(*arguments)

    monkeypatch.setattr(keys, "_stretch", watched)
    assert opened(hostile, own, hostile)[0] == MASTER
    assert costs == [64]


@settings(deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused_or_without_effect(data):
    stored = bytearray(slot())
    at = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[at // 8] ^= 1 << at % 8
    with contextlib.suppress(RepositoryError):
        assert opened(bytes(stored)) == (MASTER, CONFIG)  # white space, or the case of a digit
