"""The door to qemu-img: looking at images, and making them. A format is always given, never
probed: what a guest wrote at the start of a raw disk must not decide how it is read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvm.core.errors import HostError, ProcessFailed
from drvm.core.files import sync_directory
from drvm.core.process import Processes
from drvm.host.disks import Bitmap, ImageInfo

FORMATS = frozenset({"raw", "qcow2"})
FOREIGN_FORMATS = frozenset({"vmdk", "vdi", "vhdx"})
"""Of other hypervisors: for export and import, never for a machine of this host."""

# a small cluster for scattered writes, and subclusters so that none is copied up for 4 KiB
_OVERLAY_OPTIONS = "extended_l2=on,cluster_size=128k"
# QEMU copies at least this much before a write, and more with larger clusters (block/backup.c)
_SCRATCH_OPTIONS = "cluster_size=64k"
_SWITCHES = ("extended_l2", "lazy_refcounts")
_VALUES = ("compat", "compression_type", "refcount_bits")
_CREATE_OPTIONS = ("cluster_size", *_SWITCHES, *_VALUES)
_OPTION_VALUE = re.compile(r"[a-z0-9.]{1,16}", re.ASCII)
_EXPORT = re.compile(r"nbd(\+[a-z]+)?:", re.ASCII)
_FLOCK = struct.Struct("hhqqi4x")
_ONLY_LEAKS = 3
"""``qemu-img check``: docs/tools/qemu-img.rst."""
_WRITE_PERMISSION_BYTE = 101
_WRITE_SHARED_BYTE = 201
_WRITE_BYTES = (_WRITE_PERMISSION_BYTE, _WRITE_SHARED_BYTE)
_MAX_CHAIN = 32
_QUICK_S = 60.0
_LONG_S = 24 * 3600.0
_MAX_INFO_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a file that is an image by itself, such as a member of an archive."""

    offset: int
    size_bytes: int


