"""What every test may ask for: processes, a real S3 server, libvirt, real guests, a browser."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import hypothesis
import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Processes, SystemProcesses
from drvm.lab import guest as lab
from drvm.lab import services
from drvm.repository import keys
from tests.browser import browser_pages as browser_pages
from tests.browser import chromium as chromium
from tests.guests import MakeGuest, Sleeper, guests, remove_leftovers
from tests.nonces import Nonces, watched

# No test may depend on how busy the machine is. The short form tries the same examples every time,
# the long form other ones, and more.
hypothesis.settings.register_profile("short", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=1000)
hypothesis.settings.load_profile("long" if "--long" in sys.argv else "short")

_left_out = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked 'long'")


def pytest_configure() -> None:
    # Ended from outside, tests clean up as they do on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.stash[_left_out] = len(long)
    if long:
        config.hook.pytest_deselected(items=long)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_left_out, 0)


def pytest_testnodedown(node: Any) -> None:
    """A worker is done, whatever its end."""
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    count = config.stash.get(_left_out, 0)  # several workers collect the same tests each
    if count:
        terminalreporter.write_line(f"{count} long tests left out; --long runs them too")


@pytest.fixture(scope="session", autouse=True)
def nonces() -> Iterator[Nonces]:
    """No test of this process seals two pieces alike; whichever does, fails."""
    seen = Nonces()
    with watched(seen):
        yield seen


@pytest.fixture(scope="session", autouse=True)
def stretched_once() -> Iterator[None]:
    """Argon2id takes a quarter of a second of a processor for each command; what a passphrase
    and a salt gave once, they give again."""
    with mock.patch.object(keys, "_stretch", functools.cache(keys._stretch)):
        yield


@pytest.fixture(scope="session")
def processes() -> Processes:
    return SystemProcesses()


@pytest.fixture(scope="session")
def seaweedfs(
    processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.S3Server]:
    """A real S3 server, one for the session: use a prefix of your own."""
    directory = tmp_path_factory.mktemp("seaweedfs")
    with services.seaweedfs(directory, processes, SystemClock(), users=True) as server:
        yield server


@pytest.fixture(scope="session")
def locked_bucket(seaweedfs: services.S3Server) -> services.S3Server:
    """A bucket of that server that keeps versions and locks; use a prefix of your own."""
    from tests.buckets import make_locked_bucket  # boto3 takes 0.3 s to import

    return make_locked_bucket(seaweedfs, "locked")


@pytest.fixture(scope="session")
def libvirt_uri(processes: Processes) -> Iterator[str]:
    """The URI of a libvirtd that answers."""
    if os.geteuid() != 0:
        pytest.skip("guests need root: libvirtd's images belong to it")
    missing = [t for t in ("virsh", "libvirtd", "qemu-system-x86_64") if not shutil.which(t)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with services.libvirtd(processes, SystemClock()) as uri:
        remove_leftovers(processes)
        yield uri


@pytest.fixture(scope="session")
def guest_template(processes: Processes) -> lab.GuestTemplate:
    return lab.build_template(lab.default_cache(), processes)


@pytest.fixture(scope="session")
def virt_type(
    libvirt_uri: str, guest_template: lab.GuestTemplate, processes: Processes
) -> lab.VirtType:
    """``kvm`` where guests boot with it, else ``qemu``."""
    return lab.probe_virt_type(guest_template, lab.default_cache(), processes, SystemClock())


@pytest.fixture(scope="session")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return Sleeper(tmp_path_factory.mktemp("sleeper"))


@pytest.fixture
def make_guest(
    guest_template: lab.GuestTemplate,
    virt_type: lab.VirtType,
    processes: Processes,
    sleeper: Sleeper,
) -> Iterator[MakeGuest]:
    """Guests that end with the test."""
    with guests(guest_template, virt_type, processes, sleeper) as make:
        yield make


@pytest.fixture(scope="module")
def make_module_guest(
    guest_template: lab.GuestTemplate,
    virt_type: lab.VirtType,
    processes: Processes,
    sleeper: Sleeper,
) -> Iterator[MakeGuest]:
    """Guests that end with the module."""
    with guests(guest_template, virt_type, processes, sleeper) as make:
        yield make
