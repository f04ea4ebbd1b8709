"""The first policy that covers a machine is its policy; where nobody can tell, that is said."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.config.load import parse_config
from drvm.config.policies import PolicyConfig
from drvm.core.clock import rfc3339
from drvm.core.errors import HostUnreachable, RestoreError
from drvm.host.model import Domain, Host
from drvm.repository.manifest import Manifest, StoredBlob
from drvm.repository.points import Point
from drvm.wiring.fleet import Look, Seen, look_at_all, survey
from drvm.wiring.selection import (
    MAX_TAGS,
    Choice,
    PointPolicies,
    choice_of_domain,
    choose,
    policy_of_name,
    tags_of,
)
from tests.fakes.chain_host import FakeDomain, FakeHost

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
DEFINITION = StoredBlob("a" * 64, 1)
UUIDS = [f"{n:08d}-0000-4000-8000-000000000000" for n in range(4)]


def policies(text: str) -> tuple[PolicyConfig, ...]:
    return parse_config(f"policies:\n{text}".encode(), "c.yaml", {}).policies


TAGGED = policies(
    "  - {name: gold, tags: [gold]}\n"
    "  - {name: far, vms: ['*'], hosts: ['qemu+ssh://*']}\n"
    "  - {name: rest, vms: ['*'], exclude: ['*-test']}\n"
)


def names(found: Choice) -> str | None:
    return found.policy.name if found.policy is not None else None


@pytest.mark.parametrize(
    ("vm", "tags", "host", "expected"),
    [
        ("web1", {"gold"}, "qemu:///system", "gold"),
        ("web1", {"Gold"}, "qemu:///system", "rest"),
        ("web1", set(), "qemu+ssh://kvm2/system", "far"),
        ("web1-test", set(), "qemu:///system", None),
        ("web1-test", {"gold"}, "qemu:///system", "gold"),
    ],
)
def test_the_first_policy_that_covers_a_vm_is_its_policy(
    vm: str, tags: set[str], host: str, expected: str | None
) -> None:
    found = choose(TAGGED, vm, frozenset(tags), host)
    assert (names(found), found.doubt) == (expected, "")


@pytest.mark.parametrize(
    ("tags", "host", "word"),
    [(None, "qemu:///system", "tags"), (set(), None, "host"), (None, None, "tags and host")],
)
def test_what_can_not_be_told_leaves_a_doubt_and_no_policy(
    tags: set[str] | None, host: str | None, word: str
) -> None:
    known = None if tags is None else frozenset(tags)
    found = choose(TAGGED[:2] if host is None else TAGGED, "web1", known, host)
    assert found.policy is None and f"its {word} can't" in found.doubt


def test_a_policy_before_the_doubtful_one_leaves_none() -> None:
    assert names(choose(TAGGED[::-1], "web1", None, None)) == "rest"


def test_an_excluded_vm_is_not_covered_whatever_else_is_unknown() -> None:
    only = policies("  - {name: gold, tags: [gold], hosts: ['*'], exclude: [web1]}\n")
    assert choose(only, "web1", None, None) == Choice()


def test_image_files_are_chosen_by_name_alone() -> None:
    found = policy_of_name(TAGGED, "firewall")
    assert found is not None and found.name == "rest"


def domain_xml(title: str = "", metadata: str = "") -> str:
    return f"<domain><title>{title}</title><metadata>{metadata}</metadata></domain>"


def test_tags_stand_in_the_title_and_in_drvms_own_metadata() -> None:
    metadata = (
        "<drvm:tags xmlns:drvm='urn:drvm:tags'>silver\n daily.1 </drvm:tags>"
        "<x:tags xmlns:x='urn:else'>iron</x:tags><tags>lead</tags>"
    )
    xml = domain_xml("The #gold one, no#thing, ##x #", metadata)
    assert tags_of(xml) == {"gold", "silver", "daily.1"}


def test_a_definition_has_only_so_many_tags() -> None:
    words = " ".join(f"t{n}" for n in range(5000))
    tags = f"<t:tags xmlns:t='urn:drvm:tags'>{words}</t:tags>"
    assert len(tags_of(domain_xml("", tags * 50))) == MAX_TAGS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain",
        "<other/>",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><title>&a;</title></domain>",
    ],
)
def test_what_is_no_definition_is_refused(text: str) -> None:
    with pytest.raises(RestoreError):
        tags_of(text)


@given(st.text(max_size=200))
def test_whatever_stands_in_a_title_is_refused_or_gives_words_that_a_config_can_name(
    text: str,
) -> None:
    try:
        found = tags_of(domain_xml(text))
    except RestoreError:
        return
    for tag in found:
        assert policies(f"  - {{name: a, tags: ['{tag}']}}\n")[0].tags == (tag,)


class Titled(FakeDomain):
    title = ""

    def xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        return domain_xml(self.title)


def test_a_live_domain_that_can_not_be_read_is_in_doubt_only_where_policies_have_tags() -> None:
    broken = Titled("web1", UUIDS[0], {})
    broken.title = "<"
    domain = cast(Domain, cast(Any, broken))
    assert choice_of_domain(TAGGED, "qemu:///system", domain).doubt
    assert names(choice_of_domain(TAGGED[1:], "qemu:///system", domain)) == "rest"


def point(vm: str, uuid: str, definition: StoredBlob | None = DEFINITION) -> Point:
    moment = rfc3339(NOW)
    manifest = Manifest(
        id="0" * 16,
        vm=vm,
        vm_uuid=uuid,
        created=moment,
        finished=moment,
        consistency="crash",
        engine="external",
        host="kvm1",
        drvm_version="0",
        parent=None,
        frozen_seconds=0.0,
        stored_bytes=0,
        disks=(),
        definition=definition,
    )
    return Point(manifest, "0" * 16)


def chosen(
    there: dict[str, list[Choice]] | None = None,
    away: tuple[str, ...] = (),
    stored: str = domain_xml(),
    chooses_by: tuple[PolicyConfig, ...] = TAGGED[::2],
) -> PointPolicies:
    return PointPolicies(chooses_by, there or {}, away, lambda _: stored.encode())


def test_of_a_vm_that_is_gone_its_points_definition_tells_the_tags() -> None:
    gone = point("web1", UUIDS[0]).manifest
    assert names(chosen().of(gone)) == "rest"
    assert names(chosen(stored=domain_xml("#gold")).of(gone)) == "gold"


@pytest.mark.parametrize("stored", ["<domain", "\udcff"])
def test_of_a_vm_whose_definition_can_not_be_read_nobody_can_tell(stored: str) -> None:
    unread = PointPolicies(TAGGED, {}, (), lambda _: stored.encode(errors="surrogateescape"))
    assert unread.of(point("web1", UUIDS[0]).manifest).doubt
    assert chosen().of(point("web1", UUIDS[0], None).manifest).doubt


def test_where_a_host_does_not_answer_nobody_can_tell_of_a_vm_that_no_other_has() -> None:
    mine, other = Choice(TAGGED[0]), point("web2", UUIDS[1]).manifest
    found = chosen({UUIDS[0]: [mine]}, ("qemu+ssh://kvm2/system",), domain_xml("#gold"))
    assert found.of(point("web1", UUIDS[0]).manifest) == mine
    assert "qemu+ssh://kvm2/system does not answer" in found.of(other).doubt


def test_where_names_suffice_no_host_matters() -> None:
    found = chosen({}, ("qemu:///system",), "", TAGGED[2:])
    assert names(found.of(point("web1", UUIDS[0], None).manifest)) == "rest"


def test_a_vm_on_two_hosts_under_two_policies_is_in_doubt() -> None:
    twice = {UUIDS[0]: [Choice(TAGGED[0]), Choice(TAGGED[2])]}
    assert "two hosts" in chosen(twice).of(point("web1", UUIDS[0]).manifest).doubt


class Away(FakeHost):
    uri = "qemu+ssh://kvm2/system"

    def domains(self) -> list[Any]:
        raise HostUnreachable("no connection", hint="look")


def hosts(*found: FakeHost) -> list[Host]:
    return [cast(Host, cast(Any, host)) for host in found]


def test_a_vm_that_was_renamed_and_moved_is_followed_by_its_uuid() -> None:
    there = FakeHost(FakeDomain("web1-new", UUIDS[0], {}))
    look = look_at_all(hosts(FakeHost(), there), TAGGED)
    (vm,) = survey(look, [point("web1", UUIDS[0])], chosen(look.by_uuid), NOW)
    assert (vm.name, vm.host, vm.points, vm.policy) == ("web1-new", there.uri, 1, "rest")


def test_a_host_that_does_not_answer_hides_no_others_and_its_vms_are_not_gone() -> None:
    here = FakeHost(FakeDomain("web1", UUIDS[0], {}))
    look = look_at_all(hosts(Away(), here), TAGGED)
    points = [point("web1", UUIDS[0]), point("web2", UUIDS[1])]
    found = survey(look, points, chosen(look.by_uuid, (Away.uri,)), NOW)
    assert [(vm.name, vm.state) for vm in found] == [("web1", "running"), ("web2", "unreachable")]
    assert [uri for uri, _ in look.away] == [Away.uri]
    look = Look(tuple(Seen("web1", UUIDS[0], "qemu:///system", "running", Choice()) for _ in "1"))
    found = survey(look, points, chosen(look.by_uuid), NOW)
    assert [(vm.name, vm.state) for vm in found] == [("web1", "running"), ("web2", None)]
