"""What the owner of a store puts into it without any key: objects that are too large, and
directories that hold other things than files. Where a file must be and a link or a pipe is, the
directory store says no rather than to follow it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from drvm.repository.layout import final_object, point_object
from drvm.store.base import MAX_OBJECT_BYTES, check_size
from drvm.store.directory import DirectoryStore
from drvm.store.memory import MemoryStore
from tests.hostile.case import Case, closed, harmless, lost
from tests.hostile.forge import LIAR, Forge

LARGE = bytes(MAX_OBJECT_BYTES + 1)
HEX16, HEX64 = "0" * 16, "0" * 64


class _Bounded(MemoryStore):
    """Refuses objects that are too large, as real stores do."""

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        whole = self.head(name).size_bytes - offset if length is None else length
        check_size(name, whole)
        return super().get(name, offset=offset, length=length)


def large(*names: str) -> Callable[[Forge], None]:
    def plant(forge: Forge) -> None:
        bounded = _Bounded()
        bounded.objects = forge.store.objects
        forge.store = bounded
        for name in names:
            forge.put(name, LARGE)

    return plant


def large_point(manifest: bool) -> Callable[[Forge], None]:
    """A good point of which the manifest, or the final, is replaced by something large."""

    def plant(forge: Forge) -> None:
        point_id = forge.point()
        prefix = "points/" if manifest else "final/"
        (name,) = (n for n in forge.store.objects if n.startswith(prefix) and point_id in n)
        large(name)(forge)

    return plant


def directory(plant: Callable[[Path], object]) -> Callable[[Forge], None]:
    """The repository as a directory, to which something is done."""

    def planted(forge: Forge) -> None:
        place = Path("store").absolute()
        shutil.rmtree(place, ignore_errors=True)
        store = DirectoryStore.create(place)
        for name, (data, _) in forge.store.objects.items():
            store.put(name, data)
        plant(place)
        forge.store = store  # type: ignore[assignment]

    return planted


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def link(name: str, to: str) -> Callable[[Forge], None]:
    return directory(lambda place: made(place / name).symlink_to(to))


def pipe(*names: str) -> Callable[[Forge], None]:
    return directory(lambda place: [os.mkfifo(made(place / name)) for name in names])


def folder(name: str) -> Callable[[Forge], None]:
    return directory(lambda place: (place / name).mkdir(parents=True))


def file(name: str | bytes) -> Callable[[Forge], None]:
    def plant(place: Path) -> None:
        made(place / os.fsdecode(name)).write_bytes(b"noise")

    return directory(plant)


def in_place(prefix: str, work: Callable[[Path], object]) -> Callable[[Forge], None]:
    """Something else in the place of the first object there."""

    def plant(place: Path) -> None:
        path = min(p for p in (place / prefix).rglob("*") if p.is_file())
        path.unlink()
        work(path)

    return directory(plant)


def instead(name: str, work: Callable[[Path], object]) -> Callable[[Forge], None]:
    def plant(place: Path) -> None:
        (place / name).unlink()
        work(place / name)

    return directory(plant)


def deep(place: Path) -> None:
    path = place / "points"
    for _ in range(200):
        path /= "d"
    path.mkdir(parents=True)


POINT = point_object(LIAR, HEX16, HEX16)
FINAL = final_object(HEX16, HEX16)

CASES: dict[str, Case] = {
    "a config that is too large": harmless(large("drvm.json")),
    "a slot that is too large": harmless(large(f"keys/{HEX16}")),
    "a manifest that is too large": lost(large_point(True)),
    "a final that is too large": lost(large_point(False)),
    "a manifest without a final that is too large": harmless(large(POINT)),
    "a final of nothing that is too large": harmless(large(FINAL)),
    "a pack that is too large": harmless(large(f"packs/{HEX64}")),
    "a pin that is too large": harmless(large(f"pins/{HEX16}.{HEX16}")),
    "a check that is too large": harmless(large(f"checks/{HEX16}")),
    "an index object that is too large": harmless(large(f"index/{HEX64}")),
    "a drill that is too large": harmless(large(f"drills/{LIAR}/0")),
    "a tombstone that is too large": harmless(large(f"condemned/{HEX64}")),
    "a notice that is too large": harmless(large(f"leaving/{HEX16}.{HEX16}")),
    "a probe that is too large": harmless(large("probe/x")),
    "a link to a file of the host": harmless(link(f"pins/{HEX16}.{HEX16}", "/etc/passwd")),
    "a link to a directory of the host": harmless(link("drills/etc", "/etc")),
    "a link to its own directory": harmless(link("drills/again", "..")),
    "a link to itself": harmless(link(f"index/{HEX64}", HEX64)),
    "a link to nothing": harmless(link(f"checks/{HEX16}", "nowhere")),
    "a link to zeroes without end": harmless(link(f"packs/{HEX64}", "/dev/zero")),
    "a slot that is a link to zeroes": closed(link(f"keys/{HEX16}", "/dev/zero")),
    "pipes": harmless(pipe(f"packs/{HEX64}", f"pins/{HEX16}.{HEX16}", f"index/{HEX64}")),
    "a slot that is a pipe": closed(pipe(f"keys/{HEX16}")),
    "a config that is a pipe": closed(instead("drvm.json", os.mkfifo)),
    "a config that is a directory": harmless(instead("drvm.json", os.mkdir)),
    "a config that is zeroes without end": closed(
        instead("drvm.json", lambda path: path.symlink_to("/dev/zero"))
    ),
    "no config": harmless(instead("drvm.json", lambda path: None)),
    "a slot in the place of a directory": harmless(folder(f"keys/{HEX16}")),
    "a pack in the place of a directory": harmless(folder(f"packs/{HEX64}")),
    "directories that are deep": harmless(directory(deep)),
    "names of line feeds": harmless(file("packs/\n" + "0" * 63)),
    "names of control characters": harmless(file("points/\x1b[2J/x")),
    "names that are no text": harmless(file(b"points/\xff\xfe/\xff")),
    "names that are long": harmless(file("pins/" + "0" * 255)),
    "files called as writes under way": harmless(file(f"packs/~{HEX64}")),
    "no slots at all": closed(in_place("keys", lambda path: None)),
    "a slot that is a directory": closed(in_place("keys", Path.mkdir)),
    "the slot as a pipe": closed(in_place("keys", os.mkfifo)),
    "the slot as zeroes without end": closed(
        in_place("keys", lambda path: path.symlink_to("/dev/zero"))
    ),
}
