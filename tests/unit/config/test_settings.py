from pathlib import Path

import pytest

from drvm.config.load import parse_config
from drvm.config.model import Config
from drvm.config.settings import Overrides, PasswordCommand, PasswordFile, resolve
from drvm.core.errors import ConfigError, NoRepository, UsageError

CONFIG = parse_config(
    b"""
repository:
  url: s3://bucket/main
  endpoint: http://127.0.0.1:8333
  region: eu-1
  password_file: /etc/drvm/passphrase
hosts: [{uri: "qemu+ssh://a/system"}, {uri: "qemu+ssh://b/system"}]
cache_dir: /c
policies:
  - {name: first, vms: ["web*"]}
  - {name: second, vms: ["*"]}
""",
    "c.yaml",
    {},
)


def test_without_anything_there_are_defaults_and_no_repository() -> None:
    settings = resolve(None, {})
    assert settings.host_uris == ("qemu:///system",)
    assert settings.state_dir == Path("/var/lib/drvm")
    with pytest.raises(NoRepository) as caught:
        settings.needed_repository()
    assert caught.value.exit_code == 10


def test_on_the_worst_day_two_variables_are_enough() -> None:
    environ = {"DRVM_REPOSITORY": "file:///mnt/drvm", "DRVM_PASSWORD_FILE": "/root/pass"}
    settings = resolve(None, environ)
    assert settings.needed_repository().url == "file:///mnt/drvm"
    assert settings.password == PasswordFile(Path("/root/pass"))


def test_the_config_is_used_where_the_environment_is_silent() -> None:
    settings = resolve(CONFIG, {})
    repository = settings.needed_repository()
    assert (repository.url, repository.endpoint, repository.region) == (
        "s3://bucket/main",
        "http://127.0.0.1:8333",
        "eu-1",
    )
    assert settings.password == PasswordFile(Path("/etc/drvm/passphrase"))
    assert settings.host_uris == ("qemu+ssh://a/system", "qemu+ssh://b/system")


def test_the_environment_goes_before_the_config() -> None:
    environ = {
        "DRVM_REPOSITORY": "s3://other",
        "DRVM_PASSWORD_COMMAND": "pass show 'my drvm'",
        "DRVM_CACHE_DIR": "/tmp/cache",
        "LIBVIRT_DEFAULT_URI": "qemu:///session",
    }
    settings = resolve(CONFIG, environ)
    assert settings.needed_repository().url == "s3://other"
    assert settings.needed_repository().endpoint == "http://127.0.0.1:8333"
    assert settings.password == PasswordCommand(("pass", "show", "my drvm"))
    assert settings.cache_dir == Path("/tmp/cache")
    assert settings.host_uris == ("qemu:///session",)


def test_the_command_line_goes_before_the_environment() -> None:
    environ = {
        "DRVM_REPOSITORY": "s3://other",
        "DRVM_PASSWORD_FILE": "/a",
        "LIBVIRT_DEFAULT_URI": "qemu:///session",
    }
    overrides = Overrides("file:///x", Path("/b"), "qemu+ssh://c/system")
    settings = resolve(CONFIG, environ, overrides)
    assert settings.needed_repository().url == "file:///x"
    assert settings.password == PasswordFile(Path("/b"))
    assert settings.host_uris == ("qemu+ssh://c/system",)


def test_an_empty_variable_is_none() -> None:
    environ = dict.fromkeys(
        ["DRVM_REPOSITORY", "DRVM_PASSWORD_FILE", "DRVM_CACHE_DIR", "LIBVIRT_DEFAULT_URI"], ""
    )
    assert resolve(CONFIG, environ) == resolve(CONFIG, {})


def test_the_endpoint_falls_back_to_what_aws_tools_know() -> None:
    environ = {"DRVM_REPOSITORY": "s3://b", "AWS_ENDPOINT_URL": "http://h:1", "AWS_REGION": "r"}
    repository = resolve(None, environ).needed_repository()
    assert (repository.endpoint, repository.region) == ("http://h:1", "r")


@pytest.mark.parametrize(
    "environ",
    [
        {"DRVM_REPOSITORY": "s3://user:secret@bucket"},
        {"DRVM_REPOSITORY": "bucket"},
        {"DRVM_PASSWORD_FILE": "/a", "DRVM_PASSWORD_COMMAND": "b"},
        {"DRVM_PASSWORD_COMMAND": "echo 'open"},
        {"DRVM_CACHE_DIR": "relative"},
    ],
)
def test_variables_that_can_not_be_meant_are_refused_without_their_value(
    environ: dict[str, str],
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(Config(), environ)
    assert "secret" not in str(caught.value)


def test_an_unknown_policy_is_told_with_those_that_exist() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(CONFIG, {}).policy_named("weekly")
    assert "first, second" in caught.value.hint


def test_bandwidth_and_object_lock_reach_the_settings_of_a_bucket() -> None:
    text = b"""
repository:
  url: s3://bucket/main
  bandwidth: {upload: 20 MiB/s}
  object_lock: {mode: compliance, days: 30}
"""
    named = resolve(parse_config(text, "c.yaml", {}), {}).needed_repository()
    assert (named.upload_mib_s, named.download_mib_s) == (20, 0)
    assert named.object_lock is not None
    assert (named.object_lock.mode, named.object_lock.days) == ("compliance", 30)
    assert resolve(CONFIG, {}).needed_repository().object_lock is None


@pytest.mark.parametrize(
    "key", ["bandwidth: {upload: 20 MiB/s}", "object_lock: {mode: governance, days: 1}"]
)
def test_what_only_buckets_have_is_a_mistake_elsewhere(key: str) -> None:
    with pytest.raises(ConfigError, match="mistake") as caught:
        parse_config(f"repository:\n  url: file:///x\n  {key}\n".encode(), "c.yaml", {})
    assert "belongs to s3://" in caught.value.problems[0]
