"""drvm with one more verb, ``try``, that does what its argument says: for tests of the frame."""

import logging
import sys
import time
import types

import click

import drvm.cli.main
from drvm.cli.invocation import Invocation
from drvm.cli.registry import VERBS, Verb
from drvm.core import errors

ERRORS = {
    "failed": errors.HostError("the host said no", hint="ask again"),
    "usage": errors.UnknownVm("there is no VM 'x\x1b[2J'"),
    "preflight": errors.PreflightFailed("it can't work", problems=["no space", "no network"]),
    "damage": errors.DamageFound("a pack is damaged"),
    "drill": errors.DrillFailed("a drill failed"),
    "repository": errors.NoRepository("no repository"),
    "locked": errors.Locked("somebody else is at it"),
    "key": errors.WrongKey("wrong passphrase"),
    "bug": KeyError("surprise"),
    "denied": PermissionError(13, "Permission denied", "/var/lib/drvm"),
    "memory": MemoryError(),
    "interrupt": KeyboardInterrupt(),
}


@click.command("try")
@click.argument("what")
@click.pass_obj
def command(invocation: Invocation, what: str) -> int | None:
    """Do what WHAT says."""
    if what in ERRORS:
        raise ERRORS[what]
    if what == "warnings":
        return 3
    if what == "answer-then-fail":
        invocation.output.document({"drills": []})
        raise errors.DrillFailed("a drill failed")
    if what == "much":
        for _ in range(100_000):
            invocation.output.line("line")
    if what == "log":
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("drvm.try").log(level, "told\x1b[2J")
    if what == "work":
        with invocation.progress() as progress:
            progress.stage("reading vda", 100)
            progress.advance(50)
    if what == "wait":
        try:
            sys.stderr.write("ready\n")
            time.sleep(60)
        finally:
            sys.stderr.write("cleaned up\n")
    if what == "stubborn":
        try:
            sys.stderr.write("ready\n")
            time.sleep(60)
        finally:
            sys.stderr.write("cleaning\n")
            time.sleep(1)
            sys.stderr.write("cleaned up\n")
    return None


module = types.ModuleType("drvm.cli.commands.attempt")
module.command = command  # type: ignore[attr-defined]
sys.modules[module.__name__] = module
drvm.cli.main.VERBS = (*VERBS, Verb("try", "attempt", "Only in tests."))
sys.exit(drvm.cli.main.main())
