"""Where the work is, on stderr: a bar on a terminal, a line per stage elsewhere, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from drvm.cli.output import Flags
from drvm.core.progress import NoProgress, Progress
from drvm.core.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress


class LineProgress:
    """For logs: each stage once, when it begins."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self._stream.write(f"{printable(title)}\n")
        self._stream.flush()

    def advance(self, done_bytes: int) -> None:
        pass


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
def show_progress(stream: TextIO, flags: Flags, *, colour: bool) -> Iterator[Progress]:
    """The bar is gone when the context ends, so that the result stands alone."""
    if flags.quiet or flags.json:
        yield NoProgress()
    elif not stream.isatty():
        yield LineProgress(stream)
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
