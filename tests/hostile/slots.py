"""``drvm.json``, key slots and notices that lie. Whoever made them need not hold the keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.hostile.case import Case, closed, harmless
from tests.hostile.forge import Forge, Raw, as_json
from tests.hostile.manifests import DEEP, ESCAPES, HUGE, LONG

SALT, WRAPPED = "5a" * 32, "00" * 80


def config(**changes: Any) -> Callable[[Forge], str]:
    def plant(forge: Forge) -> str:
        fields = json.loads(forge.store.objects["drvm.json"][0])
        return forge.put("drvm.json", as_json(fields | changes))

    return plant


def config_of(content: bytes) -> Callable[[Forge], str]:
    return lambda forge: forge.put("drvm.json", content)


def of(content: bytes, number: int = 0) -> Callable[[Forge], str]:
    """One more slot."""
    return lambda forge: forge.put(f"keys/{number:016x}", content)


def slot(**changes: Any) -> Callable[[Forge], str]:
    """One more slot, that nobody's passphrase opens."""

    def plant(forge: Forge) -> str:
        fields = {
            "kdf": "argon2id",
            "memory_kib": 65536,
            "passes": 3,
            "lanes": 4,
            "salt": SALT,
            "wrapped": WRAPPED,
            "config": forge.store.objects["drvm.json"][0].decode(),
            "about": "",
        }
        return forge.put("keys/" + "0" * 16, as_json(fields | changes))

    return plant


def only(**changes: Any) -> Callable[[Forge], str]:
    """The true slot, altered, and no other."""

    def plant(forge: Forge) -> str:
        (name,) = (name for name in forge.store.objects if name.startswith("keys/"))
        return forge.put(name, as_json(json.loads(forge.store.objects[name][0]) | changes))

    return plant


def flood(forge: Forge) -> None:
    for number in range(5000):
        slot(salt=f"{number:064x}")(forge)
        forge.put(f"keys/{number:016x}", forge.store.objects.pop("keys/" + "0" * 16)[0])


def flood_of_noise(forge: Forge) -> None:
    for number in range(5000):
        forge.put(f"keys/{number:016x}", b"noise")


def flood_of_notices(forge: Forge) -> None:
    for number in range(5000):
        forge.put(f"leaving/{number:016x}.{number:016x}", b"")


def gone(forge: Forge) -> None:
    for name in [name for name in forge.store.objects if name.startswith("keys/")]:
        del forge.store.objects[name]


CASES: dict[str, Case] = {
    "a config of no JSON": harmless(config_of(b"\xff\x00")),
    "a config of nothing": harmless(config_of(b"")),
    "a config of deep lists": harmless(config_of(DEEP.encode())),
    "a config with long features": closed(config(features=[LONG, LONG])),
    "a config with an unknown field": harmless(config(**{ESCAPES: 1})),
    "a config of the future": closed(config(format_version=1)),
    "a config of a version of 400 digits": closed(config(format_version=HUGE)),
    "a config with a feature": closed(config(features=[ESCAPES])),
    "a config with a million features": closed(config(features=["x"] * 1_000_000)),
    "a config with other blocks": closed(config(block_bytes=1 << 62)),
    "a config with a fanout of nothing": closed(config(fanout=0)),
    "a config of another repository": closed(config(repository_id="0" * 32)),
    "a config whose id is a path": harmless(config(repository_id="../../../../../../../tmp/xx")),
    "a config whose id has a line feed": harmless(config(repository_id="0" * 31 + "\n")),
    "a slot of no JSON": harmless(of(b"\xff")),
    "a slot of nothing": harmless(of(b"")),
    "a slot of deep lists": harmless(of(b"[" * 8000)),
    "a slot of a quarter megabyte": harmless(slot(config=LONG)),
    "a slot of 63 megabytes": harmless(lambda forge: of(bytes(63 << 20))(forge)),
    "a slot of another function": harmless(slot(kdf="scrypt")),
    "a slot with a short salt": harmless(slot(salt="5a")),
    "a slot with a salt of no hex": harmless(slot(salt="z" * 64)),
    "a slot with a salt of other digits": harmless(slot(salt="٣" * 64)),
    "a slot with spaces in its salt": harmless(slot(salt=" ".join(["5a"] * 32))),
    "a slot that wraps too little": harmless(slot(wrapped="00" * 79)),
    "a slot with a lone surrogate": harmless(slot(config=Raw('"\\udfff"'))),
    "a slot about noise": harmless(slot(about="zz")),
    "a slot for another config": harmless(slot(config="{}")),
    "slots of noise in thousands": harmless(flood_of_noise),
    "slots in thousands": harmless(flood),
    "notices in thousands": harmless(flood_of_notices),
    "a notice of the slot itself": harmless(
        lambda forge: [
            forge.put(f"leaving/{name[5:]}.{'0' * 16}", b"")
            for name in list(forge.store.objects)
            if name.startswith("keys/")
        ]
    ),
    "no slot": closed(gone),
    "the slot with another config": closed(only(config="{}")),
    "the slot with another salt": closed(only(salt=SALT)),
    "the slot about somebody else": harmless(only(about="00")),
}

COSTS: dict[str, Case] = {
    "a slot of no memory": harmless(slot(memory_kib=8)),
    "a slot of a terabyte": harmless(slot(memory_kib=1 << 30)),
    "a slot of a gigabyte": harmless(slot(memory_kib=1 << 20)),
    "a slot of memory of 400 digits": harmless(slot(memory_kib=HUGE)),
    "a slot of memory below zero": harmless(slot(memory_kib=-65536)),
    "a slot of a billion passes": harmless(slot(passes=10**9)),
    "a slot of no passes": harmless(slot(passes=0)),
    "a slot of a million lanes": harmless(slot(lanes=1_000_000)),
    "a slot of no lanes": harmless(slot(lanes=0)),
    "a slot of all that is allowed": harmless(slot(memory_kib=1 << 20, passes=16, lanes=16)),
    "the slot with fewer passes": closed(only(passes=2)),
    "the slot with other keys": closed(only(wrapped=WRAPPED)),
}
"""About what a key costs: with the bounds that are in force."""
