"""A real machine, turned back where it is: it boots as it was, and the next points are right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drvm.core.progress import NoProgress
from drvm.wiring.rollbacks import in_place, plan_in_place
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, all_qcow2, with_qcow2
from tests.killing import killed_at
from tests.proving import proven_point

pytestmark = pytest.mark.guest

DATA_BYTES = 40 * 65536
STEPS = ("rollback-noted", "image-begun-vda", "image-written-vdb", "image-durable-vdb")


@dataclass(frozen=True)
class Line:
    """A guest with qcow2 disks, so that its points are told by checkpoints."""

    guest: Guest
    appliance: Appliance

    def write(self, name: str) -> str:
        """A file of that name only, on each disk; returns what it holds, by its digest."""
        self.guest.run(
            f"rm -f /data/only-* /root/only-*; dd if=/dev/urandom of=/data/only-{name} bs=64k"
            f" count={DATA_BYTES // 65536} 2>/dev/null; mkdir -p /root;"
            f" cp /data/only-{name} /root/only-{name}; sync"
        )
        return self.holds()

    def holds(self) -> str:
        return self.guest.run("cat /data/only-* /root/only-* | md5sum; ls /data /root")

    def shut_down(self) -> None:
        self.guest.run("sync")
        self.guest.shutdown()

    def turned_back(self, point: str, *options: str) -> dict[str, Any]:
        done = self.appliance.json("restore", point, "--in-place", "--yes", *options)["restored"]
        return dict(done)

    def proven(self) -> set[str]:
        """How the next point is taken, which is right byte for byte."""
        with self.appliance.wiring() as wiring:
            point = proven_point(wiring, self.guest, self.appliance.directory)
        return {disk.method for disk in point.disks}


@pytest.fixture(scope="module")
def line(make_module_guest: MakeGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    directory = tmp_path_factory.mktemp("in-place")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    appliance.drvm("init")
    yield Line(with_qcow2(make_module_guest("in-place", edit=all_qcow2)), appliance)


def test_a_machine_is_turned_back_and_forth_and_boots_as_it_was(line: Line) -> None:
    first = line.write("first")
    point = line.appliance.backup(line.guest.name)["id"]
    second = line.write("second")
    running = line.appliance.drvm("restore", point, "--in-place", "--yes", expect=1)
    assert "shut it down first" in running.err
    line.shut_down()
    plan = line.appliance.json("restore", point, "--in-place", "--dry-run")["plan"]
    done = line.turned_back(point, "--start")
    for told, disk in zip(plan["disks"], done["disks"], strict=True):
        changed = disk["written_bytes"] + disk["zeroed_bytes"]
        assert told["differing_bytes"] == changed < 4 * DATA_BYTES
    line.guest.wait_for_agent()
    assert line.holds() == first
    listed = line.appliance.json("points", line.guest.name)["points"]
    (safety,) = (one for one in listed if one["id"] == done["safety_point"])
    assert (safety["consistency"], safety["pins"] != []) == ("offline", True)
    assert [one["id"] for one in listed if one["pins"]] == [safety["id"]], (
        "the target is free again"
    )
    assert line.proven() == {f"full-read: there is no checkpoint of the point {safety['id']}"}
    line.shut_down()
    assert line.turned_back(safety["id"], "--no-safety-point", "--start")["safety_point"] is None
    line.guest.wait_for_agent()
    assert line.holds() == second
    assert line.proven() == {"checkpoint"}  # of the point before: its bitmaps marked what came back


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_killed_is_told_of_kept_from_backups_and_finished(
    line: Line, step: str
) -> None:
    first = line.write(f"{step}-first")
    point = line.appliance.backup(line.guest.name)["id"]
    line.write(f"{step}-second")
    line.shut_down()

    def work(trace: Any) -> None:
        with line.appliance.wiring() as wiring:
            manifest = next(
                p.manifest for p in wiring.repository().points().points if p.id == point
            )
            plan = plan_in_place(wiring, manifest, None)
            in_place(wiring, plan, NoProgress(), trace, safety=True)

    killed_at(step, work)
    told = line.appliance.drvm("doctor", expect=None).out
    assert "half turned back" in told and point in told
    refused = line.appliance.drvm("backup", line.guest.name, expect=1)
    assert f"drvm restore {point} --in-place finishes" in refused.err
    done = line.turned_back(point, "--start")
    assert f"drvm restore {done['safety_point']} --in-place undoes" in refused.err
    line.guest.wait_for_agent()
    assert line.holds() == first
    told = line.appliance.drvm("doctor", expect=None).out
    assert "half turned back" not in told and "pin of point" not in told
    (after,) = (
        p for p in line.appliance.json("points", line.guest.name)["points"] if p["id"] == point
    )
    assert after["pins"] == []
    line.proven()


@pytest.mark.long
def test_the_usual_guest_with_a_raw_disk_too(make_guest: MakeGuest, tmp_path: Path) -> None:
    directory = tmp_path / "drvm"
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    appliance.drvm("init")
    raw = Line(make_guest("in-place-raw"), appliance)
    first = raw.write("first")
    point = appliance.backup(raw.guest.name)["id"]
    raw.write("second")
    raw.shut_down()
    raw.turned_back(point, "--start")
    raw.guest.wait_for_agent()
    assert raw.holds() == first
    raw.proven()
