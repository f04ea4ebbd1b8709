"""The difference that --dry-run prints."""

from __future__ import annotations

import random

from drvm.restore.machine.definition import rebuild
from drvm.restore.machine.difference import difference, redacted
from tests.unit.restore.machines import clone_of, machine


def test_a_definition_does_not_differ_from_itself_in_another_layout() -> None:
    assert (
        difference("<domain a='1' b='2'><c/></domain>", '<domain b="2"\n a="1"> <c></c></domain>')
        == ""
    )


def test_each_side_is_marked() -> None:
    shown = difference(
        "<domain><name>old</name><vcpu>2</vcpu></domain>",
        "<domain><name>new</name><vcpu>2</vcpu></domain>",
    )
    assert "-  <name>old</name>\n" in shown
    assert "+  <name>new</name>\n" in shown
    assert "   <vcpu>2</vcpu>\n" in shown


def test_what_a_restore_drops_is_seen_in_it() -> None:
    original = machine("passthrough")
    shown = difference(original, rebuild(original, clone_of("passthrough")).xml)
    assert '-      <source dir="/orig/share" />' in shown
    assert '+      <source file="/restored/vda.qcow2" />' in shown


def test_secrets_are_hidden() -> None:
    shown = redacted(
        "<domain xmlns:qemu='urn:q'>"
        "<graphics type='vnc' passwd='hunter2' passwdValidTo='hunter2'/>"
        "<secret type='passphrase' uuid='known'>hunter2</secret>"
        "<encryption secret='hunter2'/>"
        "<cookies><cookie name='visible'>hunter2</cookie></cookies>"
        "<launchSecurity><dhCert>hunter2</dhCert><session>hunter2</session></launchSecurity>"
        "<cmdline>root=/dev/vda token=hunter2</cmdline>"
        "<qemu:arg value='secret,id=s,data=hunter2'/><qemu:env name='A' value='hunter2'/>"
        "<qemu:arg value='-nodefaults'/>"
        "</domain>"
    )
    assert "hunter2" not in shown
    assert shown.count("[hidden]") >= 8
    assert "known" in shown
    assert "-nodefaults" in shown


def test_secrets_in_what_the_firmware_is_told_are_hidden() -> None:
    shown = redacted(
        "<domain xmlns:qemu='urn:q'><sysinfo type='smbios'><oemStrings>"
        "<entry>io.systemd.credential:root.hashed=hunter2</entry><entry>plain</entry>"
        "</oemStrings></sysinfo><sysinfo type='fwcfg'>"
        "<entry name='opt/com.coreos/config'>{users: hunter2}</entry></sysinfo>"
        "<qemu:arg value='name=opt/x,string=hunter2,fw_cfg'/></domain>"
    )
    assert "hunter2" not in shown
    assert "plain" in shown


def test_what_is_shown_can_not_steer_a_terminal() -> None:
    shown = difference(
        "<domain><title>\u202ex\u009b2J</title></domain>", "<domain><title>x</title></domain>"
    )
    assert all(line.isprintable() for line in shown.splitlines())


def test_a_hostile_definition_does_not_stall_it() -> None:
    dice = random.Random(7)
    before, after = (
        "<domain>" + "".join(f"<a{dice.randrange(30)}/>" for _ in range(40_000)) + "</domain>"
        for _ in range(2)
    )
    shown = difference(before, after)
    assert "more lines" in shown
    assert len(shown.splitlines()) < 10_000
