"""What ``drvm files`` prints and how it ends, over an appliance in memory."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from drvm.cli.commands import files
from drvm.cli.main import main
from drvm.restore.guestfiles.view import GuestFiles
from tests.fakes.tree_appliance import TreeAppliance
from tests.unit.cli.test_views import POINT


@pytest.fixture
def appliance(monkeypatch) -> TreeAppliance:
    appliance = TreeAppliance()
    for path in (b"/etc", b"/etc/sub"):
        appliance.directory(path)
    appliance.file(b"/etc/hosts", b"127.0.0.1\n", uid=7)
    appliance.file(b"/etc/caf\xe9", b"\0\xff\x1b[2J")
    appliance.file(b"/etc/sub/x.conf", b"x")
    appliance.link(b"/etc/out", b"/x\x1b[2J")

    @contextlib.contextmanager
    def guest(*_):
        wiring = SimpleNamespace(repository=lambda: SimpleNamespace(store=None))
        yield files._Opened(wiring, POINT, GuestFiles(appliance, ["vda"]))

    monkeypatch.setattr(files, "_guest", guest)
    monkeypatch.setattr(files, "ending", lambda wiring: 0)
    return appliance


def run(capfdbinary, *arguments: str) -> tuple[int, bytes, bytes]:
    code = main(["files", *arguments])
    out, err = capfdbinary.readouterr()
    return code, out, err


def test_without_a_path_the_file_systems_are_listed(appliance, capfdbinary):
    code, out, _ = run(capfdbinary, "ls", "web1")
    lines = out.decode().splitlines()
    assert (code, lines[0]) == (0, "Debian 12 on /dev/vda1, host name web1")
    assert lines[2].split() == ["/dev/vda1", "ext4", "1.0", "GiB", "root", "/"]


def test_a_directory_is_listed_without_control_characters(appliance, capfdbinary):
    code, out, _ = run(capfdbinary, "ls", "web1", "/etc", "-l")
    assert code == 0 and b"\x1b" not in out
    assert b"-rw-r--r--  7:0       10  2023-11-14 22:13:20  hosts\n" in out
    assert rb"caf\xe9" in out and rb"out -> /x\x1b[2J" in out


def test_json_tells_of_each_file_what_tools_need(appliance, capfdbinary):
    _, out, _ = run(capfdbinary, "--json", "ls", "web1", "/etc")
    entries = {entry["path"]: entry for entry in json.loads(out)["entries"]}
    hosts = entries["/etc/hosts"]
    told = (hosts["type"], hosts["mode"], hosts["size_bytes"], hosts["uid"], hosts["path_base64"])
    assert told == ("file", "0644", 10, 7, None)
    odd = entries["/etc/caf\\xe9"]
    assert base64.b64decode(odd["path_base64"]) == b"/etc/caf\xe9"


def test_all_below_can_be_searched_by_name(appliance, capfdbinary):
    _, out, _ = run(capfdbinary, "ls", "web1", "/", "--recursive", "--match", "*.conf")
    assert out == b"etc/sub/x.conf\n"


def test_a_file_is_written_byte_by_byte(appliance, capfdbinary):
    assert run(capfdbinary, "cat", "web1", os.fsdecode(b"/etc/caf\xe9"))[:2] == (
        0,
        b"\0\xff\x1b[2J",
    )


def test_json_has_the_content_too(appliance, capfdbinary):
    _, out, _ = run(capfdbinary, "--json", "cat", "web1", "/etc/hosts")
    assert base64.b64decode(json.loads(out)["file"]["content_base64"]) == b"127.0.0.1\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat", "web1", "/etc"), b"/etc is a directory, no file"),
        (("cat", "web1", "hosts"), b"'hosts' is no path in a guest"),
        (("ls", "web1", "--recursive"), b"these options need a PATH"),
    ],
)
def test_what_makes_no_sense_is_a_mistake_of_usage(appliance, capfdbinary, arguments, words):
    code, _, err = run(capfdbinary, *arguments)
    assert code == 2 and words in err


def test_what_is_left_out_of_a_copy_is_a_warning(appliance, capfdbinary, tmp_path: Path):
    code, out, err = run(capfdbinary, "get", "web1", "/etc", "--output", str(tmp_path / "out"))
    assert code == 3 and b"left out: /etc/out" in err and b"\x1b" not in err
    assert out.startswith(b"fetched 3 files, 2 directories and 0 links of web1")
    assert (tmp_path / "out/etc/hosts").read_bytes() == b"127.0.0.1\n"


def test_what_could_not_be_read_is_a_failure_though_the_rest_came(
    appliance, capfdbinary, tmp_path: Path
):
    appliance.unreadable.add(b"/etc/hosts")
    code, out, _ = run(capfdbinary, "--json", "get", "web1", "/etc", "--output", str(tmp_path))
    fetched = json.loads(out)["fetched"]
    assert (code, fetched["failed"]) == (1, ["/etc/hosts: Input/output error"])
    assert (tmp_path / "etc/sub/x.conf").exists()


def test_a_dry_run_writes_nothing(appliance, capfdbinary, tmp_path: Path):
    output = tmp_path / "out"
    arguments = ("get", "web1", "/etc/sub", "--output", str(output), "--dry-run")
    code, out, _ = run(capfdbinary, *arguments)
    assert code == 0 and b"/etc/sub/x.conf" in out and not output.exists()


def test_many_warnings_are_counted(appliance, capfdbinary, tmp_path: Path):
    for number in range(30):
        appliance.link(b"/etc/l%02d" % number, b"/x")
    _, _, err = run(capfdbinary, "get", "web1", "/etc", "--output", str(tmp_path))
    assert err.count(b"left out: ") == 21 and b"11 more, which --json names" in err
