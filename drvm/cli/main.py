"""The entrance: options, the verbs, signals, and the one place where errors become exits."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from drvm import __version__
from drvm.cli import failure
from drvm.cli.invocation import DONE, Invocation
from drvm.cli.output import Flags, Output
from drvm.cli.registry import VERBS
from drvm.core.clock import SystemClock
from drvm.core.errors import Interrupted
from drvm.core.process import SystemProcesses, hide_memory
from drvm.core.redact import keep_secret
from drvm.daemon.logs import FORMATS, LogFormat, chosen_format, start_logging

_COMPLETE = "_DRVM_COMPLETE"
"""The variable by which click's completion scripts call us."""

_PASSWORD = "DRVM_PASSWORD"  # noqa: S105 - the name of the variable

_SECRET = (_PASSWORD, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Variables whose values no log may show, whatever a library quotes."""

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class Verbs(click.Group):
    """The registry as a click group: a verb's module is imported when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for verb in VERBS:
            if verb.name == cmd_name:
                module = importlib.import_module(f"drvm.cli.commands.{verb.module}")
                command: click.Command = module.command
                command.short_help = verb.summary
                _add_common_options(command)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(
                args[0], possibilities=self.list_commands(ctx), ctx=ctx
            )
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing any verb: somebody waits for it."""
        verbs = [verb for verb in VERBS if verb.name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(verb.name, help=verb.summary) for verb in verbs] + options

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name, verb.summary) for verb in VERBS])


def _set(change: Callable[[Flags, Any], None]) -> Callable[..., None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            invocation: Invocation = ctx.obj
            change(invocation.flags, value)
            logging.getLogger("drvm").setLevel(_log_level(invocation.flags))

    return callback


def _set_json(flags: Flags, _value: bool) -> None:
    flags.json = True


def _set_quiet(flags: Flags, _value: bool) -> None:
    flags.quiet = True


def _add_verbosity(flags: Flags, count: int) -> None:
    flags.verbosity += count


def _set_log_format(
    ctx: click.Context, _parameter: click.Parameter, value: LogFormat | None
) -> None:
    if value is not None and not ctx.resilient_parsing:
        invocation: Invocation = ctx.obj
        invocation.flags.log_format = value
        start_logging(invocation.stderr, value, invocation.environ)


def _set_config(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """A verb reads its settings from the value of its own context."""
    if value is not None and not ctx.resilient_parsing:
        ctx.obj = dataclasses.replace(ctx.obj, named_config=value)


def _common_options(*, hidden: bool) -> list[click.Option]:
    """They may stand before and behind the verb."""

    def option(names: list[str], change: Callable[[Flags, Any], None], text: str) -> click.Option:
        counted = change is _add_verbosity
        return click.Option(
            names,
            is_flag=not counted,
            count=counted,
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_set(change),
            help=text,
        )

    return [
        option(["--json"], _set_json, "Print one JSON document instead of text."),
        option(["-q", "--quiet"], _set_quiet, "No progress, only errors on stderr."),
        option(["-v", "--verbose"], _add_verbosity, "Say each step on stderr; twice: more."),
        click.Option(
            ["--config"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_set_config,
            help="The config file.  [default: DRVM_CONFIG, else /etc/drvm/config.yaml]",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(FORMATS),
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_set_log_format,
            help="How to log on stderr.  [default: DRVM_LOG_FORMAT, else people; of the daemon "
            "without a terminal json]",
        ),
    ]


def _add_common_options(command: click.Command) -> None:
    command.epilog = "Every verb also takes --json, -q, -v and --config FILE: see drvm --help."
    taken = {name for parameter in command.params for name in parameter.opts}
    # click completes no hidden options
    for option in _common_options(hidden=_COMPLETE not in os.environ):
        if not taken.intersection(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_common_options(inner)


@click.command(
    cls=Verbs,
    name="drvm",
    subcommand_metavar="VERB [ARGS]...",
    params=_common_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done with warnings, 4 damage found or drill "
    "failed, 10 no repository, 11 locked, 12 wrong key, 130 interrupted.",
)
@click.version_option(__version__, "--version", prog_name="drvm", message="%(prog)s %(version)s")
def program() -> None:
    """Backup, snapshots and disaster recovery for KVM virtual machines."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environ = dict(os.environ)
    if argv is None:
        hide_memory()
        os.environ.pop(_PASSWORD, None)  # libraries start children too
    for name in _SECRET:
        keep_secret(environ.get(name, ""))
    flags = Flags()
    colour = not os.environ.get("NO_COLOR")
    output = Output(sys.stdout, flags, colour=colour)
    log_format = chosen_format(environ)
    start_logging(sys.stderr, log_format or "people", environ)
    logging.getLogger("drvm").setLevel(logging.WARNING)
    flags.log_format = log_format
    invocation = Invocation(
        output=output,
        stderr=sys.stderr,
        flags=flags,
        clock=SystemClock(),
        processes=SystemProcesses(),
        environ=environ,
        colour=colour,
    )
    try:
        with _signals_raise():
            return _run(arguments, invocation)
    except BrokenPipeError:
        return _leave_broken_pipe()
    except OSError:
        # stdout itself can't be written (a full disk behind a redirection): told on stderr before.
        return _leave_broken_pipe()


def _run(arguments: list[str], invocation: Invocation) -> int:
    try:
        code = program.main(arguments, prog_name="drvm", obj=invocation, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return failure.USAGE
    except BrokenPipeError:
        raise
    except BaseException as error:  # noqa: BLE001 - the one place where errors become exits
        # A usage error may come before click has seen the options.
        early = arguments[: arguments.index("--")] if "--" in arguments else arguments
        invocation.flags.json = invocation.flags.json or "--json" in early
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else DONE
        told = failure.explain(error, invocation.flags)
        failure.tell(told, invocation.output, invocation.stderr)
        sys.stdout.flush()
        return told.exit_code
    return code if isinstance(code, int) else DONE


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """The first signal raises in the main thread, so that every ``with`` and ``finally`` runs.

    Later ones only say so: a half-done clean-up leaves work to the next start. The third Ctrl-C
    raises again, for whoever really means it. A SIGHUP that is ignored (nohup) stays ignored.
    """
    seen = 0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 1 or (number == signal.SIGINT and seen > 2):
            name = signal.Signals(number).name
            raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(f"ended by {name}")
        with contextlib.suppress(OSError):
            os.write(2, b"drvm: cleaning up, please wait (Ctrl-C again: stop at once)\n")

    kept: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            kept[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _log_level(flags: Flags) -> int:
    if flags.quiet:
        return logging.ERROR
    return _LEVELS[min(flags.verbosity, len(_LEVELS) - 1)]


def _leave_broken_pipe() -> int:
    """stdout is no use any more (``drvm points | head -1``): Python's last flush must not
    complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return failure.FAILED