class ImageTool:
    """Images of the host that drvm runs on. Paths are absolute: then they begin with ``/`` and
    can be taken neither for options nor for protocols such as ``nbd:`` or ``json:``."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def info(self, path: Path, image_format: str) -> ImageInfo:
        """Takes no lock, so a running machine may have the image open. Raises ``HostError`` for
        what drvm can't read: encrypted images, and such with a data file beside them."""
        argv = ["qemu-img", "info", "-U", "--output=json", "-f", image_format, _plain(path)]
        try:
            output = self._run(argv, _QUICK_S)
        except HostError as problem:
            if not path.exists():
                raise HostError(
                    f"there is no image {path}", hint="is its file system mounted?"
                ) from None
            hint = problem.hint or f"is that its format? qemu-img info -U {path}"
            words = f"{path} can't be read as {image_format}: {problem.message}"
            raise HostError(words, hint=hint) from None
        try:
            return _parse_info(json.loads(output), path, image_format)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise HostError(f"qemu-img said nothing useful about {path}") from None

    def chain(self, path: Path, image_format: str) -> tuple[ImageInfo, ...]:
        """The image and everything below it, top first."""
        found = [self.info(path, image_format)]
        while (below := found[-1].backing_file) is not None:
            below_format = found[-1].backing_format
            if _EXPORT.match(below) is not None:
                raise HostError(
                    f"{found[-1].path} takes its data from an NBD server ({below[:100]})",
                    hint="where its machine was booted from a point: drvm boot --finish NAME",
                )
            if below_format not in FORMATS or ":" in below.split("/")[0]:
                raise HostError(
                    f"{found[-1].path} names its backing file without a format that drvm reads",
                    hint="qemu-img rebase -u -b BACKING -F FORMAT writes it into the image",
                )
            if len(found) == _MAX_CHAIN:
                raise HostError(f"{path} has more than {_MAX_CHAIN} layers")
            found.append(self.info(found[-1].path.parent / below, below_format))
        return tuple(found)

    def create_overlay(self, overlay: Path, base: Path, base_format: str, size_bytes: int) -> None:
        """An empty qcow2 over ``base``, owned as that one is, durable. Raises ``HostError`` where
        ``overlay`` exists; a failure leaves nothing."""
        owner = base.stat()
        argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", _OVERLAY_OPTIONS]
        argv += ["-b", _plain(base), "-F", base_format, _plain(overlay), str(size_bytes)]
        with _new_file(overlay) as descriptor:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
            self._run(argv, _QUICK_S)
            os.fsync(descriptor)
        sync_directory(overlay.parent)

    def create_over_export(
        self, image: Path, uri: str, size_bytes: int, options: Mapping[str, str]
    ) -> None:
        """An empty qcow2 over what ``uri``, an NBD export of drvm's, serves; durable. Of
        ``options`` those that describe a qcow2 are used, but for ``extended_l2``: QEMU 7.2 dies
        while it pulls into such an image (``bdrv_co_do_copy_on_readv``). Raises ``HostError``
        where ``image`` exists; a failure leaves nothing."""
        argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2"]
        argv += _options({name: v for name, v in options.items() if name != "extended_l2"})
        argv += ["-b", uri, "-F", "raw", _plain(image), str(size_bytes)]
        with _new_file(image) as descriptor:
            self._run(argv, _QUICK_S)
            os.fsync(descriptor)
        sync_directory(image.parent)

    def holds_nothing(self, image: Path) -> bool:
        """Whether nothing was ever written to a qcow2. Takes no lock. Raises ``HostError``."""
        told = ",".join(map("=".join, image_options(image, "qcow2", locking=False).items()))
        argv = ["qemu-img", "map", "-U", "--output=json", "--image-opts", f"backing=,{told}"]
        try:
            return not any(entry["present"] for entry in json.loads(self._run(argv, _QUICK_S)))
        except (ValueError, RecursionError, KeyError, TypeError):
            raise HostError(f"qemu-img said nothing useful about {image}") from None

    def flatten(self, image: Path) -> None:
        """Copy into a qcow2 what it takes from its backing chain, which it has no more then. May be
        done again after a crash. Raises ``HostError``, also where a QEMU has it open."""
        argv = ["qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", _plain(image)]
        self._run(argv, _LONG_S)

    def create_scratch(self, scratch: Path, like: Path, size_bytes: int) -> None:
        """An empty qcow2 for what a guest overwrites during a backup, owned as ``like`` is. Raises
        ``HostError`` where ``scratch`` exists; a failure leaves nothing."""
        owner = like.stat()
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", _SCRATCH_OPTIONS]
        with _new_file(scratch) as descriptor:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
            self._run([*argv, _plain(scratch), str(size_bytes)], _QUICK_S)

    def create_image(
        self, path: Path, image_format: str, size_bytes: int, options: Mapping[str, str]
    ) -> None:
        """A new, empty image without a backing file, reading as zeroes. Of ``options`` those that
        describe a qcow2 are used. Raises ``HostError`` where ``path`` exists; a failure leaves
        nothing."""
        with _new_file(path) as descriptor:
            if image_format == "raw":
                try:
                    os.ftruncate(descriptor, size_bytes)
                except OSError as error:
                    raise HostError(
                        f"{path} can't have {size_bytes} bytes: {error.strerror}",
                        hint="choose a place whose file system takes files of this size",
                    ) from None
                return
            argv = ["qemu-img", "create", "-q", "-f", image_format, *_options(options)]
            self._run([*argv, _plain(path), str(size_bytes)], _QUICK_S)

    def commit_offline(self, overlay: Path, base: Path) -> None:
        """Write what ``overlay`` holds into ``base``, its own backing file, and no further. The
        overlay stays. May be done again after a crash. Raises ``HostError``, also where a QEMU
        has one of them open."""
        argv = ["qemu-img", "commit", "-q", "-f", "qcow2", "-b", _plain(base), _plain(overlay)]
        self._run(argv, _LONG_S)

    def rebase(self, overlay: Path, base: Path, base_format: str) -> None:
        """Write into ``overlay`` that it lies on ``base``, which must hold what everything below
        it held before. Raises ``HostError``, also where a QEMU has it open."""
        argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2"]
        self._run([*argv, "-b", _plain(base), "-F", base_format, _plain(overlay)], _QUICK_S)

    def check(self, path: Path, image_format: str, *, leaks: bool = False) -> None:
        """Raises ``HostError`` with qemu-img's own words where the image is not sound. ``leaks``:
        clusters that nothing refers to count as sound; a QEMU that was killed leaves such."""
        argv = ["qemu-img", "check", "-q", "-f", image_format, _plain(path)]
        try:
            self._processes.run(argv, timeout_s=_LONG_S, max_output_bytes=_MAX_INFO_BYTES)
        except ProcessFailed as problem:
            if not leaks or problem.code != _ONLY_LEAKS:
                raise HostError(problem.message, hint=problem.hint) from None

    def mend_leaks(self, path: Path, image_format: str) -> None:
        """Give back clusters that nothing refers to, of an image that is sound but for them."""
        argv = ["qemu-img", "check", "-q", "-r", "leaks", "-f", image_format, _plain(path)]
        self._run(argv, _LONG_S)

    def _run(self, argv: list[str], timeout_s: float) -> bytes:
        try:
            output = self._processes.run(
                argv, timeout_s=timeout_s, max_output_bytes=_MAX_INFO_BYTES
            )
        except ProcessFailed as problem:
            raise HostError(problem.message, hint=problem.hint) from None
        return output.stdout


