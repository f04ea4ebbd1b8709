"""What ``drvm check`` says of what it found, and what it refuses to be asked."""

import io

import pytest

from drvm.cli.commands.check import command, show
from drvm.cli.output import Flags, Output
from drvm.core.errors import UsageError
from drvm.upkeep.check import BadPack, CheckResult
from drvm.upkeep.check_objects import Finds
from drvm.upkeep.check_points import DiskHit, PointHit
from drvm.upkeep.repair import Repaired, Repairs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repair": True, "dry_run": True}, "excludes"),
        ({"repair": True, "without_key": True}, "excludes"),
        ({"source": "offsite"}, "--from"),
        ({"read_data": "5/4"}, "not a share"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(options, says):
    asked = {
        "read_data": None,
        "without_key": False,
        "repair": False,
        "source": None,
        "from_password_file": None,
        "dry_run": False,
        **options,
    }
    assert command.callback is not None
    with pytest.raises(UsageError) as refused:
        command.callback.__wrapped__(None, **asked)
    assert says in refused.value.message and refused.value.hint


def shown(result: CheckResult, repairs: Repairs | None = None) -> str:
    stream = io.StringIO()
    show(Output(stream, Flags(), colour=False), result, repairs)
    return stream.getvalue()


def found(ranges: int, more: int) -> CheckResult:
    disk = DiskHit("vda", 1 << 40, 4096, tuple((8192 * n, 4096) for n in range(ranges)), more)
    hit = PointHit("ab" * 8, "u", "web\x1b[2J", "2026-11-23T04:00:00.000000Z", ("nvram",), (disk,))
    pack = BadPack(bytes(32), "2 of its 9 frames don't open", absent=False, set_aside=True)
    return CheckResult(3, 4, 1 << 30, 2, 1 << 20, 0, (hit,), (pack,), Finds())


def test_some_ranges_are_shown_and_the_others_counted_and_names_are_harmless() -> None:
    text = shown(found(20, 1000))
    assert "bytes 0 to 4096, 8192 to 12288" in text and "and 1012 more ranges" in text
    assert "\x1b" not in text and "nvram: lost" in text and "set aside" in text
    assert "more ranges" not in shown(found(2, 0))


def test_what_was_repaired_and_what_not_is_said_point_by_point() -> None:
    points = (Repaired("ab" * 8, generation="x"), Repaired("cd" * 8, reason="it is nowhere else"))
    text = shown(found(1, 0), Repairs(points, ()))
    assert f"point {'ab' * 8} was repaired" in text
    assert f"point {'cd' * 8} can't be repaired: it is nowhere else" in text
