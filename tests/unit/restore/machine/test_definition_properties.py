"""Whatever is planted, wherever: the rebuilt definition is harmless, or there is none."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from drvm.core.errors import RestoreError
from drvm.core.ids import is_uuid
from drvm.restore.machine.definition import DefinitionSpec, VirtType, rebuild
from drvm.restore.machine.difference import difference
from drvm.restore.machine.source import parse
from tests.unit.restore.hostile import DISARMED, REFUSED
from tests.unit.restore.machines import CLONE, NAMES, assert_harmless, clone_of, images, machine

_TREES = {name: parse(machine(name)) for name in NAMES}
_ELEMENTS = [element for tree in _TREES.values() for element in tree.iter()]
_TAGS = sorted({element.tag for element in _ELEMENTS} | {"mirror", "secret", "rom", "script"})
_ATTRIBUTES = sorted({name for element in _ELEMENTS for name in element.attrib} | {"path", "file"})
_VALUES = sorted({value for element in _ELEMENTS for value in element.attrib.values()})

markers = st.sampled_from(
    ["/orig/x", "/orig/x.qcow2", " /orig/y", "file:///orig/z", "unix:/orig/s", "a=/orig/b,c=d"]
)
values = st.one_of(markers, st.sampled_from(_VALUES), st.text("a/.,:\n0x'\"<&é", max_size=12))


@dataclass(frozen=True)
class Change:
    kind: str
    place: int
    tag: str
    attribute: str
    value: str
    other: int


changes = st.builds(
    Change,
    st.sampled_from(["set", "text", "insert", "double", "graft", "remove", "rename"]),
    st.integers(0, 10_000),
    st.sampled_from(_TAGS),
    st.sampled_from(_ATTRIBUTES),
    values,
    st.integers(0, len(_ELEMENTS) - 1),
)


def _apply(tree: ET.Element, change: Change) -> None:
    elements = list(tree.iter())
    place = elements[change.place % len(elements)]
    match change.kind:
        case "set":
            place.set(change.attribute, change.value)
        case "text":
            place.text = change.value
        case "insert":
            ET.SubElement(place, change.tag, {change.attribute: change.value}).text = change.value
        case "double":
            place.extend(copy.deepcopy(list(place)[:3]))
        case "graft":
            place.insert(0, copy.deepcopy(_ELEMENTS[change.other]))
        case "remove":
            for child in list(place)[:1]:
                place.remove(child)
        case "rename":
            if place is not tree:
                place.tag = change.tag


def _rebuild_or_refuse(original: str, spec: DefinitionSpec) -> ET.Element | None:
    try:
        made = rebuild(original, spec)
    except RestoreError:
        return None
    for line in (*made.dropped, *made.changed):
        assert line.isprintable()
    difference(original, made.xml)
    return assert_harmless(made, spec)


@settings(max_examples=300)
@given(
    name=st.sampled_from(NAMES),
    todo=st.lists(changes, max_size=12),
    isolate_to=st.sampled_from([None, "drill-net"]),
    virt_type=st.sampled_from([None, "qemu"]),
)
def test_no_change_of_a_definition_lets_the_original_host_through(
    name: str, todo: list[Change], isolate_to: str | None, virt_type: VirtType | None
) -> None:
    tree = copy.deepcopy(_TREES[name])
    for change in todo:
        _apply(tree, change)
    spec = DefinitionSpec(CLONE, images(name), isolate_to=isolate_to, virt_type=virt_type)
    made = _rebuild_or_refuse(ET.tostring(tree, encoding="unicode"), spec)
    if made is None:
        return
    old_uuid = (tree.findtext("uuid") or "").strip().lower()
    if is_uuid(old_uuid):  # other texts, such as "0", stand everywhere
        assert old_uuid not in ET.tostring(made, encoding="unicode").lower()
    old = {mac.get("address", "").lower() for mac in tree.iterfind("devices/interface/mac")}
    for mac in made.iterfind("devices/interface/mac"):
        assert mac.get("address") not in old


@settings(max_examples=200)
@given(st.sampled_from(NAMES), st.integers(0, 10_000), markers)
def test_a_path_planted_anywhere_never_comes_out(name: str, place: int, marker: str) -> None:
    tree = copy.deepcopy(_TREES[name])
    elements = [element for element in tree.iter() if element is not tree]
    chosen = elements[place % len(elements)]
    for attribute in list(chosen.attrib) or ["file"]:
        chosen.set(attribute, marker)
    chosen.text = marker
    _rebuild_or_refuse(ET.tostring(tree, encoding="unicode"), clone_of(name))


@settings(max_examples=100)
@given(st.sampled_from(NAMES), st.integers(0, 10_000), st.integers(0, 2), st.booleans())
def test_a_clone_never_carries_the_old_uuid_or_macs_wherever_they_stand(
    name: str, place: int, which: int, upper: bool
) -> None:
    tree = copy.deepcopy(_TREES[name])
    uuid = tree.findtext("uuid", "")
    macs = [mac.get("address", "") for mac in tree.iterfind("devices/interface/mac")]
    planted = (uuid, uuid.replace("-", ""), " ".join([uuid, *macs]))[which]
    elements = [e for e in tree.iter() if e.tag not in ("domain", "uuid", "mac", "interface")]
    elements[place % len(elements)].text = planted.upper() if upper else planted
    made = _rebuild_or_refuse(ET.tostring(tree, encoding="unicode"), clone_of(name))
    assume(made is not None)
    assert made is not None
    text = ET.tostring(made, encoding="unicode").lower()
    for old in planted.split():
        assert old not in text


@given(st.text())
@example("<domain/>")
@example("\udc80")
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    _rebuild_or_refuse(text, clone_of("bios_i440fx"))


@given(
    st.sampled_from(sorted({**DISARMED, **REFUSED})),
    st.integers(0, 5000),
    st.text(alphabet="<>&'\"/ =!-[]ax0", max_size=6),
)
def test_a_damaged_definition_is_read_or_refused(name: str, place: int, inserted: str) -> None:
    text = {**DISARMED, **REFUSED}[name][:20_000]
    cut = place % (len(text) + 1)
    _rebuild_or_refuse(text[:cut] + inserted + text[cut:], clone_of("bios_i440fx"))
