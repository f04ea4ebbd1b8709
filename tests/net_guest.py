"""What stands for a guest in tests of a drill's network: a process in a network namespace of its
own, as quick to have as a process. ``python -m tests.net_guest`` once its card ``g0`` is there.

It has static addresses and services on their ports: 22 says a banner and hangs up, 23 never ends,
24 says a byte every 100 ms, 80 serves a page.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.core.process import Child, Processes

MAC = "52:54:00:00:00:07"
ADDRESS = "192.0.2.7"
ADDRESS_V6 = "2001:db8::7"
LINK_LOCAL = "fe80::5054:ff:fe00:7"
GATEWAY = "192.0.2.1"
_APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child")
_clock = SystemClock()


@dataclass(frozen=True)
class NetGuest:
    """``bridge``: of the network that it is in."""

    bridge: str
    child: Child

    def wake(self) -> None:
        """It asks for its gateway, as hosts do that have something to send."""
        self.child.tell("wake")
        self.child.hear(30)


@contextlib.contextmanager
def net_guest(processes: Processes, suffix: str) -> Iterator[NetGuest]:
    """Behind a bridge of the host; both are gone afterwards."""
    bridge, cable = f"dtb{suffix}", f"dtc{suffix}"
    root = str(Path(__file__).parents[1])
    with contextlib.ExitStack() as cleanup:
        _ip(processes, "link", "add", bridge, "type", "bridge")
        cleanup.callback(_ip, processes, "link", "delete", bridge)
        _ip(processes, "link", "set", bridge, "up")
        argv = [*_APART, sys.executable, "-m", "tests.net_guest"]
        child = processes.spawn(argv, env={"PYTHONPATH": root}, talk=True, detach=True)
        cleanup.callback(child.stop, 0)
        child.hear(60)
        peer = ("peer", "name", "g0", "address", MAC, "netns", str(child.pid))
        _ip(processes, "link", "add", cable, "type", "veth", *peer)
        _ip(processes, "link", "set", cable, "master", bridge, "up")
        child.tell("plugged in")
        child.hear(60)
        yield NetGuest(bridge, child)


def _ip(processes: Processes, *words: str) -> None:
    processes.run(["ip", *words], timeout_s=30)


def _inside() -> None:
    print("made", flush=True)
    sys.stdin.readline()
    run = subprocess.check_call
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "addr", "add", f"{ADDRESS}/24", "dev", "g0"])
    run(["ip", "link", "set", "g0", "up"])
    run(["ip", "addr", "add", f"{ADDRESS_V6}/64", "dev", "g0", "nodad"])
    run(["ip", "route", "add", "default", "via", GATEWAY])
    for port, serve in ((22, _banner), (23, _endless), (24, _slow)):
        threading.Thread(target=_served, args=(port, serve), daemon=True).start()
    threading.Thread(target=_Pages(("::", 80), _Page).serve_forever, daemon=True).start()
    while True:
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as any_socket:
            any_socket.sendto(b"x", (GATEWAY, 9))


def _served(port: int, serve: Callable[[socket.socket], object]) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as door:
        while True:
            threading.Thread(target=_one, args=(door.accept()[0], serve), daemon=True).start()


def _one(connection: socket.socket, serve: Callable[[socket.socket], object]) -> None:
    with contextlib.suppress(OSError), connection:
        serve(connection)


def _banner(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-tests\r\n")


def _endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def _slow(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        _clock.sleep(0.1)


class _Pages(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    _inside()
