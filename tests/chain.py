"""The guest's oracle: numbered, hash-chained records, each fsynced on both disks in turn.

Whatever is restored must hold a prefix of the chain without a gap, and both disks must have been
cut at one instant: record n goes to the first disk, then to the second, then n + 1 is made. A
breath between records, some fifteen a second, leaves an emulated guest's processor to others.
"""

from __future__ import annotations

import hashlib

from tests.guests import Guest

FILES = ("/root/chain", "/data/chain")

_WRITER = """
n=0; hash=start
while [ -e /root/chaining ]; do
  n=$((n+1))
  hash=$(printf '%s %s' "$n" "$hash" | sha256sum | cut -c1-16)
  for file in /root/chain /data/chain; do
    printf '%s %s\\n' "$n" "$hash" | dd of=$file oflag=append conv=notrunc,fsync 2>/dev/null
  done
  sleep 0.03
done
"""


def start(guest: Guest) -> None:
    """Begin anew, in the background."""
    guest.run(
        f"cat > /root/chain.sh <<'EOF'\n{_WRITER}\nEOF\n"
        f"rm -f {' '.join(FILES)}; touch /root/chaining {' '.join(FILES)}; "
        "setsid sh /root/chain.sh >/dev/null 2>&1 </dev/null &"
    )


def stop(guest: Guest) -> int:
    """Returns how many records were acknowledged."""
    guest.run("rm -f /root/chaining; sleep 1; sync")
    return len(guest.run(f"cat {FILES[1]}").splitlines())


def verify(texts: list[str]) -> list[int]:
    """The number of whole records in each file; an ``AssertionError`` for any gap or lie."""
    return [_continued(text, 0, "start")[0] for text in texts]


def assert_one_instant(counts: list[int]) -> None:
    first, second = counts
    assert first - second in (0, 1), f"the disks were cut at different instants: {counts}"


class Follower:
    """Reads the chain as it grows, from the guest's disks and not from its memory, and fails if a
    record that was there before is no more."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._read_bytes = dict.fromkeys(FILES, 0)
        self._count = dict.fromkeys(FILES, 0)
        self._hash = dict.fromkeys(FILES, "start")

    @property
    def count(self) -> int:
        """Records that were seen on both disks."""
        return min(self._count.values())

    def follow(self) -> None:
        # the writer goes on from its memory: whatever is lost on a disk is a gap in the file
        commands = [
            f"stat -c %s {path}; tail -c +{self._read_bytes[path] + 1} {path}; echo end"
            for path in FILES
        ]
        texts = self._guest.run(f"echo 3 >/proc/sys/vm/drop_caches; {'; '.join(commands)}")
        for path, told in zip(FILES, texts.split("end\n")[:-1], strict=True):
            size, _, fresh = told.partition("\n")
            assert int(size) >= self._read_bytes[path], f"{path} lost records"
            self._read_bytes[path] += len(fresh)
            self._count[path], self._hash[path] = _continued(
                fresh, self._count[path], self._hash[path]
            )


def _continued(text: str, count: int, expected: str) -> tuple[int, str]:
    """The last record's number and hash, where ``text`` follows on record ``count``."""
    lines = text.split("\n")
    assert lines[-1] == "", f"a torn record: {lines[-1]!r}"
    for line in lines[:-1]:
        count += 1
        expected = hashlib.sha256(f"{count} {expected}".encode()).hexdigest()[:16]
        assert line == f"{count} {expected}", f"record {count} is {line!r}"
    return count, expected
