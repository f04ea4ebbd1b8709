"""What is to be done with: command line over environment over config over defaults.

Each variable replaces one thing and leaves the rest of the config as it is. The config may be
absent altogether: on the worst day ``DRVM_REPOSITORY`` and ``DRVM_PASSWORD_FILE`` are enough.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drvm.config.fields import host_uri_problem, repository_url_problem
from drvm.config.model import Compression, Config, DedupTrust, HostConfig
from drvm.config.policies import PolicyConfig
from drvm.config.repositories import CopyConfig, ObjectLockConfig, RepositoryBandwidthConfig
from drvm.config.upkeep import (
    DaemonConfig,
    GcConfig,
    NotifyConfig,
    PruneConfig,
    RepositoryCheckConfig,
)
from drvm.core.errors import NoRepository, UsageError


@dataclass(frozen=True, slots=True)
class PasswordFile:
    path: Path


@dataclass(frozen=True, slots=True)
class PasswordCommand:
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PasswordVariable:
    """An environment variable that holds the passphrase itself."""

    name: str


PasswordSource = PasswordFile | PasswordCommand | PasswordVariable | None
"""``None``: ask, where there is somebody to ask."""


@dataclass(frozen=True, slots=True)
class HourlyLimits:
    """In MiB/s, while the window ``when`` holds; ``None``: as usual."""

    when: str
    upload_mib_s: int | None
    download_mib_s: int | None


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """``endpoint`` is ``None`` for AWS itself and for directories. A bandwidth of 0 is no limit;
    ``at_times``: others, while their windows hold in ``time_zone``. ``profile``: of the AWS files;
    ``None``: whatever the environment says."""

    url: str
    endpoint: str | None
    region: str | None
    upload_mib_s: int = 0
    download_mib_s: int = 0
    object_lock: ObjectLockConfig | None = None
    profile: str | None = None
    max_parallel: int | None = None
    at_times: tuple[HourlyLimits, ...] = ()
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line said; ``None``: nothing."""

    repository_url: str | None = None
    password_file: Path | None = None
    host_uri: str | None = None
    as_of: dt.datetime | None = None


NO_OVERRIDES = Overrides()


@dataclass(frozen=True, slots=True)
class Settings:
    """``as_of``: the repository is read as it was at that moment, and not written."""

    repository: RepositorySettings | None
    password: PasswordSource
    host_uris: tuple[str, ...]
    state_dir: Path
    cache_dir: Path
    overlay_dir: Path | None
    overlay_reserve_bytes: int
    index_memory_bytes: int
    id_cache_bytes: int
    compression: Compression
    dedup_trust: DedupTrust
    hosts: tuple[HostConfig, ...]
    policies: tuple[PolicyConfig, ...]
    copies: tuple[CopyConfig, ...]
    prune: PruneConfig
    gc: GcConfig
    check: RepositoryCheckConfig
    daemon: DaemonConfig
    notify: tuple[NotifyConfig, ...]
    as_of: dt.datetime | None = None

    def needed_repository(self) -> RepositorySettings:
        """Raises ``NoRepository`` where none is named anywhere."""
        if self.repository is None:
            raise NoRepository(
                "no repository is named",
                hint="set repository.url in the config, or DRVM_REPOSITORY; drvm init creates one",
            )
        return self.repository

    def policy_named(self, name: str) -> PolicyConfig:
        """Raises ``UsageError``."""
        for policy in self.policies:
            if policy.name == name:
                return policy
        names = ", ".join(policy.name for policy in self.policies)
        raise UsageError(
            f"there is no policy {name!r}",
            hint=f"there are: {names}" if names else "there are none",
        )


