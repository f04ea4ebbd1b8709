"""Manifests and finals that lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.hostile.case import Case, harmless, lost, refused
from tests.hostile.forge import DOMAIN, LIAR, Forge, Raw, as_json

HUGE = Raw("1" + "0" * 400)
DEEP = Raw("[" * 100_000 + "]" * 100_000)
LONG = "x" * (256 << 10)
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\u2066\n\r\x00\x9b31m"
BLOB = {"pack": "a" * 64, "number": 0}


def with_fields(**changes: Any) -> Callable[[Forge], str]:
    return lambda forge: forge.point(**changes)


def with_disk(size: Any = 0, root: Any = None, **changes: Any) -> Callable[[Forge], str]:
    return lambda forge: forge.point(disks=[forge.disk(size, root, **changes)])


def of(plain: bytes) -> Callable[[Forge], str]:
    return lambda forge: forge.point_of(plain)


def final(plain: bytes) -> Callable[[Forge], str]:
    return lambda forge: forge.point_of(as_json(forge.manifest()), final=plain)


def without(field: str) -> Callable[[Forge], str]:
    def plant(forge: Forge) -> str:
        fields = forge.manifest()
        return forge.point_of(as_json({k: v for k, v in fields.items() if k != field}))

    return plant


def twice(forge: Forge) -> str:
    """Another id behind the true one, in one document."""
    text = as_json(forge.manifest())[:-1]
    return forge.point_of(text + b',"id":"../../../../tmp"}')


def many_disks(forge: Forge) -> str:
    return forge.point(disks=[forge.disk(0, None, f"a{n:x}") for n in range(20_000)])


def same_disk(forge: Forge) -> str:
    return forge.point(disks=[forge.disk(0, None), forge.disk(0, None)])


def texts(forge: Forge) -> str:
    disk = forge.disk(512, None, method=ESCAPES, image_options={ESCAPES: ESCAPES})
    told = {"engine": ESCAPES, "host": ESCAPES, "drvm_version": ESCAPES}
    return forge.point(
        **told, vm=ESCAPES, guest={ESCAPES: ESCAPES}, warnings=[ESCAPES] * 3, disks=[disk]
    )


def long_texts(forge: Forge) -> str:
    return forge.point(vm=LONG, host=LONG, guest={LONG: LONG}, warnings=[LONG])


def options(**values: str) -> Callable[[Forge], str]:
    def plant(forge: Forge) -> str:
        told = forge.disk(1 << 20, None, format="qcow2", image_options=values)
        return forge.point(disks=[told])

    return plant


def tpm(name: str) -> Callable[[Forge], str]:
    return lambda forge: forge.point(tpm={name: forge.blob(b"state")})


def parts_lost(field: str) -> Callable[[Forge], str]:
    return lambda forge: forge.point(**{field: BLOB})


def definition(forge: Forge) -> str:
    return forge.point(definition=forge.blob(DOMAIN.encode()), nvram=forge.blob(b"n" * 1000))


def other_name(forge: Forge) -> str:
    """A manifest whose id is not that of the object."""
    return forge.point_of(as_json(forge.manifest()), "0123456789abcdef")


def raced(forge: Forge) -> str:
    """A hundred generations of one point, of which one is whole."""
    for _ in range(100):
        forge.point_of(b"{}", "00000000000000aa")
    return forge.point(id="00000000000000aa")


CASES: dict[str, Case] = {
    "no JSON": lost(of(b"\x00\xff")),
    "nothing": lost(of(b"")),
    "JSON of another kind": lost(of(b"[1, 2, 3]")),
    "deep lists": lost(of(DEEP.encode())),
    "deep objects": lost(of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    "a list of a million": lost(with_fields(disks=Raw("[" + "0," * 1_000_000 + "0]"))),
    "a million warnings": harmless(with_fields(warnings=Raw('["",' + '"",' * 999_998 + '""]'))),
    "a million unknown fields": lost(
        of(b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}")
    ),
    "a version of the future": lost(with_fields(format_version=1)),
    "a version below zero": lost(with_fields(format_version=-1)),
    "a version of 400 digits": lost(with_fields(format_version=HUGE)),
    "a version that is a text": lost(with_fields(format_version="0")),
    "an unknown field": lost(with_fields(evil=1)),
    "an unknown field with control characters": lost(with_fields(**{ESCAPES: 1})),
    "an unknown field of a quarter megabyte": lost(with_fields(**{LONG: 1})),
    "a field twice": lost(twice),
    "no id": lost(without("id")),
    "no UUID": lost(without("vm_uuid")),
    "no consistency": lost(without("consistency")),
    "an id that is a path": lost(with_fields(id="../../../../etc")),
    "an id of another point": lost(other_name),
    "an id with a line feed": lost(with_fields(id="0123456789abcde\n")),
    "an id in other digits": lost(with_fields(id="٠١٢٣٤٥٦٧٨٩abcdef")),
    "a parent that is a path": lost(with_fields(parent="../../x")),
    "a group that is a path": lost(with_fields(group="../../x")),
    "a UUID of another machine": lost(with_fields(vm_uuid=LIAR.replace("6", "7"))),
    "a UUID that is a path": lost(with_fields(vm_uuid="../" * 12)),
    "a UUID in braces": lost(with_fields(vm_uuid="{" + LIAR + "}")),
    "a UUID of a quarter megabyte": lost(with_fields(vm_uuid=LONG)),
    "a machine called as a path": harmless(with_fields(vm="../../../../tmp/evil")),
    "a machine called as an option": harmless(with_fields(vm="--help")),
    "a machine without a name": harmless(with_fields(vm="")),
    "a machine that is a number": lost(with_fields(vm=7)),
    "texts with control characters": harmless(texts),
    "texts of a quarter megabyte": harmless(long_texts),
    "a lone surrogate": lost(with_fields(vm=Raw('"\\ud800"'))),
    "a surrogate in UTF-8": lost(with_fields(vm=Raw('"\ud800"'))),
    "a time of the year 1": lost(with_fields(created="0001-01-01T00:00:00.000000Z")),
    "a time of the year 9999": harmless(
        with_fields(created="9999-12-31T23:59:59.999999Z", finished="9999-12-31T23:59:59.999999Z")
    ),
    "a time of the year 10000": lost(with_fields(created="10000-01-01T00:00:00.000000Z")),
    "a time with a far zone": lost(with_fields(created="9999-12-31T23:59:59.999999-23:59")),
    "a time without a zone": lost(with_fields(created="2026-01-01T00:00:00.000000")),
    "a time that is no time": lost(with_fields(finished="yesterday")),
    "a time of a quarter megabyte": lost(with_fields(finished=LONG)),
    "another consistency": lost(with_fields(consistency="perfect")),
    "a freeze of all time": harmless(with_fields(frozen_seconds=1e308)),
    "a freeze of less than nothing": lost(with_fields(frozen_seconds=-1)),
    "a freeze of NaN": lost(with_fields(frozen_seconds=Raw("NaN"))),
    "a freeze without end": lost(with_fields(frozen_seconds=Raw("1e999"))),
    "sizes of 400 digits": lost(with_fields(stored_bytes=HUGE)),
    "sizes of 5000 digits": lost(with_fields(stored_bytes=Raw("9" * 5000))),
    "sizes below zero": lost(with_fields(stored_bytes=-1)),
    "sizes with a fraction": lost(with_fields(stored_bytes=1.5)),
    "sizes as large as can be": harmless(with_fields(stored_bytes=(1 << 63) - 1)),
    "a mark that is none": lost(with_fields(mark="0" * 31 + "\n")),
    "copied from a path": lost(
        with_fields(copied_from={"repository": "../" * 10 + "xx", "host": "h", "at": "x"})
    ),
    "a disk of 4 PiB of zeroes": refused(with_disk(1 << 52)),
    "a disk larger than any": lost(with_disk((1 << 52) + 1)),
    "a disk of 400 digits": lost(with_disk(HUGE)),
    "a disk below zero": lost(with_disk(-4096)),
    "a disk of a text": lost(with_disk("4096")),
    "a disk that says it has read 400 digits": lost(with_disk(0, read_bytes=HUGE)),
    "a disk called as a path": lost(with_disk(target="../../evil")),
    "a disk called up": lost(with_disk(target="..")),
    "a disk with an absolute path": lost(with_disk(target="/etc/passwd")),
    "a disk with a line feed": lost(with_disk(target="vda\n")),
    "a disk with a NUL": lost(with_disk(target="vda\x00")),
    "a disk with a long name": lost(with_disk(target="v" * 300)),
    "a disk without a name": lost(with_disk(target="")),
    "two disks of one name": lost(same_disk),
    "twenty thousand disks": refused(many_disks),
    "a format with options": lost(with_disk(format="raw,file=/etc/shadow")),
    "a format that is a protocol": lost(with_disk(format="nbd")),
    "image options with a backing file": harmless(options(backing_file="/etc/shadow")),
    "image options with a data file": harmless(options(data_file="/etc/shadow")),
    "image options that inject": refused(options(cluster_size="64k,backing_file=/etc/shadow")),
    "image options with a key": harmless(options(**{"compat=1.1,backing_file": "/etc/shadow"})),
    "a preallocated image": harmless(options(preallocation="full")),
    "image options of a gigabyte cluster": refused(options(cluster_size="1G")),
    "a root in a pack that is not there": lost(with_disk(4096, BLOB)),
    "a root whose pack is a path": lost(with_disk(4096, {"pack": "../" * 21 + "x", "number": 0})),
    "a root in capitals": lost(with_disk(4096, {"pack": "A" * 64, "number": 0})),
    "a root of 400 digits": lost(with_disk(4096, {"pack": "a" * 64, "number": HUGE})),
    "a root below zero": lost(with_disk(4096, {"pack": "a" * 64, "number": -1})),
    "a root for a disk of no bytes": harmless(with_disk(0, BLOB)),
    "a definition that is not there": lost(parts_lost("definition")),
    "an NVRAM that is not there": lost(parts_lost("nvram")),
    "a definition and an NVRAM": harmless(definition),
    "TPM state called as a path": lost(tpm("../../tpm2-00.permall")),
    "TPM state with an absolute path": lost(tpm("/etc/cron.d/evil")),
    "TPM state called as a disk": lost(tpm("vda.raw")),
    "TPM state called as the definition": lost(tpm("domain.xml")),
    "TPM state": harmless(tpm("tpm2-00.permall")),
    "a hundred generations": harmless(raced),
    "a final of no JSON": lost(final(b"\xff")),
    "a final of another status": harmless(final(as_json({"status": "OK", "manifest_sha256": ""}))),
    "a final of another digest": lost(
        final(as_json({"status": "ok", "manifest_sha256": "0" * 64}))
    ),
    "a final with a long digest": lost(final(as_json({"status": "ok", "manifest_sha256": LONG}))),
    "a final with deep lists": lost(final(as_json({"status": DEEP, "manifest_sha256": ""}))),
    "a final with more fields": lost(
        final(as_json({"status": "ok", "manifest_sha256": "", ESCAPES: ""}))
    ),
}
