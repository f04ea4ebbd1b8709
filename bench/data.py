"""The data that the measurements of the chunker read: six disks, made once.

``python -m bench.data --dir DIR``, as root, with the packages that bench/README.md names. The disks
are sparse raw files, such as ``A.raw``; one that is there already is kept, and a build that
is interrupted leaves no half a disk.

- A: a Debian server on ext4: debootstrap and ``PACKAGES``, as the machine's own apt has them,
  without updates, laid out by mke2fs.
- E: A after a week of life: mounted; a dozen upgrades from the security archive (``UPGRADED``:
  libraries and one server), one package installed and one removed, in a chroot; so apt's lists
  and caches and dpkg's state were rewritten; logs of a week, one rotated; a twentieth of all files
  with new times; trimmed once, as Debian's fstrim.timer does.
- C: A's files copied one by one onto xfs: the same content, another layout.
- dense: the first ``DENSE_BYTES`` that A holds, one after the other: a disk without holes.
- F: a database (SQLite, pages of 8 KiB, rows of names, numbers, words and hashes) alone on ext4.
- G: F after rows in 1 % of the pages, taken at random, were updated in place.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import floors

DISK_BYTES = 4 << 30
DENSE_BYTES = 3 << 29
DATABASE_BYTES = 1700 << 20
PAGE_BYTES = 8192
CHANGED = 0.01
_BATCH_ROWS = 4
"""Rows side by side that one update touches: about a third of a page."""

PACKAGES = (
    *("linux-image-amd64", "systemd-sysv", "udev", "openssh-server", "ca-certificates", "curl"),
    *("nginx", "postgresql", "mariadb-server", "redis-server", "php-fpm", "default-jre-headless"),
    *("build-essential", "git", "python3", "python3-numpy", "vim", "locales-all", "golang-go"),
)
UPGRADED = (
    *(
        "libssl3",
        "openssl",
        "libpq5",
        "liblzma5",
        "xz-utils",
        "libexpat1",
        "libnss3",
        "libpng16-16",
    ),
    *("libssh2-1", "libpcre2-8-0", "tzdata", "ca-certificates", "nginx"),
)
INSTALLED_LATER, REMOVED_LATER = "tree", "redis-server"
TOUCHED = 0.05
"""Of all files: read or restored by something that sets their times."""

WORDS = tuple(
    hashlib.sha256(str(number).encode()).hexdigest()[: 3 + number % 7] for number in range(2000)
)


def disk(directory: Path, name: str) -> Path:
    """That disk, made first where it is missing, and so is what it is made from."""
    path = directory / f"{name}.raw"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        MAKERS[name](directory, partial)
        partial.rename(path)
    return path


def _debian(directory: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        root = Path(scratch, "root")
        mirror, release = _archives()[0]
        _run("debootstrap", "--variant=minbase", release, str(root), mirror)
        _forbid_services(root)
        _in_root(root, directory, f"apt-get install {' '.join(PACKAGES)}")
        _ext4(image, root)


def _aged(directory: Path, image: Path) -> None:
    _copy(disk(directory, "A"), image)
    sources = "".join(f"deb {uri} {release} main\\n" for uri, release in _archives())
    with tempfile.TemporaryDirectory(dir=directory) as mount:
        logs = directory / "logs.partial"
        shutil.rmtree(logs, ignore_errors=True)
        _write_logs(logs)
        life = (
            f"printf '{sources}' >/etc/apt/sources.list; apt-get update;"
            f" apt-get install --only-upgrade {' '.join(UPGRADED)};"
            f" apt-get install {INSTALLED_LATER}; apt-get purge {REMOVED_LATER}; ldconfig;"
            " gzip -k /var/log/dpkg.log; mv /var/log/dpkg.log.gz /var/log/dpkg.log.1.gz"
        )
        _run(
            *("unshare", "--mount", "sh", "-ec"),
            f"mount -o loop {image} {mount}; {_entering(Path(mount), directory, life)};"
            f" cp -r {logs}/. {mount}/var/log/; "
            f" find {mount} -xdev -type f | LC_ALL=C sort"
            f" | awk 'BEGIN {{ srand(3) }} rand() < {TOUCHED}'"
            " | xargs -d '\\n' touch -d 2026-11-20;"
            f" fstrim {mount}; umount -R {mount}",
        )
        shutil.rmtree(logs)


def _laid_out_anew(directory: Path, image: Path) -> None:
    _sparse(image)
    _run("mkfs.xfs", "-q", str(image))
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        old.mkdir()
        new.mkdir()
        _run(
            *("unshare", "--mount", "sh", "-ec"),
            f"mount -o loop,ro {disk(directory, 'A')} {old}; mount -o loop {image} {new};"
            f" cp -a {old}/. {new}/; umount {new} {old}",
        )


def _without_holes(directory: Path, image: Path) -> None:
    """Pieces of 128 KiB, so that no block comes to lie at another place inside of 4 KiB."""
    with image.open("wb") as stream:
        for piece in floors.pieces(disk(directory, "A"), floors.FRAME_BYTES):
            if stream.tell() >= DENSE_BYTES:
                break
            stream.write(piece)


def _database(directory: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        database = sqlite3.connect(Path(scratch, "data.db"), isolation_level=None)
        for setting in (f"page_size={PAGE_BYTES}", "journal_mode=off", "synchronous=off"):
            database.execute(f"pragma {setting}")
        database.execute("create table account (id integer primary key, row blob)")
        database.execute("begin")
        database.executemany("insert into account (row) values (?)", _rows(random.Random(0)))
        database.execute("commit")
        database.close()
        _ext4(image, Path(scratch))


def _updated(directory: Path, image: Path) -> None:
    _copy(disk(directory, "F"), image)
    with tempfile.TemporaryDirectory(dir=directory) as mount:
        _run("mount", "-o", "loop", str(image), mount)
        try:
            database = sqlite3.connect(Path(mount, "data.db"), isolation_level=None)
            database.execute("pragma journal_mode=off")
            (pages,) = database.execute("pragma page_count").fetchone()
            (rows,) = database.execute("select max(id) from account").fetchone()
            seeded = random.Random(1)
            content = _rows(seeded)
            database.execute("begin")
            for first in seeded.sample(range(1, rows - _BATCH_ROWS), int(pages * CHANGED)):
                for at in range(first, first + _BATCH_ROWS):
                    # of the old row's length, so that it stays in its place
                    database.execute(
                        "update account set row=substr(?||row, 1, length(row)) where id=?",
                        (next(content)[0][:200], at),
                    )
            database.execute("commit")
            database.close()
        finally:
            _run("umount", mount)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "A": _debian,
    "E": _aged,
    "C": _laid_out_anew,
    "dense": _without_holes,
    "F": _database,
    "G": _updated,
}


def _rows(seeded: random.Random) -> Iterator[tuple[bytes]]:
    """Rows of about 500 bytes that zstd halves: like a name, numbers, a hash and a text each."""
    total = 0
    while total < DATABASE_BYTES:
        words = " ".join(seeded.choices(WORDS, k=seeded.randrange(20, 60)))
        number = seeded.getrandbits(128)
        row = f"{number % 10**12:015d}|{number:032x}|2026-11-{number % 28 + 1:02d}|{words}"
        data = row.encode() + seeded.randbytes(64)
        total += len(data)
        yield (data,)


def _write_logs(directory: Path) -> None:
    """A week of text, and of files that only grow and hold records with hashes, as journals do."""
    seeded = random.Random(2)
    for name in ("syslog", "auth.log", "nginx/access.log", "postgresql/main.log"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            for second in range(0, 7 * 86400, 5):
                words = " ".join(seeded.choices(WORDS, k=8))
                stream.write(f"Nov {second // 86400 + 16} {second % 86400:05d} host {words}\n")
    (directory / "journal").mkdir()
    for number in range(3):
        records = (seeded.randbytes(64) + bytes(64) for _ in range(8 << 13))
        (directory / "journal" / f"system-{number}.journal").write_bytes(b"".join(records))


def _archives() -> list[tuple[str, str]]:
    """(URI, release) of Debian's archives as this machine's apt knows them, the release's first."""
    wanted = "$(REPO_URI) $(RELEASE) $(ORIGIN) $(COMPONENT)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    lines = [line.split() for line in told if line.endswith("Debian main")]
    found = list(dict.fromkeys((uri, release) for uri, release, *_ in lines))
    if not found:
        raise SystemExit("apt on this machine knows no Debian archive: apt-get update first")
    return sorted(found, key=lambda archive: len(archive[1]))