def resolve(
    config: Config | None, environ: Mapping[str, str], overrides: Overrides = NO_OVERRIDES
) -> Settings:
    """Raises ``UsageError`` for variables that can't be meant. An empty variable is none."""
    config = config or Config()
    host_uri = overrides.host_uri or environ.get("LIBVIRT_DEFAULT_URI")
    problem = host_uri_problem(host_uri) if host_uri else None
    if problem is not None:
        raise UsageError(f"the libvirt URI {problem}", hint="see --to and LIBVIRT_DEFAULT_URI")
    cache_dir = environ.get("DRVM_CACHE_DIR")
    return Settings(
        repository=_repository(config, environ, overrides),
        password=_password(config, environ, overrides),
        host_uris=(host_uri,) if host_uri else tuple(host.uri for host in config.hosts),
        state_dir=config.state_dir,
        cache_dir=_absolute(cache_dir, "DRVM_CACHE_DIR") if cache_dir else config.cache_dir,
        overlay_dir=config.overlay_dir,
        overlay_reserve_bytes=config.overlay_reserve_bytes,
        index_memory_bytes=config.index_memory_bytes,
        id_cache_bytes=config.id_cache_bytes,
        compression=config.compression,
        dedup_trust=config.dedup_trust,
        hosts=config.hosts,
        policies=config.policies,
        copies=config.copies,
        prune=config.prune,
        gc=config.gc,
        check=config.check,
        daemon=config.daemon,
        notify=config.notify,
        as_of=overrides.as_of,
    )


def _repository(
    config: Config, environ: Mapping[str, str], overrides: Overrides
) -> RepositorySettings | None:
    """The endpoint falls back to the variables that the AWS tools know."""
    section = config.repository
    url = overrides.repository_url or environ.get("DRVM_REPOSITORY") or (section and section.url)
    if not url:
        return None
    problem = repository_url_problem(url)
    if problem is not None:
        raise UsageError(
            f"the repository URL {problem}",
            hint="s3://bucket/prefix or file:///path; set by DRVM_REPOSITORY or the config",
        )
    max_parallel = section.max_parallel if section is not None else None
    if not url.startswith("s3:"):
        return RepositorySettings(url, None, None, max_parallel=max_parallel)
    bandwidth = (section and section.bandwidth) or RepositoryBandwidthConfig()
    return RepositorySettings(
        url=url,
        endpoint=(section and section.endpoint)
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or None,
        region=(section and section.region)
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or None,
        upload_mib_s=bandwidth.upload_mib_s or 0,
        download_mib_s=bandwidth.download_mib_s or 0,
        object_lock=section.object_lock if section is not None else None,
        profile=(section and section.profile) or None,
        max_parallel=max_parallel,
        at_times=tuple(
            HourlyLimits(hourly.when, hourly.upload_mib_s, hourly.download_mib_s)
            for hourly in bandwidth.at_times
        ),
        time_zone=bandwidth.time_zone,
    )


def _password(config: Config, environ: Mapping[str, str], overrides: Overrides) -> PasswordSource:
    if overrides.password_file is not None:
        return PasswordFile(overrides.password_file)
    names = ("DRVM_PASSWORD", "DRVM_PASSWORD_FILE", "DRVM_PASSWORD_COMMAND")
    given = [name for name in names if environ.get(name)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="unset one of them")
    if given == ["DRVM_PASSWORD"]:
        return PasswordVariable("DRVM_PASSWORD")
    file, command = environ.get("DRVM_PASSWORD_FILE"), environ.get("DRVM_PASSWORD_COMMAND")
    if file:
        return PasswordFile(Path(file))
    if command:
        try:
            argv = tuple(shlex.split(command))
        except ValueError:
            argv = ()
        if not argv:
            raise UsageError("DRVM_PASSWORD_COMMAND is no command", hint="check its quotes")
        return PasswordCommand(argv)
    if config.repository is None:
        return None
    if config.repository.password_file is not None:
        return PasswordFile(config.repository.password_file)
    if config.repository.password_command is not None:
        return PasswordCommand(config.repository.password_command)
    return None


def _absolute(text: str, name: str) -> Path:
    if not text.startswith("/"):
        raise UsageError(f"{name} is no absolute path", hint="begin it with /")
    return Path(text)
