import threading
from pathlib import Path

from drvm.wiring.identity import host_key


def test_a_host_keeps_its_key(tmp_path: Path) -> None:
    first = host_key(tmp_path / "state")
    assert first is not None and len(first) == 32
    assert host_key(tmp_path / "state") == first
    assert host_key(tmp_path / "other") != first
    assert (tmp_path / "state" / "host.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["host.key"]


def test_two_who_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: found.append(host_key(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and found[0] is not None


def test_without_a_place_to_keep_it_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert host_key(tmp_path / "file" / "state") is None
    (tmp_path / "host.key").write_bytes(b"short")
    assert host_key(tmp_path) is None
