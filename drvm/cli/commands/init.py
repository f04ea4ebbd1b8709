"""``drvm init``."""

from __future__ import annotations

from pathlib import Path

import click

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import opened
from drvm.config.load import DEFAULT_PATH
from drvm.config.settings import Overrides, Settings
from drvm.core.errors import StoreRefused, UsageError
from drvm.core.files import write_durably
from drvm.store.probe import ProbeReport
from drvm.wiring.probing import probe_store


@click.command("init")
@click.option("--repository", "url", metavar="URL", help="s3://bucket/prefix or file:///path.")
@click.option(
    "--password-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The passphrase; without it drvm asks.",
)
@click.pass_obj
def command(invocation: Invocation, url: str | None, password_file: Path | None) -> int:
    """Create the repository and its first key slot, having tried what the store really does.

    Where there is no config yet, a small one is written, so that later commands find the
    repository. The passphrase can't be recovered: keep a copy away from this machine.

    \b
    Examples:
      drvm init --repository s3://backups/drvm --password-file /etc/drvm/passphrase
      AWS_ENDPOINT_URL=http://127.0.0.1:8333 drvm init --repository s3://drvm
      drvm init --repository file:///srv/drvm
    """
    path = invocation.config_path() or DEFAULT_PATH
    if not path.exists():
        invocation = invocation.without_config()
    if url is None and invocation.settings().repository is None:
        raise UsageError(
            "init where?", hint="drvm init --repository s3://bucket/prefix, or file:///path"
        )
    overrides = Overrides(
        repository_url=url, password_file=password_file.absolute() if password_file else None
    )
    with opened(invocation, overrides, confirm=True) as wiring:
        report = probe_store(wiring, wiring.store(create=True))
        _refuse_unusable(report)
        repository = wiring.create_repository()
        settings = wiring.settings
    written = None
    if not path.exists():
        written = path
        _write_config(path, settings, overrides)
    problems = [finding for finding in report.findings if not finding.ok]
    for finding in problems:
        invocation.warn(f"{finding.name}: {finding.detail}")
    if invocation.output.json:
        invocation.output.document(
            {
                "repository": report.location,
                "repository_id": repository.id,
                "config_written": written,
                "findings": report.findings,
            }
        )
    else:
        invocation.output.line(f"created repository {repository.id[:8]} at {report.location}")
        if written is not None:
            invocation.output.line(f"wrote {written}; drvm config generate shows all it can say")
    return DONE_WITH_WARNINGS if problems else DONE


def _refuse_unusable(report: ProbeReport) -> None:
    """A store that can't be written is no place; the other findings are told."""
    write = report.findings[0]
    if not write.ok:
        raise StoreRefused(
            f"{report.location} can't be used: {write.detail}",
            hint=write.hint or "check the bucket, the endpoint and the credentials",
        )


def _write_config(path: Path, settings: Settings, overrides: Overrides) -> None:
    import json

    named = settings.needed_repository()
    fields = {
        "url": named.url,
        "endpoint": named.endpoint,
        "region": named.region,
        "password_file": str(overrides.password_file) if overrides.password_file else None,
    }
    lines = [f"  {key}: {json.dumps(value)}\n" for key, value in fields.items() if value]
    text = "# Written by drvm init; drvm config generate shows every key.\nrepository:\n"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(path, (text + "".join(lines)).encode(), mode=0o600)
