"""Each outside thing is imported or used in one place only."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.architecture.source import Source, planted, sources

IMPORTS = {
    "libvirt": ("drvm/host/",),
    "libvirt_qemu": ("drvm/host/",),
    "nbd": ("drvm/host/",),
    "ctypes": ("drvm/core/process.py", "drvm/restore/guestfiles/libguestfs.py"),
    "boto3": ("drvm/store/",),
    "botocore": ("drvm/store/",),
    "subprocess": ("drvm/core/process.py",),
    "multiprocessing": (),
    "click": ("drvm/cli/",),
    "pydantic": ("drvm/config/",),
    "yaml": ("drvm/config/",),
    "apscheduler": ("drvm/daemon/",),
    "cronsim": ("drvm/schedule/",),
    "sqlite3": ("drvm/runs/",),
    "httpx": ("drvm/notify/",),
    "smtplib": ("drvm/notify/",),
    "apprise": ("drvm/notify/",),
    "starlette": ("drvm/web/",),
    "uvicorn": ("drvm/web/",),
    "prometheus_client": ("drvm/report/",),
    "cryptography": ("drvm/repository/",),
    "lxml": (),
    "xml.dom": (),
    "xml.sax.handler": (),
}
"""Module, and what lies below it -> where it may be imported."""

USES = {
    **dict.fromkeys(
        (
            *("os.killpg", "os.forkpty", "os.system", "os.popen"),
            *("os.posix_spawn", "os.posix_spawnp", "os.spawnv", "os.spawnve"),
            *("os.execv", "os.execve", "os.execvp", "os.execvpe"),
        ),
        ("drvm/core/process.py",),
    ),
    "os.fork": ("drvm/core/forked.py",),
    **dict.fromkeys(
        ("os.kill", "signal.pidfd_send_signal"),
        ("drvm/core/process.py", "drvm/core/detached.py", "drvm/core/forked.py"),
    ),
    **dict.fromkeys(
        (
            *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.sleep"),
            *("time.perf_counter", "time.perf_counter_ns", "datetime.date.today"),
            *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"),
        ),
        ("drvm/core/clock.py",),
    ),
    # defusedxml parses; xml.etree may build and write.
    **dict.fromkeys(
        (
            *(f"xml.etree.ElementTree.{name}" for name in ("parse", "iterparse", "XML", "XMLID")),
            *(f"xml.etree.ElementTree.{name}" for name in ("fromstring", "fromstringlist")),
            *(f"xml.etree.ElementTree.{name}" for name in ("XMLParser", "XMLPullParser")),
            *("xml.sax.parse", "xml.sax.parseString", "xml.sax.make_parser"),
        ),
        (),
    ),
    "print": ("drvm/cli/", "drvm/lab/demo"),
    "sys.stdout": ("drvm/cli/", "drvm/lab/demo"),
}
"""Dotted name -> where it may be used."""


def violations(tree: Iterable[Source]) -> list[str]:
    found = []
    for source in tree:
        for line, name in source.imports:
            for module, places in IMPORTS.items():
                below = name == module or name.startswith(f"{module}.")
                if below and not source.path.startswith(places):
                    found.append(f"{source.path}:{line} imports {name}")
        for line, name in {*source.uses, *source.imports}:
            if name in USES and not source.path.startswith(USES[name]):
                found.append(f"{source.path}:{line} uses {name}")
    return sorted(found)


def test_each_outside_thing_has_one_door() -> None:
    assert violations(sources()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import libvirt",
        "def f():\n    import nbd",
        "from botocore.exceptions import ClientError",
        "from subprocess import run",
        "import os\nos.kill(1, 9)",
        "import time\nclock = time.monotonic",
        "from time import sleep",
        "import datetime as dt\ndt.datetime.now(dt.UTC)",
        "from datetime import datetime\ndatetime.utcnow()",
        "from xml.etree import ElementTree as ET\nET.fromstring('<a/>')",
        "import xml.etree.ElementTree as ET\nET.parse('a')",
        "import xml.etree.ElementTree\nxml.etree.ElementTree.parse('a')",
        "from xml.etree.ElementTree import iterparse",
        "from xml.dom import minidom",
        "print('hello')",
        "import sys\nsys.stdout.write('hello')",
        "from apscheduler.schedulers.background import BackgroundScheduler",
    ],
)
def test_the_rule_of_doors_sees_a_planted_violation(text: str) -> None:
    assert violations([planted("drvm/backup/run.py", text)])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("drvm/host/libvirt_host.py", "import libvirt"),
        ("drvm/core/clock.py", "import time\ntime.sleep(1)"),
        ("drvm/backup/run.py", "def f(clock):\n    clock.sleep(1)\n    return clock.now()"),
        ("drvm/restore/plan.py", "from xml.etree import ElementTree as ET\nET.tostring(1)"),
        ("drvm/restore/plan.py", "from defusedxml.ElementTree import fromstring\nfromstring('')"),
        ("drvm/cli/main.py", "print('hello')"),
        ("drvm/restore/plan.py", "import datetime as dt\ndt.datetime.fromisoformat('')"),
    ],
)
def test_the_rule_of_doors_lets_the_right_place_pass(path: str, text: str) -> None:
    assert violations([planted(path, text)]) == []
