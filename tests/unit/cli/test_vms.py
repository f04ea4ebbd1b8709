"""``drvm vms``: whose VMs are protected, also where a host does not answer."""

from __future__ import annotations

from pathlib import Path

from tests.commands import Result, run_command
from tests.unit.repository.conftest import cheap_key_derivation

__all__ = ["cheap_key_derivation"]

CONFIG = """
repository: {{url: "file://{0}/store", password_file: {0}/passphrase}}
hosts: [{{uri: "qemu+tcp://127.0.0.1:1/system"}}, {{uri: "test:///default"}}]
state_dir: {0}/state
cache_dir: {0}/cache
policies: [{{name: gold, tags: [gold]}}]
"""


def vms(directory: Path, *options: str) -> Result:
    (directory / "passphrase").write_text("a passphrase for tests only")
    (directory / "passphrase").chmod(0o600)
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(directory))
    env = {"DRVM_CONFIG": str(config), "PATH": "/usr/bin:/bin"}
    assert run_command(["init"], env).code == 0
    return run_command([*options, "vms"], env)


def test_a_host_that_does_not_answer_hides_no_vms_of_others(tmp_path: Path) -> None:
    shown = vms(tmp_path, "--json")
    assert shown.code == 3 and "127.0.0.1:1" in shown.err
    (vm,) = shown.document["vms"]
    assert (vm["vm"], vm["state"], vm["policy"]) == ("test", "running", None)
    assert [host["host"] for host in shown.document["unreachable"]] == [
        "qemu+tcp://127.0.0.1:1/system"
    ]


def test_vms_that_no_policy_protects_are_named(tmp_path: Path) -> None:
    assert "no policy protects test" in vms(tmp_path).out
