"""``--running`` goes together only with what leaves the machine the same."""

import pytest

from drvm.cli.running import refuse_with_running
from drvm.core.errors import UsageError


@pytest.mark.parametrize(
    "option", ["clone", "name", "start", "disk", "cpu", "machine", "output", "in_place", "sysprep"]
)
def test_what_makes_another_machine_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.replace("_", "-")):
        refuse_with_running({option: "given"})


def test_where_its_disks_go_is_free() -> None:
    refuse_with_running({"pool": "fast", "replace": True, "dry_run": True, "clone": False})
