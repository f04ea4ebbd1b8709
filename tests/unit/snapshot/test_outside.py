"""State outside the disks is of the instant, or the point says that it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from drvm.core.errors import CaptureError
from drvm.host.places import StatePlaces
from drvm.host.tpm import write_state
from drvm.repository.pack import MAX_BLOB_BYTES
from drvm.snapshot.domainxml import Machine, Tpm
from drvm.snapshot.outside import MAX_NVRAM_BYTES, Outside, at_instant, look
from tests.fakes.clock import FakeClock

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
STATE = {"tpm2-00.permall": b"state"}


def machine(nvram: Path | None = None, tpm: Tpm | None = None, *special: str) -> Machine:
    return Machine("web", UUID, (), nvram, special, tpm)


def places(root: Path) -> StatePlaces:
    return StatePlaces(nvram=root / "nvram", tpm=root, machines=root)


class Meanwhile(FakeClock):
    """Something happens at every pause."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self.happens = happens

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.happens()


def test_what_did_not_change_is_of_the_instant(tmp_path: Path) -> None:
    (tmp_path / "vars").write_bytes(b"variables")
    write_state(tmp_path, UUID, STATE)
    web = machine(tmp_path / "vars", Tpm("2.0", None))
    found = at_instant(look(web, places(tmp_path)), web, places(tmp_path), FakeClock())
    assert found == Outside(b"variables", STATE, ())


def test_what_changed_is_read_until_it_stands_still_and_spoken_of(tmp_path: Path) -> None:
    variables, content = tmp_path / "vars", [b"a", b"ab", b"abc"]
    variables.write_bytes(b"")
    web = machine(variables)
    before = look(web, None)
    variables.write_bytes(b"torn")

    def go_on() -> None:
        if content:
            variables.write_bytes(content.pop(0))

    found = at_instant(before, web, None, Meanwhile(go_on))
    assert found.nvram == b"abc"
    assert found.warnings == (
        "its UEFI variables or TPM were written to at the instant: they are a moment younger",
    )


def test_looking_ends_where_somebody_never_stops_writing(tmp_path: Path) -> None:
    variables = tmp_path / "vars"
    variables.write_bytes(b"")
    web = machine(variables)
    before = look(web, None)
    clock = Meanwhile(lambda: variables.write_bytes(variables.read_bytes() + b"x"))
    variables.write_bytes(b"x")
    assert len(at_instant(before, web, None, clock).warnings) == 1
    assert clock.monotonic_s() < 1


def test_a_machine_that_was_never_started_has_nothing_and_no_warning(tmp_path: Path) -> None:
    assert look(machine(tmp_path / "absent", Tpm("2.0", None)), places(tmp_path)) == Outside()


def test_a_tpm_whose_state_can_not_be_read_costs_a_warning_and_not_the_point(
    tmp_path: Path,
) -> None:
    (tmp_path / UUID).mkdir()
    (tmp_path / UUID / "tpm2").write_text("not a directory")
    for where in (places(tmp_path), None):
        found = look(machine(None, Tpm("2.0", None)), where)
        assert found.tpm == {}
        assert found.warnings[0].startswith("the state of its TPM is not captured: ")


def test_a_tpm_is_read_where_the_xml_says(tmp_path: Path) -> None:
    write_state(tmp_path, UUID, STATE)
    web = machine(None, Tpm(None, tmp_path / UUID / "tpm2"))
    assert look(web, places(tmp_path / "elsewhere")).tpm == STATE


def test_variables_in_a_file_that_libvirt_chose_are_found_though_no_xml_names_it(
    tmp_path: Path,
) -> None:
    web = replace(machine(), chosen_nvram=True)
    assert look(web, places(tmp_path)).nvram is None
    (tmp_path / "nvram").mkdir()
    (tmp_path / "nvram" / "web_VARS.fd").write_bytes(b"variables")
    assert look(web, places(tmp_path)) == Outside(b"variables")
    assert "not captured" in look(web, None).warnings[0]


def test_nvram_that_is_no_file_or_larger_than_any_blob_is_an_error(tmp_path: Path) -> None:
    assert MAX_NVRAM_BYTES <= MAX_BLOB_BYTES
    variables = tmp_path / "vars"
    with variables.open("wb") as file:
        file.truncate(MAX_NVRAM_BYTES + 1)
    for path in (variables, tmp_path):
        with pytest.raises(CaptureError, match="NVRAM"):
            look(machine(path), None)


def test_secrets_are_not_in_what_a_traceback_shows(tmp_path: Path) -> None:
    assert "secret" not in repr(Outside(b"secret", {"tpm2-00.permall": b"secret"}))
