from pathlib import Path

import pytest

from drvm.config.elsewhere import copy_named, elsewhere
from drvm.config.load import parse_config
from drvm.config.settings import PasswordFile, RepositorySettings, resolve
from drvm.core.errors import ConfigError, UsageError

SETTINGS = resolve(
    parse_config(
        b"""
repository: {url: "s3://main/drvm", endpoint: "http://127.0.0.1:1", password_file: /etc/drvm/main}
copies:
  - name: offsite
    repository:
      url: s3://second/drvm
      endpoint: https://s3.example.org
      region: eu-2
      profile: offsite
      password_file: /etc/drvm/offsite
  - name: disk
    repository: {url: "file:///mnt/drvm"}
    vms: ["web*"]
""",
        "c.yaml",
        {},
    ),
    {},
)


def test_a_copy_is_found_by_its_name_and_by_its_url() -> None:
    for text in ("offsite", "s3://second/drvm"):
        found = elsewhere(SETTINGS, text, {})
        assert found.repository == RepositorySettings(
            "s3://second/drvm", "https://s3.example.org", "eu-2", profile="offsite"
        )
        assert found.password == PasswordFile(Path("/etc/drvm/offsite"))


def test_everything_else_is_as_for_the_first_repository() -> None:
    found = elsewhere(SETTINGS, "disk", {})
    assert (found.cache_dir, found.state_dir) == (SETTINGS.cache_dir, SETTINGS.state_dir)
    assert SETTINGS.repository is not None and SETTINGS.repository.url == "s3://main/drvm"


def test_the_first_repositorys_variables_and_passphrase_are_not_the_seconds() -> None:
    environ = {
        "DRVM_REPOSITORY": "s3://main/drvm",
        "DRVM_PASSWORD_FILE": "/root/pass",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:2",
    }
    found = elsewhere(SETTINGS, "disk", environ)
    assert found.needed_repository() == RepositorySettings("file:///mnt/drvm", None, None)
    assert found.password is None
    other = elsewhere(SETTINGS, "s3://third", environ)
    assert other.needed_repository().endpoint == "http://127.0.0.1:2"
    assert other.password is None


def test_a_password_file_may_be_named_for_any() -> None:
    for text in ("offsite", "file:///other"):
        assert elsewhere(SETTINGS, text, {}, Path("/p")).password == PasswordFile(Path("/p"))


@pytest.mark.parametrize("text", ["nowhere", "", "ftp://x", "s3://", "file://relative"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        elsewhere(SETTINGS, text, {})


def test_a_section_covers_the_vms_that_it_names() -> None:
    section = copy_named(SETTINGS, "disk")
    assert section is not None and section.covers("web1") and not section.covers("db1")
    everything = copy_named(SETTINGS, "offsite")
    assert everything is not None and everything.covers("db1")


@pytest.mark.parametrize(
    "wrong",
    [
        'copies: [{name: a, repository: {url: "file:///x", profile: p}}]',
        'copies: [{name: a, repository: {url: "file:///x"}}, {name: a, repository: {url: "file:///y"}}]',
        "copies: [{name: a}]",
        'copies: [{name: a, vms: [], repository: {url: "file:///x"}}]',
    ],
)
def test_a_section_that_can_not_be_meant_is_a_mistake(wrong: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(wrong.encode(), "c.yaml", {})