def _in_root(root: Path, directory: Path, commands: str) -> None:
    _run("unshare", "--mount", "sh", "-ec", _entering(root, directory, commands))


def _entering(root: Path, directory: Path, commands: str) -> str:
    """Shell text; the packages themselves stay outside of the disk, for the next build."""
    archives = directory / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    options = (
        "-y",
        "--no-install-recommends",
        "-o Acquire::Check-Valid-Until=false",
        "-o Dpkg::Options::=--force-unsafe-io",
        "-o Dpkg::Options::=--force-confold",
    )
    inside = commands.replace("apt-get", " ".join(("apt-get", *options)))
    return (
        f"mount -t proc proc {root}/proc; mount --bind {archives} {root}/var/cache/apt/archives;"
        f" cp /etc/resolv.conf /etc/hosts {root}/etc/;"
        f" DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot {root} sh -ec '{_quoted(inside)}';"
        f" umount {root}/var/cache/apt/archives {root}/proc"
    )


def _quoted(commands: str) -> str:
    return commands.replace("'", "'\\''")


def _forbid_services(root: Path) -> None:
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def _ext4(image: Path, tree: Path) -> None:
    _sparse(image)
    _run("mke2fs", "-q", "-t", "ext4", "-E", "hash_seed=" + _SEED, "-d", str(tree), str(image))


_SEED = "0d6f4c1e-0000-4000-8000-000000000000"


def _sparse(image: Path) -> None:
    with image.open("wb") as stream:
        stream.truncate(DISK_BYTES)


def _copy(old: Path, new: Path) -> None:
    _run("cp", "--sparse=always", str(old), str(new))


def _run(*argv: str) -> None:
    """Its output is shown only where it fails."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed:\n{done.stdout[-4000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the disks are kept")
    directory = parser.parse_args().dir.absolute()
    for name in MAKERS:
        path = disk(directory, name)
        allocated = path.stat().st_blocks * 512
        print(f"{name}  {path}  {allocated / (1 << 30):.2f} GiB allocated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
