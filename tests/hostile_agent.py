"""A guest agent that a script in the guest plays, in the place of the real one.

It is a shell on the agent's own channel. What it does not know it does as the real one would; it
gives the channel back when it is told ``guest-be-good``, or when its time is up.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed
from tests.guests import Guest

_numbers = itertools.count(1)
clock = SystemClock()

_AGENT = """\
#!/bin/sh
for port in /sys/class/virtio-ports/*; do
  if [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
    if [ -e /root/hostile ]; then
      mv /root/hostile /root/hostile.now
      exec sh /root/hostile.now /dev/${port##*/}
    fi
    exec /bin/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -f /run/qemu-ga.pid
  fi
done
exec sleep 1
"""

_SCRIPT = """\
exec 3<>$1
(sleep %(limit_s)d; fsfreeze --unfreeze /data 2>/dev/null; kill -9 -$$) >/dev/null 2>&1 3>&- &
say() { printf '%%s\\n' "$1" >&3; }
error() { say '{"error": {"class": "GenericError", "desc": "'"$1"'"}}'; }
freeze() { fsfreeze --freeze /data && touch /run/frozen; say '{"return": 1}'; }
thaw() { fsfreeze --unfreeze /data; rm -f /run/frozen; say '{"return": 1}'; }
status() { [ -e /run/frozen ] && say '{"return": "frozen"}' || say '{"return": "thawed"}'; }
ping() { say '{"return": {}}'; }
sync() { say '{"return": '"$1"'}'; }
fsinfo() { say '{"return": [{"mountpoint": "/data", "name": "vdb", "type": "ext4", "disk": []}]}'; }
info() { error "not today"; }
%(tricks)s
echo "hostile agent %(number)d" > /dev/ttyS0
while :; do
  read -r line <&3 || { usleep 50000; continue; }  # libvirtd has not connected yet
  id=${line##*\\"id\\":}; id=${id%%%%[!0-9]*}
  case $line in
    *guest-sync*) sync $id ;;
    *guest-ping*) ping ;;
    *guest-fsfreeze-freeze*) freeze ;;
    *guest-fsfreeze-thaw*) thaw ;;
    *guest-fsfreeze-status*) status ;;
    *guest-get-fsinfo*) fsinfo ;;
    *guest-be-good*) fsfreeze --unfreeze /data 2>/dev/null; kill -9 -$$ ;;
    *) info ;;
  esac
done
"""


@contextlib.contextmanager
def hostile(guest: Guest, tricks: str, limit_s: int = 60) -> Iterator[None]:
    """``tricks``: shell functions in place of the honest ones of ``_SCRIPT``; ``say`` writes a
    line. The real agent answers again at the end, and the guest is thawed."""
    number = next(_numbers)
    script = _SCRIPT % {"tricks": tricks, "limit_s": limit_s, "number": number}
    guest.run(
        f"rm -f /run/frozen /root/hostile; cat > /etc/agent.new <<'EOF'\n{_AGENT}EOF\n"
        f"cat > /root/hostile <<'EOF'\n{script}EOF\n"
        "chmod 755 /etc/agent.new; mv /etc/agent.new /etc/agent; "
        "(sleep 0.2; killall -9 qemu-ga) >/dev/null 2>&1 &"
    )
    deadline_s = clock.monotonic_s() + limit_s
    while f"hostile agent {number}" not in guest.serial_log or not _is_connected(guest):
        assert clock.monotonic_s() < deadline_s, f"no hostile agent: {guest.serial_log[-500:]}"
        clock.sleep(0.05)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessFailed):
            guest.agent("guest-be-good")
        guest.wait_for_agent(limit_s + 30)


def _is_connected(guest: Guest) -> bool:
    return "state='connected'" in guest.virsh("dumpxml")


def is_writable(guest: Guest) -> bool:
    """Whether the guest's second disk takes a write now, asked of the real agent."""
    return guest.run("timeout 5 sh -c 'echo x > /data/alive; sync' && echo yes").strip() == "yes"
