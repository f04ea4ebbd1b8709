"""The only door to other processes.

Every call names its time limit and bounds what it keeps of the output. Children get a small
environment: the PATH and a C locale, never drvm's own variables, which may hold secrets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from drvm.core.clock import SystemClock
from drvm.core.errors import ProcessFailed

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
_TAIL_BYTES = 2000
_MAX_LINE_BYTES = 4096
_GRACE_S = 20.0
_LOOK_S = 0.05
_CHUNK_BYTES = 1 << 16
_PR_SET_DUMPABLE = 4
_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class Output:
    """What a process that ended well wrote, each stream cut at the limit."""

    stdout: bytes
    stderr: bytes


class Child(Protocol):
    """A process that goes on while we do. ``stop`` may be called again."""

    @property
    def pid(self) -> int: ...

    def returncode(self) -> int | None:
        """``None`` while it runs."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then; reaps it."""
        ...

    def tell(self, line: str) -> None:
        """One short line to the standard input of a child that was spawned with ``talk``. Raises
        ``ProcessFailed`` where it does not listen any more."""
        ...

    def hear(self, timeout_s: float) -> str:
        """The next line of its standard output, of bounded length. Raises ``ProcessFailed`` when
        the time is up, or it says no more."""
        ...

    def leave(self) -> None:
        """Close both pipes and let it end when it will; it is reaped then, if we still live."""
        ...

    def stop(self, timeout_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL when the time is up; reaps it."""
        ...


class Processes(Protocol):
    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        beat: Callable[[], None] | None = None,
    ) -> Output:
        """Run to the end. Raises ``ProcessFailed`` on any other exit than 0, on a program that is
        missing or can't be run, when the time is up and on too much output. Where its time is up,
        or we are interrupted, its process group gets SIGTERM, and SIGKILL if that does not help.
        ``beat`` is called many times a second meanwhile, and interrupts by raising."""
        ...

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        detach: bool = False,
        talk: bool = False,
    ) -> Child:
        """Start and return. Output goes to ``log`` or nowhere. A detached child has a session of
        its own and outlives us. With ``talk`` its standard input and output are ours, by ``tell``
        and ``hear``: it sees the end of its input when we die, however that happens."""
        ...


def small_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What children may know: the PATH, the C locale, and ``extra``."""
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return {"PATH": path, "LC_ALL": "C", **(extra or {})}


def hide_memory() -> None:
    """No core dump of this process and its children, and no look into its memory, environment
    or open files for other processes of the same user: secrets are in there. prctl(2)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class SystemProcesses:
    """The operating system's own."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        beat: Callable[[], None] | None = None,
    ) -> Output:
        process = _start(
            argv, small_environment(env), subprocess.PIPE, subprocess.PIPE, pipe_stdin=True
        )
        try:
            stdout, stderr = _exchange(process, stdin, timeout_s, max_output_bytes, beat)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{argv[0]} did not end within {timeout_s:g} s") from None
        except OverflowError:
            raise ProcessFailed(f"{argv[0]} wrote more than {max_output_bytes} bytes") from None
        finally:
            _end_group(process)
            _close(process)
        if process.returncode != 0:
            tail = stderr[-_TAIL_BYTES:].decode(errors="replace").strip()
            words = f"{argv[0]} failed ({process.returncode}){f': {tail}' if tail else ''}"
            raise ProcessFailed(words, code=process.returncode, stdout=stdout, stderr=stderr)
        return Output(stdout, stderr)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        detach: bool = False,
        talk: bool = False,
    ) -> Child:
        environment = small_environment(env)
        with (log or Path(os.devnull)).open("ab") as sink:
            out = subprocess.PIPE if talk else sink
            return SystemChild(
                _start(argv, environment, out, sink, pipe_stdin=talk, new_session=detach)
            )


