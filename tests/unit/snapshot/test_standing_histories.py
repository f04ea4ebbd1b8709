"""Over any history of writes, resizes, backups and crashes: every point is what the disk was.

The engines, the journal and recovery are the real ones, and so are the images; QEMU is qemu-img.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.ids import new_point_id
from drvm.core.process import SystemProcesses
from drvm.host.images import ImageTool
from drvm.host.model import Host
from drvm.snapshot import between, recovery
from drvm.snapshot.capture import CaptureRequest, ChangedBlocks, ParentPoint
from drvm.snapshot.choose import choose
from drvm.snapshot.journal import Journal
from drvm.snapshot.parts import Parts
from tests.capturing import rebuilt
from tests.fakes.chain_host import FakeHost
from tests.fakes.clock import FakeClock
from tests.fakes.image_domain import ImageDomain, qemu_img

UUID = str(uuid.uuid4())
"""No other run of these tests waits for its lock."""
KIB = 1024
SIZES = (512 * KIB, 768 * KIB, 1024 * KIB)
TARGET = "vda"
TEMPLATE = b"t" * SIZES[0]


class Killed(BaseException):
    """As SIGKILL: what drvm would still do, it does not get to do."""


class MortalHost(FakeHost):
    dead = False

    def find_domain(self, name_or_uuid: str) -> Any:
        if self.dead:
            raise Killed
        return super().find_domain(name_or_uuid)


@dataclass
class History:
    """One machine with one disk, and the points that were taken of it."""

    directory: Path
    image_format: str
    domain: ImageDomain = field(init=False)
    parts: Parts = field(init=False)
    points: dict[str, bytes] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)
    read_bytes: int = 0
    die_at: str = ""
    host: MortalHost = field(init=False)

    def __post_init__(self) -> None:
        kind = "raw" if self.image_format == "raw" else "qcow2"
        image, template = self.directory / f"a.{kind}", self.directory / "t.raw"
        below = ("-b", template, "-F", "raw") if self.image_format == "template" else ()
        template.write_bytes(TEMPLATE)
        qemu_img("create", "-q", "-f", kind, *below, image, SIZES[1])
        self.domain = ImageDomain("web", UUID, {TARGET: [str(image)]})
        self.host = MortalHost(self.domain)
        processes = SystemProcesses()
        self.parts = Parts(
            host=cast(Host, self.host),
            images=ImageTool(processes),
            processes=processes,
            journal=Journal(self.directory),
            clock=FakeClock(),
            trace=self.trace,
            overlay_reserve_bytes=0,
        )

    def trace(self, step: str) -> None:
        if self.die_at and step == self.die_at:
            self.host.dead = True
            raise Killed

    def back_up(
        self,
        *,
        good: bool = True,
        meanwhile: tuple[str, ...] = (),
        changed_blocks: ChangedBlocks = "standing-overlay",
    ) -> None:
        point_id = new_point_id()
        last = next(reversed(self.points), None)
        parent = None if last is None else ParentPoint(last, {TARGET: len(self.points[last])})
        request = CaptureRequest(
            "web", point_id, parent=parent, changed_blocks=changed_blocks, commit_bandwidth_mib_s=1
        )
        before = self.domain.content(TARGET, self.directory)
        with contextlib.suppress(RuntimeError):
            with choose(self.parts, "web").engine.capture(request) as frozen:
                if meanwhile and self.domain.running:
                    self.domain.io(TARGET, *meanwhile)
                (disk,) = frozen.disks
                stored, self.read_bytes = rebuilt(disk, self.points.get(last or ""))
                self.methods.append(disk.method)
                assert stored == before
                assert frozen.definition_xml is not None
                assert ".drvm-" not in frozen.definition_xml
                if not good:
                    raise RuntimeError
            self.points[point_id] = stored

    def killed(self, step: str) -> None:
        """A backup that ends at ``step``, if it comes there, and recovery."""
        self.die_at = step
        with contextlib.suppress(Killed):
            self.back_up()
        self.die_at, self.host.dead = "", False
        assert all(not done.problem for done in recovery.recover(self.parts))

    def resize(self, size_bytes: int) -> None:
        top = self.domain.chains[TARGET][0]
        kind = "raw" if top.endswith(".raw") else "qcow2"
        qemu_img("resize", "-q", "--shrink", "-f", kind, top, size_bytes)

    def leftovers(self) -> list[str]:
        named = self.domain.chains[TARGET]
        there = (p for p in self.directory.iterdir() if ".drvm-" in p.name)
        return [path.name for path in there if str(path) not in named]


FORMATS = ["raw", *(pytest.param(f, marks=pytest.mark.long) for f in ("qcow2", "template"))]
"""``template``: a qcow2 on a raw image that other machines may stand on."""


@pytest.fixture(params=FORMATS)
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    return History(tmp_path, request.param)


def test_only_what_was_written_since_the_point_is_read(history: History) -> None:
    history.domain.io(TARGET, "write -P 1 0 512k")
    history.back_up()
    history.domain.io(TARGET, "write -P 2 64k 4k", "discard 128k 128k")
    history.back_up()
    assert history.methods == ["full-read: there is no earlier point", "standing-overlay"]
    assert history.read_bytes == 4 * KIB
    history.back_up()
    assert history.methods[-1] == "standing-overlay"
    assert history.read_bytes == 0


def test_an_aborted_backup_keeps_the_hint_with_what_was_written_meanwhile(
    history: History,
) -> None:
    history.back_up()
    history.domain.io(TARGET, "write -P 1 0 4k")
    history.back_up(good=False, meanwhile=("write -P 2 256k 4k", "discard 512k 128k"))
    history.back_up()
    assert history.methods[1:] == ["standing-overlay"] * 2
    assert history.read_bytes == (4 + 64) * KIB, "a commit copies 64 KiB at a time"
    assert len(history.domain.chains[TARGET]) == 2


def test_a_resized_disk_is_read_in_full_once(history: History) -> None:
    history.back_up()
    history.resize(SIZES[2])
    history.back_up()
    history.back_up()
    assert history.methods[1:] == ["full-read: the disk was resized", "standing-overlay"]


def test_a_disk_that_is_cut_and_grown_again_between_backups_is_right(history: History) -> None:
    """QEMU writes zeroes into an overlay that grows over its base."""
    history.domain.io(TARGET, f"write -P 1 0 {SIZES[1]}")
    history.back_up()
    history.resize(SIZES[0])
    history.resize(SIZES[1])
    history.back_up()
    assert history.methods[-1] == "standing-overlay"


def test_another_policy_folds_the_overlay_back_and_reads_everything(history: History) -> None:
    history.domain.io(TARGET, "write -P 1 0 64k")
    history.back_up()
    history.domain.io(TARGET, "write -P 2 64k 64k")
    history.back_up(changed_blocks="full-read")
    assert len(history.domain.chains[TARGET]) == 1
    assert history.leftovers() == []
    assert history.parts.journal.machines() == []


def test_a_point_of_the_machine_that_is_off_uses_the_hint_and_folds_nothing(
    history: History,
) -> None:
    history.domain.io(TARGET, "write -P 1 0 512k")
    history.back_up()
    history.domain.running = False
    history.domain.io(TARGET, "write -P 2 0 4k")
    history.back_up()
    assert (history.methods[-1], history.read_bytes) == ("standing-overlay", 4 * KIB)
    history.domain.running = True
    history.back_up()
    assert history.methods[-1].startswith("full-read: there is no standing overlay of the point")
    history.back_up()
    assert history.methods[-1] == "standing-overlay"


def test_an_image_that_was_changed_under_its_overlay_is_read_in_full(history: History) -> None:
    history.back_up()
    base = history.domain.chains[TARGET][-1]
    ImageDomain("x", UUID, {TARGET: [base]}).io(TARGET, "write -P 9 0 64k")
    history.back_up()
    assert history.methods[-1] == (
        "full-read: the image is another one, or was changed below its standing overlay"
    )


def test_internal_snapshots_keep_everything_where_it_is(history: History) -> None:
    history.back_up()
    before = list(history.domain.chains[TARGET])
    history.domain.snapshots.append("before-upgrade")
    history.back_up()
    assert history.methods[-1] == "full-read: the machine has internal snapshots"
    assert history.domain.chains[TARGET] == before


def test_a_machine_that_somebody_put_back_by_hand_is_read_in_full_and_stands_again(
    history: History,
) -> None:
    history.back_up()
    overlay, base = history.domain.chains[TARGET]
    qemu_img("commit", "-q", "-f", "qcow2", "-b", base, overlay)
    history.domain.chains[TARGET] = [base]
    history.back_up()
    assert history.methods[-1].startswith("full-read: there is no standing overlay")
    assert history.leftovers() == [Path(overlay).name], "what may be somebody's is not deleted"
    history.back_up()
    assert history.methods[-1] == "standing-overlay"


def test_an_overlay_goes_home_where_there_is_no_room_to_write_it_out_in_the_chain(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.back_up()
    history.domain.io(TARGET, "write -P 4 0 64k")
    monkeypatch.setattr("drvm.snapshot.standing.free_bytes", lambda _: 1024)
    history.back_up()
    assert len(history.domain.chains[TARGET]) == 1
    assert history.leftovers() == history.parts.journal.machines() == []


def test_what_stands_goes_home_where_room_is_short(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.back_up()
    history.domain.io(TARGET, "write -P 4 0 64k")
    assert between.fold_where_short(history.parts) == []
    monkeypatch.setattr("drvm.snapshot.space.free_bytes", lambda _: 1024)
    (done,) = between.fold_where_short(history.parts)
    assert done.problem == ""
    assert len(history.domain.chains[TARGET]) == 1
    monkeypatch.undo()
    history.back_up()
    assert history.methods[-1].startswith("full-read: there is no standing overlay")


def test_a_machine_that_is_gone_keeps_its_overlay_until_it_is_folded_by_hand(
    history: History,
) -> None:
    history.back_up()
    overlay, base = history.domain.chains[TARGET]
    history.domain.io(TARGET, "write -P 4 0 64k")
    newest = history.domain.content(TARGET, history.directory)
    history.host.there.clear()
    assert recovery.recover(history.parts) == []
    assert between.fold_where_short(history.parts) == []
    (stood,) = between.listed(history.parts)
    assert "gone" in stood.trouble
    assert between.fold_by_hand(history.parts, "web").problem == ""
    assert not Path(overlay).exists()
    own = ImageDomain("x", UUID, {TARGET: [base]})
    assert own.content(TARGET, history.directory) == newest


def test_a_standing_overlay_with_an_internal_snapshot_is_never_folded(history: History) -> None:
    history.back_up()
    before = list(history.domain.chains[TARGET])
    qemu_img("snapshot", "-c", "mine", before[0])
    done = between.fold_by_hand(history.parts, "web")
    assert "internal snapshot mine" in done.problem
    history.back_up()
    assert history.domain.chains[TARGET] == before
    assert "mine" in history.parts.images.info(Path(before[0]), "qcow2").snapshots


def test_a_lost_journal_puts_the_machine_back_on_its_image(history: History) -> None:
    history.back_up()
    history.domain.io(TARGET, "write -P 3 0 64k")
    history.parts.journal.remove(UUID)
    (done,) = recovery.recover(history.parts)
    assert done.problem == ""
    assert len(history.domain.chains[TARGET]) == 1
    assert history.leftovers() == []
    history.back_up()


STEPS = (
    *("overlays-made", "snapshot-taken", "reading", "aim-journaled", "fold-begins-vda"),
    *("fold-committed-vda", "folded-vda", "standing-journaled", "commit-started-vda"),
    *("fold-merge-begins-vda", "fold-merged-vda", "fold-rebased-vda", "merged-vda"),
)

_AT = st.integers(0, 255).map(lambda unit: unit * 4 * KIB)
_LENGTH = st.sampled_from([4, 12, 64, 128, 256]).map(lambda kib: kib * KIB)
_VERB = st.sampled_from(["write -P 1", "write -P 2", "write -P 0", "write -z", "discard"])
_WRITE = st.tuples(_VERB, _AT, _LENGTH)
_STEP = st.one_of(
    st.tuples(st.just("write"), st.lists(_WRITE, min_size=1, max_size=4)),
    st.tuples(st.just("back up"), st.lists(_WRITE, max_size=2)),
    st.tuples(st.just("back up"), st.lists(_WRITE, max_size=2)),
    st.tuples(st.just("abort"), st.lists(_WRITE, max_size=2)),
    st.tuples(st.just("grow"), st.none()),
    st.tuples(st.just("cut and grow"), st.none()),
    st.tuples(st.just("switch"), st.none()),
    st.tuples(st.just("kill"), st.sampled_from(STEPS)),
    st.tuples(st.just("other policy"), st.none()),
    st.tuples(st.just("lose journal"), st.none()),
)


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=settings.default.max_examples // 25)
@given(steps=st.lists(_STEP, min_size=4, max_size=12))
def test_every_point_of_any_history_is_what_the_disk_was(
    tmp_path_factory: pytest.TempPathFactory, image_format: str, steps: list[tuple[str, object]]
) -> None:
    history = History(tmp_path_factory.mktemp("history"), image_format)
    history.domain.io(TARGET, f"write -P 7 0 {SIZES[0]}")
    for name, argument in steps:
        step(history, name, argument)
    history.domain.running = True
    history.back_up()
    history.back_up()
    assert history.methods[-1] == "standing-overlay"
    assert history.leftovers() == []
    assert len(history.domain.chains[TARGET]) == 2
    assert (history.directory / "t.raw").read_bytes() == TEMPLATE


def step(history: History, name: str, argument: object) -> None:
    size = len(history.domain.content(TARGET, history.directory))
    writes = tuple(
        f"{verb} {at} {min(length, size - at)}"
        for verb, at, length in (argument if isinstance(argument, list) else ())
        if at < size
    )
    match name:
        case "write" if writes:
            history.domain.io(TARGET, *writes)
        case "back up":
            history.back_up(meanwhile=writes)
        case "abort":
            history.back_up(good=False, meanwhile=writes)
        case "grow":  # an image that is larger than its overlay gives its size back, see ADR 016
            history.resize(SIZES[2])
        case "cut and grow":
            history.resize(SIZES[0])
            history.resize(size)
        case "switch":
            history.domain.running = not history.domain.running
        case "kill":
            history.killed(str(argument))
        case "other policy":
            history.back_up(changed_blocks="full-read")
        case "lose journal":
            history.parts.journal.remove(UUID)
