"""Manifests come back as they went in; the lies of a key holder stop at the door."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from drvm.core.errors import DamageFound, RepositoryError, UnsupportedFormat
from drvm.repository.manifest import Disk, Manifest, StoredBlob, decode_manifest
from tests.unit.repository.conftest import VM

BLOB = StoredBlob("ab" * 32, 3)
MOMENT = "2026-01-01T00:00:00.000000Z"
DISK = Disk("vda", 4096, "raw", "full-read", 1, 2, 3, {"compat": "1.1"}, BLOB)
MANIFEST = Manifest(
    id="0" * 16,
    vm="web1",
    vm_uuid=VM,
    created=MOMENT,
    finished=MOMENT,
    consistency="offline",
    engine="test",
    host="here",
    drvm_version="0",
    disks=(DISK,),
    definition=BLOB,
    tpm={"tpm2-00.permall": BLOB},
)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(MANIFEST.encode()) | fields).encode()


def with_disk(**fields: object) -> bytes:
    return changed(disks=[json.loads(MANIFEST.encode())["disks"][0] | fields])


def test_a_manifest_comes_back_as_it_went_in():
    assert decode_manifest(MANIFEST.encode(), "it") == MANIFEST


MEMORY = Disk("memory", 99, "raw", "full-read", 1, 2, 3, {}, BLOB)
RUNNING = replace(MANIFEST, memory=MEMORY)


def test_the_memory_is_a_stream_beside_the_disks():
    assert decode_manifest(RUNNING.encode(), "it") == RUNNING
    assert RUNNING.streams == (DISK, MEMORY)
    assert MANIFEST.streams == (DISK,)
    other = replace(MEMORY, new_bytes=7)
    assert RUNNING.with_streams([DISK, other]) == replace(RUNNING, memory=other)
    assert RUNNING.marked() != MANIFEST.marked()


@pytest.mark.parametrize(
    "lie",
    [
        replace(RUNNING, memory=replace(MEMORY, target="vdb")),
        replace(RUNNING, disks=(DISK, replace(DISK, target="memory"))),
    ],
)
def test_a_memory_has_a_name_of_its_own(lie: Manifest):
    with pytest.raises(DamageFound):
        decode_manifest(lie.encode(), "it")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"format_version": 0, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        MANIFEST.encode().replace(b"web1", b"\xff\xfe"),
        changed(unknown=1),
        changed(id="../../../../etc"),
        changed(id="0" * 15),
        changed(stored_bytes=1 << 63),
        changed(stored_bytes=10**400),
        with_disk(read_bytes=10**400),
        with_disk(root={"pack": "a" * 64, "number": 10**400}),
        changed(vm_uuid="x"),
        changed(vm_uuid=VM.upper().replace("1", "A")),
        changed(created="yesterday"),
        changed(created="zzzz"),
        changed(created="2026-01-01T00:00:00Z"),
        changed(created="2026-01-01T00:00:00.000000+01:00"),
        changed(created="0001-01-01T00:00:00.000000+23:59"),
        changed(finished=""),
        changed(consistency="good"),
        changed(frozen_seconds=-1),
        changed(stored_bytes=-1),
        changed(parent="x"),
        changed(definition={"pack": "ab", "number": 0}),
        changed(definition={"pack": "zz" * 32, "number": 0}),
        changed(definition={"pack": "ab" * 32, "number": -1}),
        changed(definition={"pack": " " + "ab" * 32, "number": 1}),
        changed(nvram={"pack": "AB" * 32, "number": 1}),
        changed(tpm={"../../etc/shadow": {"pack": "ab" * 32, "number": 1}}),
        changed(tpm={"tpm2-00.permall": None}),
        changed(group="all of them"),
        with_disk(target="../x"),
        with_disk(target=""),
        with_disk(size_bytes=-1),
        with_disk(size_bytes=(1 << 52) + 1),
        with_disk(format="vmdk"),
        with_disk(read_bytes=-1),
        with_disk(new_bytes=-1),
        with_disk(stored_bytes=-1),
        with_disk(root={"pack": "ab" * 31, "number": 0}),
        changed(disks=[json.loads(MANIFEST.encode())["disks"][0]] * 2),
    ],
)
def test_a_lie_is_damage(data):
    with pytest.raises(DamageFound, match="it "):
        decode_manifest(data, "it")


def test_a_manifest_of_before_there_was_tpm_state_is_read_as_having_none():
    older = json.loads(MANIFEST.encode())
    del older["tpm"]
    assert decode_manifest(json.dumps(older).encode(), "it").tpm == {}


def test_a_newer_format_is_refused_as_such():
    with pytest.raises(UnsupportedFormat):
        decode_manifest(changed(format_version=1, whatever=[]), "it")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
fields = sorted(json.loads(MANIFEST.encode()))
disk_fields = sorted(json.loads(MANIFEST.encode())["disks"][0])


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(fields), json_values)
def test_any_value_anywhere_is_taken_or_refused(field, value):
    check(changed(**{field: value}))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(disk_fields), json_values)
def test_any_value_in_a_disk_is_taken_or_refused(field, value):
    check(with_disk(**{field: value}))


def check(data: bytes) -> None:
    try:
        manifest = decode_manifest(data, "it")
    except RepositoryError:
        return
    assert re.fullmatch(r"[0-9a-f]{16}", manifest.id)
    assert re.fullmatch(r"[0-9a-f-]{36}", manifest.vm_uuid)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", manifest.created)
    for disk in manifest.disks:
        assert re.fullmatch(r"[a-z][a-z0-9]*", disk.target)
        assert 0 <= disk.size_bytes <= 1 << 52
