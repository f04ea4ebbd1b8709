from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import DrvmError, ProcessFailed
from drvm.core.process import Output
from drvm.lab.disk import cpio_newc, modules_in_order, unpack_packages

ENTRIES = st.dictionaries(
    st.text("abc/", min_size=1, max_size=9),
    st.tuples(st.sampled_from([0o040755, 0o100644, 0o100755]), st.binary(max_size=40)),
    max_size=6,
)


def read_newc(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """As the kernel reads it: a 110-byte header, name and content, each padded to 4 bytes."""
    found, position = {}, 0
    while True:
        assert archive[position : position + 6] == b"070701"
        mode, size, name_size = (
            int(archive[position + at : position + at + 8], 16) for at in (14, 54, 94)
        )
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        start = position + 110 + name_size
        start += -start % 4
        position = start + size
        position += -position % 4
        if name == "TRAILER!!!":
            assert position == len(archive)
            return found
        found[name] = (mode, archive[start : start + size])


@given(ENTRIES)
def test_an_archive_comes_back_as_it_went_in(entries: dict[str, tuple[int, bytes]]) -> None:
    assert read_newc(cpio_newc(entries)) == entries


def module(tree: Path, name: str, depends: str) -> None:
    path = tree / "lib/modules/6.1/kernel" / f"{name}.ko"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


def test_a_kernel_module_comes_after_what_it_depends_on(tmp_path: Path) -> None:
    module(tmp_path, "virtio_net", "virtio,net_failover")
    module(tmp_path, "net_failover", "failover")
    module(tmp_path, "failover", "")
    module(tmp_path, "virtio", "")
    module(tmp_path, "unrelated", "virtio")
    order = [path.stem for path in modules_in_order(tmp_path)]
    assert order == ["virtio", "failover", "net_failover", "virtio_net"]


def test_modules_that_the_kernel_has_built_in_are_left_out(tmp_path: Path) -> None:
    module(tmp_path, "virtio-rng", "virtio")
    assert [path.stem for path in modules_in_order(tmp_path)] == ["virtio-rng"]


def test_a_mirror_that_can_not_be_reached_is_an_error_that_names_the_package(
    tmp_path: Path,
) -> None:
    class NoMirror:
        def run(self, argv: object, **_: object) -> Output:
            raise ProcessFailed("apt-get failed (100)")

    with pytest.raises(DrvmError, match="busybox-static can't be had: apt-get failed"):
        unpack_packages(tmp_path / "debs", tmp_path / "tree", NoMirror())  # type: ignore[arg-type]
