"""The guest's oracle: numbered, hash-chained records, each fsynced on both disks in turn.

Whatever is restored must hold a prefix of the chain without a gap, and both disks must have been
cut at one instant: record n goes to the first disk, then to the second, then n + 1 is made.
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
    counts = []
    for text in texts:
        expected, count = "start", 0
        lines = text.split("\n")
        assert lines[-1] == "", f"a torn record: {lines[-1]!r}"
        for line in lines[:-1]:
            count += 1
            expected = hashlib.sha256(f"{count} {expected}".encode()).hexdigest()[:16]
            assert line == f"{count} {expected}", f"record {count} is {line!r}"
        counts.append(count)
    return counts


def assert_one_instant(counts: list[int]) -> None:
    first, second = counts
    assert first - second in (0, 1), f"the disks were cut at different instants: {counts}"
