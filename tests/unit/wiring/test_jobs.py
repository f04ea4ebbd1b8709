"""What the config says reaches the rooms below in their own words."""

from __future__ import annotations

from drvm.config.load import parse_config
from drvm.config.policies import PolicyConfig
from drvm.drill.checks.registry import KINDS
from drvm.snapshot.mountpoints import MountPoints
from drvm.wiring.jobs import BackupOptions

CONFIG = b"""
policies:
  - name: nightly
    vms: ["web*"]
    consistency: filesystem
    freeze_timeout: 7s
    freeze: {include: [/, /srv], exclude: [/srv]}
    read_bandwidth: 300 MiB/s
    commit_bandwidth: 200 MiB/s
    changed_blocks: full-read
    engine: pull
    exclude_disks: {"web*": [vdc], web1: [vdd], db1: [vda]}
    drill:
      checks:
        - agent: {}
        - command: {run: [test, -s, /data], expect_exit: 1, expect_output: "no.*", timeout: 2m}
"""


def policy() -> PolicyConfig:
    return parse_config(CONFIG, "config.yaml", {}, lambda: KINDS).policies[0]


def test_a_policy_says_how_its_vms_are_captured() -> None:
    assert BackupOptions.of(policy(), "web1") == BackupOptions(
        exclude_disks=frozenset({"vdc", "vdd"}),
        require_filesystem=True,
        freeze_timeout_s=7,
        commit_bandwidth_mib_s=200,
        read_bandwidth_mib_s=300,
        changed_blocks="full-read",
        engine="pull",
        freeze=MountPoints(("/", "/srv"), ("/srv",)),
    )


def test_a_vm_without_a_policy_is_captured_by_the_defaults() -> None:
    assert BackupOptions.of(None, "web1") == BackupOptions()
