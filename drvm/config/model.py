"""What a config file may say. ``config.example.yaml`` explains every key to people.

Models stop at the command line and the wiring: rooms below take plain values. A key's unit is in
the attribute's name, and in the value that people write (``rpo: 24h`` is ``rpo_s``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drvm.config.fields import AbsolutePath, HostUri, SizeBytes
from drvm.config.policies import PolicyConfig
from drvm.config.repositories import CopyConfig, RepositoryConfig
from drvm.config.section import Section
from drvm.config.upkeep import (
    DaemonConfig,
    GcConfig,
    NotifyConfig,
    PruneConfig,
    RepositoryCheckConfig,
)

Compression = Literal["fast", "default", "high"]
DedupTrust = Literal["own", "verified", "repository"]


class HostConfig(Section):
    uri: HostUri
    max_parallel: Annotated[int, Field(ge=1, le=64)] | None = None


class Config(Section):
    repository: RepositoryConfig | None = None
    hosts: Annotated[tuple[HostConfig, ...], Field(min_length=1)] = (
        HostConfig(uri="qemu:///system"),
    )
    state_dir: AbsolutePath = Field(default="/var/lib/drvm", validate_default=True)
    cache_dir: AbsolutePath = Field(default="/var/cache/drvm", validate_default=True)
    overlay_dir: AbsolutePath | None = None
    overlay_reserve_bytes: SizeBytes = Field(
        default="1 GiB", alias="overlay_reserve", validate_default=True
    )
    index_memory_bytes: SizeBytes = Field(
        default="64 MiB", alias="index_memory", validate_default=True
    )
    id_cache_bytes: SizeBytes = Field(default="8 GiB", alias="id_cache", validate_default=True)
    compression: Compression = "default"
    dedup_trust: DedupTrust = "verified"
    policies: tuple[PolicyConfig, ...] = ()
    copies: tuple[CopyConfig, ...] = ()
    prune: PruneConfig = PruneConfig()
    gc: GcConfig = GcConfig()
    check: RepositoryCheckConfig = RepositoryCheckConfig()
    daemon: DaemonConfig = DaemonConfig()
    notify: tuple[NotifyConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for section, names in (
            ("policies", [policy.name for policy in self.policies]),
            ("copies", [copy.name for copy in self.copies]),
            ("notify", [way.name for way in self.notify]),
            ("hosts", [host.uri for host in self.hosts]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{section}: given twice: {', '.join(twice)}")
        return self