def image_options(
    path: Path, image_format: str, *, locking: bool, part: Part | None = None
) -> dict[str, str]:
    """How QEMU's tools are told what to open (``--image-opts``): nothing is left to be probed.
    For a foreign format also that there is nothing below it."""
    file = {
        "driver": "host_device" if is_block_device(path) else "file",
        "filename": _plain(path).replace(",", ",,"),
        "locking": "on" if locking else "off",
    }
    options = {"driver": image_format}
    if image_format == "vmdk":
        options["backing"] = ""
    if part is not None:
        options |= {
            "file.driver": "raw",
            "file.offset": str(part.offset),
            "file.size": str(part.size_bytes),
        }
    where = "file." if part is None else "file.file."
    return options | {f"{where}{name}": value for name, value in file.items()}


def in_use(path: Path) -> bool:
    """Whether a QEMU has the image open for writing.

    By the lock that QEMU holds on one byte for each permission (``block/file-posix.c``); asking
    takes no lock, so a machine that is being started at this moment does not notice. Machines
    that libvirt gave a ``/dev`` of their own are not seen on block devices.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _others_hold(descriptor, _WRITE_PERMISSION_BYTE)
    finally:
        os.close(descriptor)


def forbids_writers(path: Path) -> bool:
    """Whether a QEMU has the image open and relies on nobody writing to it, such as one whose
    machine has a disk that lies on it. Seen as by ``in_use``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _others_hold(descriptor, _WRITE_SHARED_BYTE)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_locked(path: Path) -> Iterator[None]:
    """QEMU's own lock of a writer: for as long as the context lasts, and we live, no QEMU opens the
    image for writing. Raises ``HostError`` where one has it open so, or relies on it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for byte in _WRITE_BYTES:
            lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
            except OSError as problem:
                raise HostError(f"{path} can't be locked: {problem.strerror}") from None
        if any(_others_hold(descriptor, byte) for byte in _WRITE_BYTES):
            raise HostError(f"{path} is in use", hint="end the program that has it open")
        yield
    finally:
        os.close(descriptor)


def _others_hold(descriptor: int, byte: int) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_block_device(path: Path) -> bool:
    return stat.S_ISBLK(path.stat().st_mode)


def _options(options: Mapping[str, str]) -> list[str]:
    argv = []
    for name in _CREATE_OPTIONS:
        value = options.get(name)
        if value is not None:
            if _OPTION_VALUE.fullmatch(value) is None:
                raise HostError(f"{value[:40]!r} is no value for {name}")
            argv += ["-o", f"{name}={value}"]
    return argv


def _plain(path: Path) -> str:
    if not path.is_absolute():
        raise ValueError(f"{path} is not absolute")
    return str(path)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A file that did not exist before, and does not exist after a failure."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        raise HostError(f"{path} can't be made: {problem.strerror}") from None
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)


def _parse_info(document: Any, path: Path, image_format: str) -> ImageInfo:
    details = document.get("format-specific", {}).get("data", {})
    if document.get("encrypted") or "data-file" in details:
        raise HostError(f"{path} is encrypted or keeps its data in another file")
    options: dict[str, str] = {}
    if image_format == "qcow2":
        options["cluster_size"] = str(int(document["cluster-size"]))
        for name in _SWITCHES:
            options[name] = "on" if details.get(name.replace("_", "-")) else "off"
        for name in _VALUES:
            if (value := details.get(name.replace("_", "-"))) is not None:
                options[name] = str(value)
    backing = document.get("backing-filename")
    backing_format = document.get("backing-filename-format")
    bitmaps = tuple(
        Bitmap(str(entry["name"]), int(entry["granularity"]), frozenset(entry["flags"]))
        for entry in details.get("bitmaps", ())
    )
    return ImageInfo(
        path=path,
        format=image_format,
        virtual_size_bytes=int(document["virtual-size"]),
        allocated_bytes=int(document.get("actual-size", 0)),
        backing_file=None if backing is None else str(backing),
        backing_format=None if backing_format is None else str(backing_format),
        options=options,
        bitmaps=bitmaps,
        snapshots=tuple(str(entry["name"]) for entry in document.get("snapshots", ())),
    )
