"""``drvm key`` as people use it, and planted secrets that must turn up nowhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Result, run_command

DRVM = [sys.executable, "-m", "drvm"]
FIRST, SECOND, WRONG = "planted-first-passphrase", "planted-second-phrase", "planted-wrong-phrase"
S3_SECRET = "planted+s3/secret"


class Place:
    """A repository in a directory, a config, and a record of all that was ever printed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.printed: list[bytes] = []
        for name in ("state", "cache", "tmp"):
            (root / name).mkdir()
        self.secret_file("pass", FIRST)
        self.secret_file("second", SECOND)
        self.secret_file("wrong", WRONG)
        (root / "c.yaml").write_text(
            f"repository: {{url: 'file://{root}/repo', password_file: {root}/pass}}\n"
            f"state_dir: {root}/state\ncache_dir: {root}/cache\n"
        )

    def secret_file(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.root / name
        path.write_text(f"{text}\n")
        path.chmod(mode)
        return path

    def environ(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return {
            **kept,
            "DRVM_CONFIG": str(self.root / "c.yaml"),
            "TMPDIR": str(self.root / "tmp"),
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_ACCESS_KEY_ID": "planted-id",
            **more,
        }

    def run(self, *args: str, stdin: str = "", **environ: str) -> Result:
        return self._keep(args, run_command(args, self.environ(**environ), stdin))

    def run_apart(self, *args: str, stdin: str = "", **environ: str) -> Result:
        """In a process of its own."""
        done = subprocess.run(
            [*DRVM, *args],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
            env=self.environ(**environ),
        )
        return self._keep(args, Result(done.returncode, done.stdout, done.stderr))

    def _keep(self, args: tuple[str, ...], result: Result) -> Result:
        if args[:2] != ("key", "export"):
            self.printed += [result.out.encode(), result.err.encode()]
        return result

    def json(self, *args: str, **environ: str) -> Any:
        done = self.run(*args, "--json", **environ)
        assert done.code == 0, done.err
        return done.document

    def second(self) -> dict[str, str]:
        return {"DRVM_PASSWORD_FILE": str(self.root / "second")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("keys"))
    done = place.run("init")
    assert done.code in (0, 3), done.err
    return place


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    """Only the first passphrase is there afterwards."""
    yield made
    for slot in made.json("key", "list")["slots"]:
        if not slot["in_use"]:
            assert made.run("key", "remove", slot["id"], "--yes").code == 0


def test_a_passphrase_is_added_listed_used_and_removed(place: Place) -> None:
    file = str(place.root / "second")
    slot = place.json("key", "add", "--label", "the safe", "--new-password-file", file)["added"]
    listed = {row["id"]: row for row in place.json("key", "list", **place.second())["slots"]}
    assert listed[slot]["label"] == "the safe" and listed[slot]["in_use"]
    assert listed[slot]["created"] and listed[slot]["host"]
    refused = place.run("key", "remove", "the safe", "--yes", **place.second())
    assert refused.code == 2 and "drvm key change" in refused.err
    assert place.run("key", "remove", "the safe", "--yes").code == 0
    assert place.run("points", **place.second()).code == 12


@pytest.mark.long
def test_a_change_keeps_the_label_and_leaves_the_new_one_only(place: Place) -> None:
    place.json("key", "add", "--label", "mine", "--new-password-file", str(place.root / "second"))
    third = place.secret_file("third", "planted-third-passphrase")
    place.json("key", "change", "--new-password-file", str(third), **place.second())
    assert place.run("points", **place.second()).code == 12
    environ = {"DRVM_PASSWORD": "planted-third-passphrase"}
    (row,) = [row for row in place.json("key", "list", **environ)["slots"] if row["in_use"]]
    assert row["label"] == "mine"


def test_the_page_that_was_printed_opens_the_repository_without_any_passphrase(
    place: Place,
) -> None:
    page = place.run("key", "export").out
    line = next(line for line in page.splitlines() if line.strip().startswith("3:"))
    wrong = page.replace(line, line[:-1] + ("0" if line[-1] != "0" else "1"))
    told = place.run("key", "import", "-", stdin=wrong, **place.second())
    assert told.code == 2 and "line 3: at least one digit is wrong" in told.err
    done = place.run("key", "import", "-", "--json", stdin=page, **place.second())
    assert done.code == 0, done.err
    assert place.run("points", **place.second()).code == 0


def test_a_terminal_is_asked_twice_and_told_of_mistyped_lines(place: Place) -> None:
    lines = place.run("key", "export", "--json").document["lines"]
    config = place.root / "asks.yaml"
    config.write_text(
        f"repository: {{url: 'file://{place.root}/repo'}}\n"
        f"state_dir: {place.root}/state\ncache_dir: {place.root}/cache\n"
    )
    environ = place.environ(DRVM_CONFIG=str(config))
    with Terminal(["key", "import"], environ) as asked:
        asked.answer("1: ", lines[1])
        asked.answer("not right: this is not line 1. Once more.", None)
        for number, line in enumerate(lines, 1):
            asked.answer(f"{number}: ", line.partition(":")[2])
        asked.answer("new passphrase: ", "short")
        asked.answer("once more: ", "short")
        asked.answer("weak: it is shorter than 12 characters", None)
        asked.answer("added key slot", None)
    with Terminal(["key", "add"], environ) as asked:
        asked.answer("passphrase of the repository: ", "short")
        asked.answer("new passphrase: ", "one")
        asked.answer("once more: ", "another")
        asked.answer("the two passphrases differ", None)


class Terminal:
    """drvm on a terminal of its own."""

    def __init__(self, args: list[str], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._child = subprocess.Popen(
            [*DRVM, *args],
            env=environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._ours)

    def answer(self, prompt: str, line: str | None) -> None:
        """Wait for the prompt, which must come within a minute, and type the line."""
        while prompt not in self._seen:
            assert select.select([self._ours], [], [], 60)[0], f"no {prompt!r} in {self._seen!r}"
            try:
                self._seen += os.read(self._ours, 4096).decode()
            except OSError:
                raise AssertionError(f"no {prompt!r} in {self._seen!r}") from None
        self._seen = self._seen.partition(prompt)[2]
        if line is not None:
            time.sleep(0.2)  # getpass throws away what came before it switched the echo off
            os.write(self._ours, line.encode() + b"\n")


# -- planted secrets --------------------------------------------------------------------------
_SNOOP = """\
import os, sys, time
out = open(sys.argv[1], "ab")
for parent in (os.getpid(), os.getppid()):
    out.write(open(f"/proc/{parent}/cmdline", "rb").read())
out.write(open(f"/proc/{os.getpid()}/environ", "rb").read())
sys.err.write("planted-second-phrase, says the manager\\n")
print("planted-second-phrase" if sys.argv[2] == "good" else "x" * 100000)
sys.exit(0 if sys.argv[2] != "bad" else 1)
"""


def ways(place: Place) -> Iterator[tuple[str, ...]]:
    """Commands that end well, and that don't; each may have variables behind it as NAME=VALUE."""
    snoop = place.root / "snoop.py"
    snoop.write_text(_SNOOP)
    second = str(place.root / "second")
    command = f"DRVM_PASSWORD_COMMAND={sys.executable} {snoop} {place.root}/seen"
    yield "points", "-vv"
    yield "key", "add", "--new-password-file", second, "-vv"
    yield "key", "list", "--json"
    yield "points", f"{command} good"
    yield "points", "-vv", f"{command} bad"
    yield "points", f"{command} long"
    yield "points", f"DRVM_PASSWORD={SECOND}"
    yield "points", f"DRVM_PASSWORD={WRONG}"
    yield "points", f"DRVM_PASSWORD={WRONG}", f"DRVM_PASSWORD_FILE={second}"
    yield "key", "list", f"DRVM_PASSWORD_FILE={place.root}/wrong"
    yield "key", "remove", "nonsense", "--yes"
    yield "key", "import", "-", "-vv"
    yield "show", "nothing"
    yield "doctor", "LIBVIRT_DEFAULT_URI=test:///default"
    yield "report", "--output", f"{place.root}/state/r.html", \
        "LIBVIRT_DEFAULT_URI=test:///default"  # fmt: skip
    yield (
        "points",
        "-vv",
        "DRVM_REPOSITORY=s3://planted",
        "AWS_ENDPOINT_URL=http://127.0.0.1:9",
    )


def artefacts(place: Place) -> Iterator[tuple[str, bytes]]:
    for number, text in enumerate(place.printed):
        yield f"output {number}", text
    for name in ("state", "cache", "tmp", "repo"):
        for path in (place.root / name).rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
    yield "seen", (place.root / "seen").read_bytes()


def test_planted_secrets_turn_up_nowhere(place: Place) -> None:
    lines = place.run("key", "export", "--json").document["lines"]
    typed = "\n".join([*lines[:2], lines[2].replace("1", "2", 1), *lines[3:]])
    codes = set()
    for way in ways(place):
        args = [part for part in way if not re.match("[A-Z_]+=", part)]
        environ = dict(part.split("=", 1) for part in way if re.match("[A-Z_]+=", part))
        run = place.run_apart if "DRVM_PASSWORD_COMMAND" in environ else place.run
        codes.add(run(*args, stdin=typed, **environ).code)
    assert {0, 1, 2, 12} <= codes
    digits = "".join(re.sub("[^0-9a-f]", "", line.partition(":")[2])[:32] for line in lines[:5])
    seal, block_id = bytes.fromhex(digits[32:96]), bytes.fromhex(digits[96:160])
    secrets = [FIRST.encode(), SECOND.encode(), WRONG.encode(), S3_SECRET.encode(), seal, block_id,
               seal.hex().encode(), block_id.hex().encode(),
               *(line.partition(":")[2].strip()[:9].encode() for line in lines[1:5])]  # fmt: skip
    found = {
        (where, secret) for where, data in artefacts(place) for secret in secrets if secret in data
    }
    assert found == set()
    assert any(b"points" in text for text in place.printed), "nothing was looked at"


def test_a_planted_secret_would_be_found(place: Place) -> None:
    (place.root / "seen").touch()
    leak = place.root / "state" / "leak.log"
    leak.write_text(f"the passphrase is {FIRST}")
    assert any(FIRST.encode() in data for _, data in artefacts(place))
    leak.unlink()
