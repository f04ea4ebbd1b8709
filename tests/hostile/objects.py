"""The smaller objects, well sealed: pins, checks, drills, index objects; and names of any kind."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import zstandard

from drvm.repository.layout import final_object, point_object
from tests.hostile.case import Case, harmless, lost
from tests.hostile.forge import LIAR, Forge, Raw, as_json
from tests.hostile.manifests import DEEP, ESCAPES, HUGE, LONG
from tests.hostile.packs import BOMBS, bomb

GIB = 1 << 30
ALL = (1 << 32) - 1
PIN = {"note": "x", "created": "x", "host": "x"}
CHECK = {
    "start": "0" * 16,
    "length": "1" + "0" * 16,
    "rotates": True,
    "seconds": 1.0,
    "packs": 1,
    "read_bytes": 1,
    "damaged": 0,
    "created": "x",
    "host": "x",
}
DRILL: dict[str, Any] = {"format": 0}


def pin(**changes: Any) -> Callable[[Forge], str]:
    return lambda forge: forge.pin(as_json(PIN | changes))


def check(**changes: Any) -> Callable[[Forge], str]:
    return lambda forge: forge.check(as_json(CHECK | changes))


def index(*, packs: int, hooks: int, rest: bytes) -> Callable[[Forge], str]:
    return lambda forge: forge.index(struct.pack("<II", packs, hooks) + rest)


def many(name: Callable[[int], str], count: int = 5000) -> Callable[[Forge], None]:
    def plant(forge: Forge) -> None:
        for number in range(count):
            forge.put(name(number), b"noise")

    return plant


def odd_names(forge: Forge) -> None:
    """Objects that are none, among those that are."""
    for prefix in ("points/", f"points/{LIAR}/", "final/", "packs/", "index/", "pins/", "checks/"):
        for name in ("x", "a" * 255, "0" * 16 + ".x", "0" * 64 + "0", "-", "a.b.c", "a/b/c"):
            forge.put(prefix + name, b"noise")
    forge.put("condemned/x", b"")
    forge.put("leaving/x", b"")
    forge.put("keys/x", b"{}")


def other_uuid(forge: Forge) -> None:
    for uuid in ("-" * 36, "0" * 36, LIAR.replace("-", "0")):
        forge.put(point_object(uuid, "0" * 16, "0" * 16), b"noise")
        forge.put(final_object("0" * 16, "0" * 16), b"noise")


def condemned(forge: Forge) -> None:
    for name in [name for name in forge.store.objects if name.startswith("packs/")]:
        forge.put(f"condemned/{name[6:]}", b"\xff" * 1000)


def aborted(forge: Forge) -> None:
    """Finals of what is not there."""
    for number in range(1000):
        name = final_object(f"{number:016x}", "0" * 16)
        forge.seal(b"final", name, as_json({"status": "aborted", "manifest_sha256": "0" * 64}))


def moved(forge: Forge) -> None:
    """A good final under the name of another."""
    (data, _) = next(kept for name, kept in forge.store.objects.items() if "final/" in name)
    forge.put(final_object("0" * 16, "0" * 16), data)
    forge.put(point_object(LIAR, "0" * 16, "0" * 16), data)


def enveloped(length: int, frame: Callable[[], bytes]) -> Callable[[Forge], None]:
    """Each kind of sealed object with such a frame."""

    def plant(forge: Forge) -> None:
        content = frame()
        for purpose, name in (
            (b"pin", f"pins/{'0' * 16}.{'0' * 16}"),
            (b"check", f"checks/{'0' * 16}"),
            (b"index", f"index/{'0' * 64}"),
            (b"drill", f"drills/{LIAR}/0"),
            (b"final", final_object("0" * 16, "0" * 16)),
            (b"point", point_object(LIAR, "0" * 16, "0" * 16)),
        ):
            forge.seal_packed(purpose, name, length, content)

    return plant


def truncated(forge: Forge) -> None:
    for name in (f"pins/{'0' * 16}.{'0' * 16}", f"checks/{'0' * 16}", f"index/{'0' * 64}"):
        forge.put(name, b"drvmseal\0\0" + bytes(47))


def sealed_of_future(forge: Forge) -> None:
    name = forge.pin(as_json(PIN))
    forge.put(name, b"drvmseal\x01\0" + forge.store.objects[name][0][10:])


HOOK = bytes(8) + b"\0"
PACK = bytes(32)

CASES: dict[str, Case] = {
    **{f"sealed objects: {name}": lost(enveloped(4096, make)) for name, make in BOMBS.items()},
    "sealed objects that claim 4 GiB": lost(enveloped(0xFFFFFFFF, lambda: bomb(GIB))),
    "sealed objects that claim nothing": lost(enveloped(0, lambda: zstandard.compress(b"x"))),
    "sealed objects of 64 MiB of zeroes": lost(enveloped(64 << 20, lambda: bomb(64 << 20))),
    "sealed objects that are cut": harmless(truncated),
    "a sealed object of the future": harmless(sealed_of_future),
    "objects that were moved": lost(moved),
    "a pin of no JSON": harmless(lambda forge: forge.pin(b"\xff")),
    "a pin of deep lists": harmless(pin(note=DEEP)),
    "a pin with a long note": harmless(pin(note=LONG)),
    "a pin with control characters": harmless(pin(note=ESCAPES, host=ESCAPES, created=ESCAPES)),
    "a pin with an unknown field": harmless(pin(**{ESCAPES: 0})),
    "a pin of a point that is not there": harmless(lambda f: f.pin(as_json(PIN), "f" * 16)),
    "pins in thousands": harmless(many(lambda n: f"pins/{n:016x}.{n:016x}")),
    "a check of no JSON": harmless(lambda forge: forge.check(b"[]")),
    "a check of deep lists": harmless(check(start=DEEP)),
    "a check of the year 1": harmless(check(seconds=1e308)),
    "a check of NaN seconds": harmless(check(seconds=Raw("NaN"))),
    "a check below zero": harmless(check(seconds=-1)),
    "a check of 400 digits": harmless(check(packs=HUGE, read_bytes=HUGE, damaged=HUGE)),
    "a check longer than the circle": harmless(check(length="1" + "f" * 16)),
    "a check from nowhere": harmless(check(start="z" * 16)),
    "a check with a line feed": harmless(check(start="0" * 15 + "\n")),
    "a check of a rotation that is a number": harmless(check(rotates=2)),
    "a check of a quarter megabyte": harmless(check(host=LONG)),
    "checks in thousands": harmless(many(lambda n: f"checks/{n:016x}")),
    "a drill of no JSON": harmless(lambda forge: forge.drill(b"\xff\0")),
    "a drill of deep lists": harmless(lambda forge: forge.drill(DEEP.encode())),
    "a drill of the future": harmless(lambda forge: forge.drill(as_json({"format": 9}))),
    "a drill of nothing else": harmless(lambda forge: forge.drill(as_json(DRILL))),
    "a drill of a quarter megabyte": harmless(lambda forge: forge.drill(as_json({"format": LONG}))),
    "drills in thousands": harmless(many(lambda n: f"drills/{LIAR}/{n:x}")),
    "an index object of seven bytes": harmless(lambda forge: forge.index(bytes(7))),
    "an index object that claims all packs": harmless(index(packs=ALL, hooks=0, rest=b"")),
    "an index object that claims all hooks": harmless(index(packs=0, hooks=ALL, rest=b"")),
    "an index object of 65537 packs": harmless(index(packs=65537, hooks=0, rest=bytes(65537 * 36))),
    "an index object with a pack twice": harmless(
        index(packs=2, hooks=0, rest=PACK * 2 + bytes(8))
    ),
    "an index object with other counts": harmless(
        index(packs=1, hooks=1, rest=PACK + struct.pack("<I", 7) + HOOK)
    ),
    "an index object with counts that overflow": harmless(
        index(packs=2, hooks=1, rest=PACK + b"\1" * 32 + b"\xff" * 4 + b"\2\0\0\0" + HOOK)
    ),
    "an index object of packs that are not there": harmless(
        index(packs=1, hooks=1, rest=PACK + struct.pack("<I", 1) + HOOK)
    ),
    "an index object with hooks outside of any pack": harmless(
        index(packs=1, hooks=1, rest=PACK + struct.pack("<I", 1) + bytes(8) + b"\xff")
    ),
    "index objects in thousands": harmless(many(lambda n: f"index/{n:064x}")),
    "tombstones in thousands": harmless(many(lambda n: f"condemned/{n:064x}")),
    "tombstones on all packs": harmless(condemned),
    "packs of noise in thousands": harmless(many(lambda n: f"packs/{n:064x}", 2000)),
    "packs of noise": harmless(many(lambda n: f"packs/{n:064x}", 20)),
    "manifests of noise without finals": harmless(
        many(lambda n: point_object(LIAR, f"{n:016x}", f"{n:016x}"), 200)
    ),
    "finals of noise": harmless(many(lambda n: final_object(f"{n:016x}", f"{n:016x}"))),
    "finals of what is not there": harmless(aborted),
    "points of machines that have no UUID": lost(other_uuid),
    "probes in thousands": harmless(many(lambda n: f"probe/{n:x}")),
    "leases in thousands": harmless(many(lambda n: f"leases/{n:x}")),
    "objects that are none": harmless(odd_names),
}
