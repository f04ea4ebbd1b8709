"""Key slots: the right passphrase opens them, and hostile ones cost nothing."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.errors import DamageFound, RepositoryError, WrongKey
from drvm.repository import keys
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.keys import UNNAMED, About, make_slot, open_slots, read_about
from drvm.repository.layout import RepositoryConfig

CONFIG = RepositoryConfig(0, "00112233445566778899aabbccddeeff", ())
OTHER = RepositoryConfig(0, "ff112233445566778899aabbccddeeff", ())
MASTER = MasterKeys(bytes(range(32)), bytes(range(32, 64)))
PASSPHRASE = b"correct horse"
REAL_BOUNDS = (keys._MEMORY_BOUNDS, keys._PASSES_BOUNDS, keys._LANES_BOUNDS)  # before a fixture


def slot(config: RepositoryConfig = CONFIG, passphrase: bytes = PASSPHRASE) -> bytes:
    return make_slot("keys/0", passphrase, MASTER, config, UNNAMED)


def with_fields(**fields: object) -> bytes:
    return json.dumps(json.loads(slot()) | fields).encode()


def opened(*slots: bytes, passphrase: bytes = PASSPHRASE, config: RepositoryConfig | None = CONFIG):
    found = open_slots(passphrase, [(f"keys/{n}", data) for n, data in enumerate(slots)], config)
    return found.keys, found.config


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
    at = data.draw(st.integers(0, 1 << 20)) % (len(stored) * 8)
    stored[at // 8] ^= 1 << at % 8
    with contextlib.suppress(RepositoryError):
        assert opened(bytes(stored)) == (MASTER, CONFIG)  # white space, or the case of a digit


def test_a_slot_that_needs_more_memory_than_there_is_does_not_stop_the_others(monkeypatch):
    stretch = keys._stretch

    def poor(passphrase, salt, memory_kib, passes, lanes):
        if memory_kib == 65:
            raise MemoryError
        return stretch(passphrase, salt, memory_kib, passes, lanes)

    monkeypatch.setattr(keys, "_stretch", poor)
    with pytest.raises(WrongKey):
        opened(with_fields(memory_kib=65))
    dear = json.dumps(json.loads(slot()) | {"memory_kib": 65, "passes": 1}).encode()
    assert opened(dear, with_fields(memory_kib=66), slot())[0] == MASTER


# -- what a slot says of itself ---------------------------------------------------------------
SEALER = Sealer(MASTER, CONFIG.repository_id)
ABOUT = About("the safe", "2026-01-31T23:59:59.000000Z", "host1")


def made(name: str = "keys/aa") -> bytes:
    return make_slot(name, PASSPHRASE, MASTER, CONFIG, ABOUT)


def test_who_holds_the_master_keys_reads_what_a_slot_says_of_itself_without_its_passphrase():
    about = read_about(SEALER, "keys/aa", made())
    assert about is not None
    assert (about.label, about.created, about.host) == (ABOUT.label, ABOUT.created, ABOUT.host)


def test_nothing_of_it_stands_there_in_plain():
    assert b"safe" not in made() and b"host1" not in made()


def test_a_slot_of_other_master_keys_is_foreign():
    assert (
        read_about(Sealer(MasterKeys.generate(), CONFIG.repository_id), "keys/aa", made()) is None
    )


def test_a_slot_under_another_name_is_foreign():
    assert read_about(SEALER, "keys/bb", made()) is None


@pytest.mark.parametrize("field", ["memory_kib", "passes", "lanes", "salt", "wrapped", "config"])
def test_a_slot_that_borrows_what_another_says_is_foreign(field):
    own, other = json.loads(made()), json.loads(make_slot("keys/aa", b"x", MASTER, OTHER, ABOUT))
    value = own[field] + 1 if isinstance(own[field], int) else other[field]
    assert read_about(SEALER, "keys/aa", json.dumps(own | {field: value}).encode()) is None


@pytest.mark.parametrize("data", [b"", b"{}", made().replace(b'"about": "', b'"about": "x')])
def test_what_is_no_slot_is_damage(data):
    with pytest.raises(DamageFound):
        read_about(SEALER, "keys/aa", data)


def test_neither_keys_nor_what_opened_them_are_shown(capsys):
    found = open_slots(PASSPHRASE, [("keys/0", slot())], CONFIG)
    shown = f"{found!r} {found} {found.keys!r} {SEALER!r} {SEALER.cipher(b'point', bytes(32))!r}"
    for secret in (MASTER.seal, MASTER.block_id, PASSPHRASE):
        assert secret.hex() not in shown and repr(secret)[2:-1] not in shown


def test_what_some_passphrase_may_open_is_a_slot_and_nothing_else():
    assert keys.is_slot("keys/0", slot())
    assert not keys.is_slot("keys/0", b"noise")
    assert not keys.is_slot("keys/0", with_fields(passes=1000))
