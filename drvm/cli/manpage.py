"""The man page, made of what the verbs say of themselves: ``python -m drvm.cli.manpage``.

``docs/drvm.1`` is its output; a test holds that it is current.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from drvm import __version__
from drvm.cli.main import program
from drvm.cli.registry import VERBS

_EXITS = (
    ("0", "done"),
    ("1", "failed"),
    ("2", "the request or the config is wrong"),
    ("3", "done, with something to look at"),
    ("4", "damage found, or a drill failed"),
    ("10", "no repository"),
    ("11", "locked: somebody else works on it"),
    ("12", "wrong key"),
    ("130", "interrupted"),
)
_ENVIRONMENT = (
    ("DRVM_CONFIG", "the config file, instead of /etc/drvm/config.yaml"),
    ("DRVM_REPOSITORY", "the URL of the repository: s3://bucket/prefix or file:///path"),
    ("DRVM_PASSWORD_FILE, DRVM_PASSWORD_COMMAND, DRVM_PASSWORD", "where the passphrase is from"),
    ("DRVM_CACHE_DIR", "the directory of what may be deleted at any time"),
    ("DRVM_LOG_FORMAT", "people or json"),
    ("LIBVIRT_DEFAULT_URI", "the host, instead of those of the config"),
    ("NO_COLOR", "no colours"),
    ("AWS_*", "credentials and endpoint of S3, as the AWS tools know them"),
)
_FILES = (
    ("/etc/drvm/config.yaml", "the config; drvm config generate explains every key"),
    ("/var/lib/drvm", "the journal, locks, reports, and the record of runs"),
    ("/var/cache/drvm", "fingerprints and indexes"),
)


def man_page() -> str:
    context = click.Context(program, info_name="drvm", **program.context_settings)
    lines = [
        '.\\" Made by python -m drvm.cli.manpage: change the help of the verbs instead.',
        f'.TH DRVM 1 "" "drvm {_text(__version__)}" "User Commands"',
        ".nh",
        ".SH NAME",
        "drvm \\- backup, snapshots and disaster recovery for KVM virtual machines",
        ".SH SYNOPSIS",
        ".B drvm",
        "[\\fB\\-\\-config\\fR \\fIFILE\\fR] [\\fB\\-\\-json\\fR] [\\fB\\-q\\fR|\\fB\\-v\\fR]"
        " \\fIVERB\\fR [\\fIARGS\\fR]",
        ".SH DESCRIPTION",
        *_prose(program.help or ""),
        ".SH OPTIONS",
        "They may stand before and behind the verb.",
        *_options(program, context),
        ".SH VERBS",
    ]
    for verb in VERBS:
        command = program.get_command(context, verb.name)
        assert command is not None
        lines += _verb(command, context, f"drvm {verb.name}")
    for title, entries in (
        ("EXIT STATUS", _EXITS),
        ("ENVIRONMENT", _ENVIRONMENT),
        ("FILES", _FILES),
    ):
        lines.append(f".SH {title}")
        for name, words in entries:
            lines += [".TP", f".B {_text(name)}", _text(words)]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR virsh (1),", ".BR qemu\\-img (1)"]) + "\n"


def _verb(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name.split()[-1], parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield ".SS " + _text(name)
    yield ".PP"
    yield f".B {_text(name)}"
    yield _text(usage)
    yield from _prose(command.help or "")
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _verb(found, context, f"{name} {inner}")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        repeated = context.parent is not None and "--help" in parameter.opts
        if isinstance(parameter, click.Option) and record is not None and not repeated:
            yield ".TP"
            yield f".B {_text(record[0])}"
            yield _text(" ".join(record[1].split()))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs, and those that keep their lines, as click's help marks them."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            yield ".PP"
            yield ".nf"
            yield from (_text(line.rstrip()) for line in paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield ".PP"
            yield _text(" ".join(lines))


def _text(text: str) -> str:
    """Nothing of it means anything to roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti")
    escaped = escaped.replace("^", "\\(ha").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write(man_page())