class SystemChild:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._name = str(cast(Sequence[str], process.args)[0])
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def returncode(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def tell(self, line: str) -> None:
        data = line.encode() + b"\n"
        assert self._process.stdin is not None, "spawned without talk"
        assert len(data) <= _MAX_LINE_BYTES, "such a line could block"
        try:
            os.write(self._process.stdin.fileno(), data)
        except (OSError, ValueError):
            raise ProcessFailed(f"{self._name} does not listen any more") from None

    def hear(self, timeout_s: float) -> str:
        assert self._process.stdout is not None, "spawned without talk"
        deadline_s = _clock.monotonic_s() + timeout_s
        while b"\n" not in self._heard:
            left_s = max(0.0, deadline_s - _clock.monotonic_s())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise ProcessFailed(f"{self._name} said nothing within {timeout_s:g} s")
            data = os.read(self._process.stdout.fileno(), _MAX_LINE_BYTES)
            self._heard += data
            if not data or len(self._heard) > _MAX_LINE_BYTES:
                raise ProcessFailed(f"{self._name} ended, or said what is not understood")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode(errors="replace")

    def leave(self) -> None:
        self._hang_up()
        if self._process.poll() is None:
            threading.Thread(target=self._process.wait, name="reaper", daemon=True).start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._hang_up()
        if self._process.poll() is None:
            self._process.terminate()
            if not self.wait(timeout_s):
                self._process.kill()
        self._process.wait()

    def _hang_up(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    out: BinaryIO | object,
    err: BinaryIO | object,
    *,
    pipe_stdin: bool = False,
    new_session: bool = True,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if pipe_stdin else subprocess.DEVNULL,
            stdout=cast(BinaryIO, out),
            stderr=cast(BinaryIO, err),
            env=dict(env),
            start_new_session=new_session,
        )
    except FileNotFoundError:
        raise ProcessFailed(
            f"{argv[0]} is not installed", hint="drvm doctor lists the packages that are needed"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        is_script = error.errno in (errno.EACCES, errno.ENOEXEC)
        hint = "chmod +x, and for a script a first line such as #!/bin/sh" if is_script else ""
        raise ProcessFailed(f"{argv[0]} can't be run: {reason}", hint=hint) from None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """A process that still runs may clean up, and ends with whatever is left of its group."""
    if process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _exchange(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    timeout_s: float,
    limit_bytes: int,
    beat: Callable[[], None] | None = None,
) -> tuple[bytes, bytes]:
    """What it writes until it ends, while it is given ``stdin``: in memory, as output may be a
    secret, and bounded. What its own children write after its end is left out.

    Raises ``subprocess.TimeoutExpired``, and ``OverflowError`` for more than ``limit_bytes``.
    """
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    deadline_s = _clock.monotonic_s() + timeout_s
    unsent = memoryview(stdin)
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as ready:
        for stream in (process.stdin, *kept):
            os.set_blocking(stream.fileno(), False)
            events = selectors.EVENT_WRITE if stream is process.stdin else selectors.EVENT_READ
            ready.register(stream, events)
        while ready.get_map():
            ended = process.poll() is not None
            left_s = deadline_s - _clock.monotonic_s()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            if beat is not None:
                beat()
            found = ready.select(0 if ended else min(left_s, _LOOK_S))
            if ended and not any(key.fileobj in kept for key, _ in found):
                break
            for key, _ in found:
                if key.fileobj is process.stdin:
                    unsent = unsent[_send(process.stdin, unsent) :]
                    done = not unsent
                else:
                    data = os.read(key.fd, _CHUNK_BYTES)
                    store = kept[cast(IO[bytes], key.fileobj)]
                    store += data
                    done = not data
                    if len(store) > limit_bytes:
                        raise OverflowError
                if done:
                    ready.unregister(key.fileobj)
                    cast(IO[bytes], key.fileobj).close()
    while beat is not None and process.poll() is None and _clock.monotonic_s() < deadline_s:
        beat()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
    process.wait(max(0.0, deadline_s - _clock.monotonic_s()))
    return bytes(kept[process.stdout]), bytes(kept[process.stderr])


def _send(stream: IO[bytes], data: memoryview) -> int:
    """How much was taken: all of it by a process that does not listen."""
    try:
        return os.write(stream.fileno(), data[: select.PIPE_BUF])
    except BrokenPipeError:
        return len(data)


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
