"""qemu-img is the real one here: what matters is what it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drvm.core.errors import HostError
from drvm.core.process import SystemProcesses
from drvm.core.units import KIB, MIB
from drvm.host.images import ImageTool
from drvm.host.nbd import NbdExport


@pytest.fixture
def images() -> ImageTool:
    return ImageTool(SystemProcesses())


def test_an_overlay_names_its_base_and_reads_no_byte_of_it(
    images: ImageTool, tmp_path: Path
) -> None:
    base, overlay = tmp_path / "base,with=odd:name.img", tmp_path / "overlay"
    base.write_bytes(bytes(MIB))
    images.create_overlay(overlay, base, "raw", MIB)
    info = images.info(overlay, "qcow2")
    assert (info.backing_file, info.backing_format) == (str(base), "raw")
    assert info.virtual_size_bytes == MIB
    assert info.options["extended_l2"] == "on"
    assert info.options["cluster_size"] == str(128 * KIB)


def test_an_overlay_belongs_to_the_owner_of_its_base(images: ImageTool, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(bytes(MIB))
    os.chown(base, 12345, 54321)
    images.create_overlay(overlay, base, "raw", MIB)
    assert (overlay.stat().st_uid, overlay.stat().st_gid) == (12345, 54321)


def test_no_existing_file_becomes_an_overlay(images: ImageTool, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(bytes(MIB))
    overlay.write_text("somebody's")
    with pytest.raises(HostError):
        images.create_overlay(overlay, base, "raw", MIB)
    assert overlay.read_text() == "somebody's"


def test_no_link_is_followed_when_an_image_is_made(images: ImageTool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError):
        images.create_image(tmp_path / "link", "raw", MIB, {})
    assert not (tmp_path / "elsewhere").exists()


def test_a_raw_image_larger_than_any_file_is_refused(images: ImageTool, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't have"):
        images.create_image(tmp_path / "new", "raw", (1 << 63) - 1, {})
    assert not (tmp_path / "new").exists()


def test_a_failed_overlay_leaves_no_file(images: ImageTool, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(bytes(MIB))
    with pytest.raises(HostError):
        images.create_overlay(overlay, base, "no-such-format", MIB)
    assert not overlay.exists()


def test_a_scratch_image_is_empty_owned_as_told_and_never_in_place_of_another(
    images: ImageTool, tmp_path: Path
) -> None:
    like, scratch = tmp_path / "like", tmp_path / "scratch"
    like.touch()
    os.chown(like, 12345, 12346) if os.geteuid() == 0 else None
    images.create_scratch(scratch, like, 3 * MIB + 512)
    info, owner = images.info(scratch, "qcow2"), scratch.stat()
    assert (info.virtual_size_bytes, info.backing_file) == (3 * MIB + 512, None)
    assert info.options["cluster_size"] == "65536"
    assert (owner.st_uid, owner.st_gid) == (like.stat().st_uid, like.stat().st_gid)
    with pytest.raises(HostError):
        images.create_scratch(scratch, like, MIB)
    assert images.info(scratch, "qcow2").virtual_size_bytes == 3 * MIB + 512


def test_a_qcow2_is_made_with_the_options_it_had(images: ImageTool, tmp_path: Path) -> None:
    options = {"cluster_size": "65536", "extended_l2": "on", "compat": "1.1", "unknown": "x"}
    images.create_image(tmp_path / "new", "qcow2", 3 * MIB + 512, options)
    info = images.info(tmp_path / "new", "qcow2")
    assert info.virtual_size_bytes == 3 * MIB + 512
    assert info.backing_file is None
    assert info.options["cluster_size"] == "65536"
    assert info.options["extended_l2"] == "on"
    images.check(tmp_path / "new", "qcow2")


@pytest.mark.parametrize(
    "wanted",
    [
        "compat=0.10",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,refcount_bits=64,cluster_size=2M",
        "compression_type=zstd,cluster_size=512",
        "extended_l2=on,cluster_size=128k,lazy_refcounts=on,refcount_bits=1",
    ],
)
def test_every_option_of_a_qcow2_is_read_and_made_again(
    images: ImageTool, tmp_path: Path, wanted: str
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", wanted, str(old), "8M"]
    SystemProcesses().run(argv, timeout_s=20)
    options = images.info(old, "qcow2").options
    sizes = {"2M": "2097152", "128k": "131072"}
    for name, value in (option.split("=") for option in wanted.split(",")):
        assert options[name] == sizes.get(value, value)
    images.create_image(new, "qcow2", 8 * MIB, options)
    assert images.info(new, "qcow2").options == options


def test_an_option_that_smuggles_another_is_refused(images: ImageTool, tmp_path: Path) -> None:
    with pytest.raises(HostError):
        images.create_image(
            tmp_path / "new", "qcow2", MIB, {"cluster_size": "65536,backing_file=/etc/passwd"}
        )
    assert not (tmp_path / "new").exists()


def test_a_relative_path_never_reaches_qemu_img(images: ImageTool) -> None:
    with pytest.raises(ValueError, match="absolute"):
        images.info(Path("nbd:localhost:10809"), "raw")


def test_an_offline_commit_writes_into_the_next_layer_only(
    images: ImageTool, tmp_path: Path
) -> None:
    template, base, overlay = (tmp_path / n for n in ("template", "base", "overlay"))
    template.write_bytes(b"t" * MIB)
    processes = SystemProcesses()
    images.create_overlay(base, template, "raw", MIB)
    images.create_overlay(overlay, base, "qcow2", MIB)
    processes.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4k", str(overlay)], timeout_s=20)
    images.commit_offline(overlay, base)
    assert template.read_bytes() == b"t" * MIB
    processes.run(["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 4k", str(base)], timeout_s=20)
    assert [layer.path for layer in images.chain(overlay, "qcow2")] == [overlay, base, template]


def test_a_backing_file_of_unknown_format_is_not_probed(images: ImageTool, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (tmp_path / "base").write_bytes(bytes(MIB))
    images.create_overlay(top, tmp_path / "base", "raw", MIB)
    SystemProcesses().run(
        ["qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1", str(top)], timeout_s=20
    )
    header = bytearray(top.read_bytes())
    at = header.find(b"\xe2\x79\x2a\xca")  # the header extension that names the backing format
    header[at : at + 4] = b"\x01\x02\x03\x04"
    top.write_bytes(header)
    with pytest.raises(HostError, match="without a format"):
        images.chain(top, "qcow2")


def test_an_image_over_an_export_is_plain_qcow2_and_its_chain_is_refused_with_the_way_on(
    images: ImageTool, tmp_path: Path
) -> None:
    image = tmp_path / "image.qcow2"
    uri = "nbd+unix:///vda?socket=/run/drvm-boot/x/nbd"
    images.create_over_export(
        image, uri, MIB, {"extended_l2": "on", "cluster_size": "131072", "compat": "1.1"}
    )
    info = images.info(image, "qcow2")
    assert (info.backing_file, info.backing_format) == (uri, "raw")
    assert (info.options["extended_l2"], info.options["cluster_size"]) == ("off", "131072")
    with pytest.raises(HostError, match="NBD server") as refused:
        images.chain(image, "qcow2")
    assert "drvm boot --finish" in refused.value.hint
    with pytest.raises(HostError, match="can't be made"):
        images.create_over_export(image, uri, MIB, {})


def test_a_flattened_image_holds_what_its_export_served(images: ImageTool, tmp_path: Path) -> None:
    base, image = tmp_path / "base.raw", tmp_path / "image.qcow2"
    base.write_bytes(os.urandom(MIB) + bytes(MIB))
    with NbdExport(SystemProcesses(), base, "raw") as export:
        uri = f"nbd+unix:///?socket={export.socket}"
        images.create_over_export(image, uri, 2 * MIB, {})
        images.flatten(image)
        images.flatten(image)
    assert images.info(image, "qcow2").backing_file is None
    argv = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(base), str(image)]
    SystemProcesses().run(argv, timeout_s=60)
