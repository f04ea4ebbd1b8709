"""What a probe found is kept on the host, and stops a second writer where that is not safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import resolve
from drvm.core.clock import SystemClock
from drvm.core.errors import ObjectExists, StoreRefused
from drvm.core.process import SystemProcesses
from drvm.repository.repository import Repository
from drvm.store.memory import MemoryStore
from drvm.wiring.assembly import Wiring
from drvm.wiring.probing import kept_probe, probe_store, refuse_second_writer
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault

__all__ = ["cheap_key_derivation"]


class LastWins(MemoryStore):
    """Only a late creator is refused, as by a service that looks first and writes then."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        if name in self.objects and (data == b"late" or not name.startswith("probe/")):
            raise ObjectExists(name)
        self.put(name, data)


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    text = f"repository: {{url: file://{tmp_path}/store}}\nstate_dir: {tmp_path}/state\n"
    return Wiring(
        resolve(parse_config(text.encode(), "c.yaml", {}), {}),
        clock=SystemClock(),
        processes=SystemProcesses(),
        passphrase=lambda: b"",
    )


def written_here_and_elsewhere(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> Vault:
    """Points say that they were written by ``here``."""
    vault = new_vault(LastWins())
    vault.save([b"x" * 4096])
    monkeypatch.setattr(wiring, "_repository", vault.repository)
    return vault


def test_the_result_is_kept_and_told(wiring: Wiring) -> None:
    assert kept_probe(wiring) is None
    report = probe_store(wiring, MemoryStore())
    kept = kept_probe(wiring)
    assert kept is not None and kept.findings == report.findings
    assert kept.words.endswith("UTC: all well")
    probe_store(wiring, LastWins())
    kept = kept_probe(wiring)
    assert kept is not None and kept.words.endswith("wrong: create-if-absent")


def test_a_store_that_could_not_be_written_leaves_what_was_kept(wiring: Wiring) -> None:
    class Closed(MemoryStore):
        def put(self, name: str, data: object) -> None:
            raise StoreRefused("access denied")

    probe_store(wiring, MemoryStore())
    before = kept_probe(wiring)
    probe_store(wiring, Closed())
    assert kept_probe(wiring) == before


def test_a_result_that_can_not_be_kept_is_told(wiring: Wiring) -> None:
    wiring.settings.state_dir.write_text("a file")
    report = probe_store(wiring, MemoryStore())
    (wrong,) = [finding for finding in report.findings if not finding.ok]
    assert wrong.name == "kept" and "state_dir" in wrong.hint
    assert kept_probe(wiring) is None


def test_a_damaged_result_is_none(wiring: Wiring) -> None:
    probe_store(wiring, MemoryStore())
    (path,) = (wiring.settings.state_dir / "stores").iterdir()
    path.write_bytes(b"{")
    assert kept_probe(wiring) is None
    refuse_second_writer(wiring)


def test_without_atomic_creation_only_one_host_may_write(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = written_here_and_elsewhere(wiring, monkeypatch)
    refuse_second_writer(wiring)  # never probed
    probe_store(wiring, MemoryStore())
    refuse_second_writer(wiring)
    probe_store(wiring, vault.store)
    with pytest.raises(StoreRefused, match="here writes to it too"):
        refuse_second_writer(wiring)
    monkeypatch.setattr(Wiring, "writer", "here")
    refuse_second_writer(wiring)


def test_a_new_repository_in_such_a_store_is_nobodys_yet(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_store(wiring, LastWins())
    empty = Repository.create(MemoryStore(), b"correct horse")
    monkeypatch.setattr(wiring, "_repository", empty)
    refuse_second_writer(wiring)
