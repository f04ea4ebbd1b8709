"""``drvm serve POINT``."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
from pathlib import Path

import click

from drvm.cli.invocation import Invocation
from drvm.cli.opening import at_time, chosen_point, ending, opened
from drvm.config.settings import Overrides
from drvm.core.clock import Clock
from drvm.core.errors import Interrupted, UsageError
from drvm.core.units import format_bytes
from drvm.repository.points import Point
from drvm.restore.served.server import LogTail, Port, Served
from drvm.restore.served.supervised import serving
from drvm.wiring.serving import service_of

_LOOPBACK = "127.0.0.1"
_LOOK_S = 1.0


@click.command("serve")
@click.argument("point")
@click.option(
    "--disk", multiple=True, metavar="TARGET", help="Only this one, such as vda; repeatable."
)
@click.option(
    "--socket",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The unix socket.  [default: a private one]",
)
@click.option(
    "--port", metavar="N", type=click.IntRange(1, 65535), help="A TCP port instead, on loopback."
)
@click.option("--listen", metavar="ADDRESS", help="Where the port is open instead of loopback.")
@at_time
@click.pass_obj
def command(
    invocation: Invocation,
    point: str,
    disk: tuple[str, ...],
    socket: Path | None,
    port: int | None,
    listen: str | None,
    as_of: dt.datetime | None,
) -> int:
    """Serve the disks of a recovery point over NBD, read-only, until Ctrl-C or SIGTERM.

    Nothing is restored: what is read is fetched from the repository and verified, and holes are
    told as such. Each disk is an export of its own, called by its target; the URIs are printed.
    Whoever may connect can read the disks. That takes this user or root at a socket, any user of
    this machine at a port, and anybody who reaches the address given by --listen.

    \b
    Examples:
      drvm serve web1 --socket /run/web1.sock
        nbdcopy 'nbd+unix:///vda?socket=/run/web1.sock' vda.raw
        qemu-img convert -O qcow2 'nbd+unix:///vda?socket=/run/web1.sock' vda.qcow2
        guestfish --ro -i -a 'nbd://?socket=/run/web1.sock'
      drvm serve web1@2026-11-23T04:00 --disk vda --port 10809
        nbd-client 127.0.0.1 10809 /dev/nbd0 -N vda -readonly
    """
    place = _port(port, listen, socket)
    with opened(invocation, Overrides(as_of=as_of)) as wiring:
        chosen = chosen_point(invocation, wiring, point)
        service = service_of(wiring, chosen, disk or None)
        if place is not None and not ipaddress.ip_address(place.address).is_loopback:
            invocation.warn(
                f"whoever reaches {place.address} port {place.number} can read the disks of "
                f"{chosen.manifest.vm}, without encryption"
            )
        with (
            contextlib.suppress(Interrupted, KeyboardInterrupt),  # being told to stop is no failure
            serving(
                wiring.processes,
                wiring.clock,
                service,
                socket=socket.absolute() if socket is not None else None,
                port=place,
            ) as served,
        ):
            _tell(invocation, chosen, served)
            _wait(invocation, wiring.clock, served)
        return ending(wiring)


def _port(port: int | None, listen: str | None, socket: Path | None) -> Port | None:
    if port is None:
        if listen is not None:
            raise UsageError("--listen needs --port", hint="such as --port 10809")
        return None
    if socket is not None:
        raise UsageError("--socket and --port exclude each other", hint="choose one of them")
    try:
        return Port(str(ipaddress.ip_address(listen or _LOOPBACK)), port)
    except ValueError:
        raise UsageError(
            f"--listen {listen!r} is no IP address", hint="such as 192.0.2.7; 0.0.0.0 for all"
        ) from None


def _tell(invocation: Invocation, point: Point, served: Served) -> None:
    sizes = {disk.target: disk.size_bytes for disk in point.manifest.disks}
    if invocation.output.json:
        disks = [
            {"target": target, "size_bytes": sizes[target], "uri": served.uri(target)}
            for target in served.exports
        ]
        fields = {"point": point.id, "vm": point.manifest.vm, "disks": disks}
        invocation.output.document({"served": fields})
    else:
        invocation.output.line(f"serving point {point.id} of {point.manifest.vm}, until Ctrl-C:")
        for target in served.exports:
            size = format_bytes(sizes[target])
            invocation.output.line(f"  {target}: {size}  {served.uri(target)}")
    invocation.output.flush()


def _wait(invocation: Invocation, clock: Clock, served: Served) -> None:
    """Until a signal ends it; what the server says is told meanwhile."""
    log = LogTail(served.log)
    while True:
        for line in log.lines():
            invocation.warn(line)
        clock.sleep(_LOOK_S)
