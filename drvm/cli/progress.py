"""Where the work is, on stderr: a bar on a terminal, lines elsewhere, or nothing. Both tell the
rate and the time that is left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from drvm.cli.output import Flags
from drvm.core.clock import Clock, SystemClock
from drvm.core.progress import Meter, NoProgress, Progress
from drvm.core.text import printable
from drvm.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress


class LineProgress:
    """For logs: each stage when it begins, and how far a long one has come every half minute."""

    _EVERY_S = 30.0

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._title = ""
        self._meter: Meter | None = None
        self._next_s = 0.0

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        with self._lock:
            self._title = printable(title)
            self._meter = Meter(self._clock, total_bytes) if total_bytes else None
            self._next_s = self._clock.monotonic_s() + self._EVERY_S
            self._say(self._title)

    def advance(self, done_bytes: int) -> None:
        with self._lock:
            if self._meter is None:
                return
            self._meter.advance(done_bytes)
            if self._clock.monotonic_s() >= self._next_s:
                self._next_s = self._clock.monotonic_s() + self._EVERY_S
                self._say(f"{self._title}: {_how_far(self._meter)}")

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


def _how_far(meter: Meter) -> str:
    percent = min(100, 100 * meter.done_bytes // meter.total_bytes)
    parts = [f"{percent} % of {format_bytes(meter.total_bytes)}"]
    if (left_s := meter.left_s()) is not None:
        parts.append(f"{format_bytes(int(meter.bytes_per_s()))}/s")
        parts.append(f"{format_seconds(left_s)} left")
    return ", ".join(parts)


class BarProgress:
    """One bar at a time; ``bars`` is rich's, which locks for itself."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None, visible=False)

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        from rich.markup import escape

        # a task can't go back to having no total
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(escape(printable(title)), total=total_bytes)

    def advance(self, done_bytes: int) -> None:
        with contextlib.suppress(KeyError):  # by a thread of the stage before
            self._bars.advance(self._task, done_bytes)


@contextlib.contextmanager
def show_progress(
    stream: TextIO, flags: Flags, *, colour: bool, clock: Clock | None = None
) -> Iterator[Progress]:
    """The bar is gone when the context ends, so that the result stands alone."""
    if flags.quiet or flags.json:
        yield NoProgress()
    elif not stream.isatty():
        yield LineProgress(stream, clock or SystemClock())
    else:
        with _rich_bars(stream, colour=colour) as bars:
            yield BarProgress(bars)


def _rich_bars(stream: TextIO, *, colour: bool) -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Measured(ProgressColumn):
        """``known`` where the stage has a total, else ``unknown`` or nothing."""

        def __init__(self, known: ProgressColumn, unknown: ProgressColumn | None = None) -> None:
            super().__init__()
            self._known, self._unknown = known, unknown

        def render(self, task: Task) -> RenderableType:
            column = self._known if task.total is not None else self._unknown
            return Text("") if column is None else column.render(task)

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        Measured(DownloadColumn(binary_units=True)),
        Measured(TransferSpeedColumn()),
        Measured(TimeRemainingColumn(compact=True), TimeElapsedColumn()),
        console=Console(file=stream, no_color=not colour),
        transient=True,
        expand=True,
        # Commands write to stdout themselves; rich must not stand in between.
        redirect_stdout=False,
        redirect_stderr=False,
    )
