"""A checkpoint is believed for exactly its point and its image, or not at all."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError, HostUnreachable
from drvm.host.disks import Bitmap, ImageInfo
from drvm.host.model import Domain
from drvm.snapshot import checkpoints
from drvm.snapshot.capture import CaptureRequest, ParentPoint
from drvm.snapshot.checkpoints import Hint, Image, confirmed, hints, identity, renew

P, N = "0123456789abcdef", "fedcba9876543210"
SIZE = 1 << 20


@dataclass
class FakeDomain:
    """Checkpoints by name."""

    there: dict[str, str] = field(default_factory=dict)
    snapshots: list[str] = field(default_factory=list)
    refuse: HostError | None = None

    def external_snapshot_names(self) -> list[str]:
        return [name for name in self.snapshots if name.startswith("external")]

    def snapshot_names(self) -> list[str]:
        return self.snapshots

    def checkpoint_names(self) -> list[str]:
        return sorted(self.there)

    def checkpoint_xml(self, name: str) -> str:
        if name not in self.there:
            raise HostError("no such checkpoint")
        return self.there[name]

    def create_checkpoint(self, checkpoint_xml: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.there[checkpoint_xml.split("<name>")[1].split("<")[0]] = checkpoint_xml

    def delete_checkpoint(self, name: str) -> None:
        del self.there[name]


def as_domain(fake: Any) -> Domain:
    return cast(Domain, fake)


def image(path: Path, target: str = "vda", image_format: str = "qcow2", **more: Any) -> Image:
    path.touch()
    return Image(target, (ImageInfo(path, image_format, SIZE, 0, None, None, {}, **more),))


@pytest.fixture
def disk(tmp_path: Path) -> Image:
    return image(tmp_path / "disk")


def request(parent: str | None = P, point_id: str = N, size_bytes: int = SIZE) -> CaptureRequest:
    known = None if parent is None else ParentPoint(parent, {"vda": size_bytes, "vdb": size_bytes})
    return CaptureRequest("web1", point_id, parent=known)


def marked(*images: Image) -> FakeDomain:
    """A machine with the checkpoint of P."""
    fake = FakeDomain()
    assert renew(as_domain(fake), request(None, P), images) == ""
    return fake


def hint(fake: FakeDomain, asked: CaptureRequest, disk: Image) -> Hint:
    return hints(as_domain(fake), asked, [disk])[disk.target]


def test_the_parents_checkpoint_of_the_same_image_is_a_hint(disk: Image) -> None:
    assert hint(marked(disk), request(), disk) == Hint(f"drvm-{P}")


def test_without_any_earlier_point_there_is_no_hint(disk: Image) -> None:
    assert hint(marked(disk), request(None), disk).method == "full-read: there is no earlier point"


def test_a_checkpoint_of_another_point_than_the_parent_is_none(disk: Image) -> None:
    assert "no checkpoint of the point" in hint(marked(disk), request(N), disk).method


def test_a_disk_that_was_not_in_the_checkpoint_is_read(disk: Image, tmp_path: Path) -> None:
    other = image(tmp_path / "other", "vdb")
    assert "no checkpoint of this disk" in hint(marked(disk), request(), other).method


def test_a_disk_that_the_parent_point_does_not_have_is_read(disk: Image) -> None:
    asked = replace(request(), parent=ParentPoint(P, {}))
    assert "no checkpoint of this disk" in hint(marked(disk), asked, disk).method


def test_a_resized_disk_is_read(disk: Image) -> None:
    assert "resized" in hint(marked(disk), request(size_bytes=SIZE + 512), disk).method


def test_two_images_that_were_exchanged_are_read(tmp_path: Path) -> None:
    first, second = image(tmp_path / "a"), image(tmp_path / "b", "vdb")
    fake = marked(first, second)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    for one in (first, second):
        assert "another one" in hint(fake, request(), one).method


def test_a_changed_backing_file_makes_another_image(disk: Image, tmp_path: Path) -> None:
    base = image(tmp_path / "base")
    layered = Image("vda", (disk.info, base.info))
    fake = marked(layered)
    assert hint(fake, request(), layered).bitmap is not None
    base.info.path.write_bytes(b"x")
    assert "backing file was changed" in hint(fake, request(), layered).method
    assert identity(layered) != identity(disk)


def test_raw_images_say_that_they_have_no_bitmaps(tmp_path: Path) -> None:
    raw = image(tmp_path / "raw", "vda", "raw")
    assert hint(marked(raw), request(), raw).method == "full-read: raw images have no bitmaps"
    assert marked(raw).there == {}


@pytest.mark.parametrize(
    "text",
    [
        "<domaincheckpoint><description>mine</description></domaincheckpoint>",
        "<domaincheckpoint>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><domaincheckpoint/>",
        "x" * (checkpoints._MAX_XML_CHARS + 1),
    ],
)
def test_a_checkpoint_that_drvm_did_not_write_is_none(disk: Image, text: str) -> None:
    fake = FakeDomain({f"drvm-{P}": text})
    assert "no checkpoint of the point" in hint(fake, request(), disk).method


def bitmap(*flags: str, granularity_bytes: int = 65536, name: str = f"drvm-{P}") -> Bitmap:
    return Bitmap(name, granularity_bytes, frozenset(flags))


@pytest.mark.parametrize(
    ("stored", "method"),
    [
        (bitmap("auto"), "checkpoint"),
        (bitmap("auto", name="drvm-other"), "full-read: the image has lost"),
        (bitmap("auto", "in-use"), "full-read: the bitmap is inconsistent"),
        (bitmap(), "full-read: the bitmap was switched off"),
        (bitmap("auto", granularity_bytes=3), "full-read: a bitmap with granularity 3"),
        (bitmap("auto", granularity_bytes=1 << 40), "full-read: a bitmap with granularity"),
    ],
)
def test_the_stored_bitmap_has_the_last_word(disk: Image, stored: Bitmap, method: str) -> None:
    frozen = replace(disk.info, bitmaps=(stored,))
    assert confirmed(Hint(f"drvm-{P}"), frozen).method.startswith(method)


def test_nothing_confirms_a_hint_that_is_none(disk: Image) -> None:
    frozen = replace(disk.info, bitmaps=(bitmap("auto"),))
    assert confirmed(Hint(doubt="why"), frozen) == Hint(doubt="why")


def test_only_the_parents_checkpoint_and_those_of_others_are_kept(disk: Image) -> None:
    fake = marked(disk)
    fake.there |= {f"drvm-{'1' * 16}": "", "drvm-mine": "", "foreign": ""}
    assert renew(as_domain(fake), request(), [disk]) == ""
    assert set(fake.there) == {f"drvm-{P}", f"drvm-{N}", "drvm-mine", "foreign"}


def test_a_machine_with_internal_snapshots_gets_none_and_keeps_none(disk: Image) -> None:
    fake = marked(disk)
    fake.there["foreign"] = ""
    fake.snapshots = ["before-upgrade"]
    assert "internal snapshots" in hint(fake, request(), disk).method
    assert renew(as_domain(fake), request(), [disk]) == ""
    assert set(fake.there) == {"foreign"}


def test_an_external_snapshot_bars_no_checkpoint(disk: Image) -> None:
    fake = marked(disk)
    fake.snapshots = ["external"]
    assert hint(fake, request(), disk).method == "checkpoint"
    assert renew(as_domain(fake), request(), [disk]) == ""
    assert set(fake.there) == {f"drvm-{P}", f"drvm-{N}"}


def test_a_policy_without_checkpoints_gets_none_and_keeps_none(disk: Image) -> None:
    fake = marked(disk)
    fake.there["foreign"] = ""
    asked = replace(request(), changed_blocks="full-read")
    assert hint(fake, asked, disk).method == "full-read: the policy wants no checkpoints"
    assert renew(as_domain(fake), asked, [disk]) == ""
    assert set(fake.there) == {"foreign"}


def test_a_checkpoint_that_can_not_be_made_costs_a_warning_only(disk: Image) -> None:
    fake = marked(disk)
    for problem in (HostError("no"), HostUnreachable("gone")):
        fake.refuse = problem
        assert renew(as_domain(fake), request(), [disk]).endswith(problem.message)


@given(st.text(st.sampled_from("<>/=' \"abdeimnoprst:0")) | st.text())
def test_any_other_text_is_no_checkpoint(text: str) -> None:
    for words in (text, f"<domaincheckpoint><description>{text}</description></domaincheckpoint>"):
        with contextlib.suppress(HostError):
            assert checkpoints._identities(words) == {}
