"""Our side of the process in a drill's network: it is started, plugged in, asked and ended here.

Nothing of it outlives drvm: the process and what it starts are killed by the kernel (PDEATHSIG, and
a PID namespace that ends with its first process), and the cable goes with the namespace that holds
its other end. The host gets no address, route or rule.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_interface
from pathlib import Path

import msgspec

from drvm.core.errors import HostError, ProcessFailed
from drvm.core.process import Child, Processes
from drvm.core.progress import Trace, no_trace
from drvm.drill.checks.base import INTERFACE, Address, Attempt, Beat, Card, HttpAsked
from drvm.drill.checks.said import shown
from drvm.drill.wire.addresses import plan_dhcp
from drvm.drill.wire.messages import Answer, Heard, Http, Reach, Request, Tcp
from drvm.restore.served.order import tell_order
from drvm.restore.served.server import python_path

_START_S = 30.0
_STEP_S = 15.0
_MARGIN_S = 10.0
_IP_S = 10.0
_END_S = 5.0
_MAX_CA_BYTES = 1 << 20
_SCRIPT_OUTPUT_BYTES = 1 << 20
_TOOLS = ("ip", "unshare", "setpriv", "nsenter", "dnsmasq")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_STATUS = Path("/proc/self/status")
_INSIDE = (sys.executable, "-P", "-m", "drvm.drill.wire.inside")
_APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child")


def wire_problems() -> Iterator[str]:
    """Why this process could not be joined to a drill's network; a line for each, with the way
    out."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        yield (
            f"{', '.join(missing)} is missing, which checks over the network need: "
            "apt install iproute2 util-linux dnsmasq-base"
        )
    lacking = [name for name, bit in _CAPABILITIES.items() if not _effective() >> bit & 1]
    if lacking:
        yield (
            f"checks over the network need root, or {' and '.join(lacking)}: they make a network "
            "namespace; run drvm as root, or leave those checks out"
        )


def _effective() -> int:
    """The capabilities that this process has. capabilities(7), proc(5)."""
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


@contextlib.contextmanager
def joined(
    processes: Processes,
    bridge: str,
    drill_id: str,
    cards: Sequence[Card],
    trace: Trace = no_trace,
    asked: Collection[Address] = (),
) -> Iterator[Line]:
    """A way into the network behind ``bridge``, where machines with these cards will be, for as
    long as the context lasts. To be entered before they start, so that what they say of their
    addresses is heard, and left by the same thread. ``asked``: addresses that checks go to.

    Raises ``HostError`` where it can't be had.
    """
    name = f"drv{drill_id[-12:]}"
    child = processes.spawn([*_APART, *_INSIDE], env=python_path(), detach=True, talk=True)
    try:
        try:
            child.hear(_START_S)
            _plug_in(processes, child.pid, bridge, name)
        except ProcessFailed as problem:
            raise HostError(
                f"the drill's network can't be joined: {problem.message}",
                hint="it needs root and network namespaces; leave out the checks over the network",
            ) from None
        trace("network-joined")
        line = Line(processes, child)
        begun = line.ask(plan_dhcp(cards, asked), _START_S)
        if begun.failed:
            raise HostError(f"the drill's network can't be served: {begun.failed}")
        trace("network-served")
        yield line
    finally:
        with contextlib.suppress(ProcessFailed):  # else it goes with the namespace, soon
            processes.run(["ip", "link", "delete", name], timeout_s=_IP_S)
        child.leave()  # it ends by itself, and the kernel all that it started, before this is over
        if not child.wait(_END_S):
            child.stop(0)


def _plug_in(processes: Processes, pid: int, bridge: str, name: str) -> None:
    """A cable between the bridge and the namespace. Its end on the host has no address, not even
    one of its own making."""
    link = ["ip", "link"]
    far = ["peer", "name", INTERFACE, "netns", str(pid)]
    processes.run([*link, "add", name, "type", "veth", *far], timeout_s=_IP_S)
    with contextlib.suppress(ProcessFailed):  # a kernel without IPv6
        processes.run([*link, "set", name, "addrgenmode", "none"], timeout_s=_IP_S)
    processes.run([*link, "set", name, "master", bridge, "up"], timeout_s=_IP_S)


class Line:
    """Implements ``Wire``. After an answer that did not come it is of no use any more."""

    def __init__(self, processes: Processes, child: Child) -> None:
        self._processes = processes
        self._child = child
        self._broken = ""
        self._turn = threading.Lock()

    def ask(self, request: Request, limit_s: float) -> Answer:
        """One after the other, also from several threads. Raises ``HostError``."""
        with self._turn:
            if not self._broken:
                try:
                    tell_order(self._child, msgspec.json.encode(request))
                    said = self._child.hear(limit_s)
                    return msgspec.json.decode(said, type=Answer)
                except (ProcessFailed, msgspec.MsgspecError) as problem:
                    self._broken = str(problem)
        raise HostError(f"the process in the drill's network is of no use: {self._broken}")

    def heard(self, macs: Sequence[str]) -> tuple[Address, ...]:
        return tuple(map(ip_interface, self.ask(Heard(tuple(macs)), _STEP_S).addresses))

    def tcp(self, to: Address, port: int, banner: str | None, timeout_s: float) -> Attempt:
        return self._attempt(Tcp(str(to), port, banner, timeout_s), timeout_s)

    def http(self, to: Address, asked: HttpAsked, timeout_s: float) -> Attempt:
        try:
            ca = _certificates(asked.ca_file) if asked.ca_file is not None else None
        except (OSError, UnicodeDecodeError) as problem:
            return Attempt(False, False, f"{asked.ca_file} can't be read: {problem}", final=True)
        return self._attempt(
            Http(
                to=str(to),
                port=asked.port,
                path=asked.path,
                tls=asked.tls,
                host=asked.host,
                ca=ca,
                expect_status=asked.expect_status,
                expect_body=asked.expect_body,
                timeout_s=timeout_s,
            ),
            timeout_s,
        )

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        to: Address | None,
        timeout_s: float,
        beat: Beat,
    ) -> Attempt:
        if to is not None:
            reached = self.ask(Reach(str(to)), _STEP_S)
            if reached.failed:
                return Attempt(False, False, reached.failed)
        spaces = f"/proc/{self._child.pid}/ns"
        enter = ["nsenter", f"--net={spaces}/net", f"--pid={spaces}/pid_for_children"]
        enter += ["unshare", "--mount-proc"]  # where the program finds itself
        try:
            ended = self._processes.run(
                [*enter, *argv],
                env=env,
                timeout_s=timeout_s,
                max_output_bytes=_SCRIPT_OUTPUT_BYTES,
                beat=beat,
            )
        except ProcessFailed as problem:
            if problem.code is None:
                words = problem.message.replace("nsenter", argv[0], 1)
                return Attempt(False, False, words)
            lines = shown(problem.code, problem.stdout, problem.stderr)
            return Attempt(False, False, "\n".join(lines))
        return Attempt(True, True, "\n".join(shown(0, ended.stdout, ended.stderr)))

    def _attempt(self, request: Request, timeout_s: float) -> Attempt:
        found = self.ask(request, timeout_s + _STEP_S + _MARGIN_S)
        if found.failed:
            return Attempt(False, False, found.failed)
        return Attempt(found.passed, found.answered, found.detail)


def _certificates(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(_MAX_CA_BYTES + 1)
    if len(data) > _MAX_CA_BYTES:
        raise OSError("it is too large for certificates")
    return data.decode("ascii")
