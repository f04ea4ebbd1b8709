import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from drvm.config import document
from drvm.config.fields import duration_text
from drvm.config.load import find_config, load_config, parse_config
from drvm.config.model import Config
from drvm.core.errors import ConfigError
from drvm.core.units import parse_seconds
from drvm.drill.checks.registry import KINDS
from drvm.schedule.cron import expression_problem, time_zone_problem

EXAMPLE = Path(__file__).parents[3] / "config.example.yaml"
RULES = {"schedule": expression_problem, "time_zone": time_zone_problem}


def parse(text: str) -> Config:
    return parse_config(text.encode(), "c.yaml", RULES, lambda: KINDS)


def problems(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "c.yaml", RULES, lambda: KINDS)
    return list(caught.value.problems)


def test_the_example_loads() -> None:
    config = load_config(EXAMPLE, RULES, lambda: KINDS)
    policy = config.policies[0]
    assert config.repository is not None and config.repository.url == "s3://drvm/main"
    assert (policy.rpo_s, policy.freeze_timeout_s, policy.commit_bandwidth_mib_s) == (86400, 5, 200)
    assert policy.drill is not None and policy.drill.rto_s == 900
    assert [check.kind for check in policy.drill.checks] == ["agent", "command"]


def test_the_example_shows_the_defaults_that_it_claims() -> None:
    shown = load_config(EXAMPLE, RULES, lambda: KINDS)
    default = Config()
    for key in ("hosts", "state_dir", "cache_dir", "overlay_dir", "id_cache_bytes", "daemon"):
        assert getattr(shown, key) == getattr(default, key)


def test_the_example_names_every_key() -> None:
    def keys(schema: dict[str, object]) -> set[str]:
        sections = [schema, *schema.get("$defs", {}).values()]  # type: ignore[attr-defined]
        return {key for section in sections for key in section.get("properties", {})}

    wanted = keys(Config.model_json_schema())
    named = set(re.findall(r"(\w+):(?: |$)", EXAMPLE.read_text(), re.M))
    assert wanted <= named


def test_what_is_dumped_loads_as_the_same() -> None:
    config = load_config(EXAMPLE, RULES, lambda: KINDS)
    fields = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert parse(yaml.safe_dump(fields)) == config


def test_an_empty_file_is_a_config_of_defaults() -> None:
    assert parse("# nothing yet\n") == Config()


def test_all_mistakes_come_at_once_with_lines_and_suggestions() -> None:
    found = problems(
        """\
repository:
  ulr: s3://x
  endpoint: ftp://x
polices: []
policies:
  - name: nightly
    vms: [web1]
    schedule: 0 3 * *
    rpo: 5
    drill:
      checks:
        - agnt: {}
        - command: {}
"""
    )
    assert [line.split(": ")[:2] for line in found] == [
        ["line 1", "repository.url"],
        ["line 2", "repository.ulr"],
        ["line 3", "repository.endpoint"],
        ["line 4", "polices"],
        ["line 8", "policies[0].schedule"],
        ["line 9", "policies[0].rpo"],
        ["line 12", "policies[0].drill.checks[0].agnt"],
        ["line 13", "policies[0].drill.checks[1].command.run"],
    ]
    assert found[1].endswith("did you mean url?")
    assert found[3].endswith("did you mean policies?")
    assert found[6].endswith("did you mean agent?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "policies: [{name: no blanks, vms: [a]}]",
            "letters, digits, '.', '_' and '-', 64 at most",
        ),
        (
            "notify: [{name: a, smtp: {server: x, sender: 'drvm <a@b>', to: [a@b]}}]",
            "an address alone, such as drvm@example.org",
        ),
        (
            "daemon: {dashboard: {token_file: /x, host_names: [A.org]}}",
            "a host name in small letters such as backup.example.org",
        ),
        (
            "policies: [{name: a, vms: [a], drill: {checks: [{file: {path: /x, sha256: abc}}]}}]",
            "64 hexadecimal digits, as of sha256sum",
        ),
    ],
)
def test_what_has_another_form_is_told_which_one_it_must_have(text: str, words: str) -> None:
    (problem,) = problems(text)
    assert problem.endswith(f": must be {words}")


def test_a_key_given_twice_is_a_mistake() -> None:
    assert problems("state_dir: /a\nstate_dir: /b\n") == [
        "line 2: state_dir: given twice, first in line 1"
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [b", 1, "expected ',' or ']'"),
        ("state_dir: /a\n\tx: y", 2, "spaces"),
        ("schedule: * * * * *", 1, "quote"),
        ("a: &x 1\nb: *x", 1, "not supported"),
        ("<<: {state_dir: /a}", 1, "no text"),
        ("state_dir: !!python/name:os.system", 1, "tags"),
        ("---\nstate_dir: /a\n---\nx: y", 3, "document"),
        ("1: 2", 1, "no text"),
        ("[]", 1, "mapping"),
        ("hosts: " + "[" * 30 + "]" * 30, 1, "deeply"),
        ("hosts: [" + "a, " * 30_000 + "a]", 1, "too many"),
        (b"state_dir: /a\nx: \xff", 2, "UTF-8"),
        (b"state_dir: \x01", 1, "does not allow"),
        (b"# " + b"x" * document.MAX_TEXT_BYTES, 1, "bytes"),
        ("daemon: {max_parallel: " + "9" * 5000 + "}", 1, "quote"),
    ],
)
def test_what_yaml_refuses_is_told_with_its_line(text: str | bytes, line: int, words: str) -> None:
    first = problems(text)[0]
    assert first.startswith(f"line {line}:") and words in first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("repository: {url: 's3://key:secret@bucket/x'}", "credentials"),
        ("repository: {url: 's3:///x'}", "bucket"),
        ("repository: {url: 'file://host/x'}", "absolute"),
        ("repository: {url: 'ftp://x'}", "s3://"),
        ("repository: {url: 'file:///x', region: eu}", "s3:// repositories only"),
        ("repository: {url: 's3://b', password_file: /a, password_command: [b]}", "exclude"),
        ("repository: {url: 's3://b', password_command: pass show}", "list"),
        ("repository: {url: 's3://b', password_file: hunter2}", "absolute path"),
        ("state_dir: /a/../b", ".."),
        ("compression: best", "'fast', 'default' or 'high'"),
        ("hosts: []", "empty"),
        ("hosts: [{uri: a}, {uri: a}]", "twice"),
        ("daemon: {max_parallel: '2'}", "whole number"),
        ("policies: [{name: a, vms: [x]}, {name: a, vms: [y]}]", "twice: a"),
        ("policies: [{name: a/b, vms: [x]}]", "letters"),
        ("policies: [{name: a, vms: [123]}]", "quote it"),
        ("policies: [{name: a, vms: [x], freeze_timeout: 11s}]", "10"),
        ("policies: [{name: a, vms: [x], freeze_timeout: 1.5s}]", "whole"),
        ("policies: [{name: a, vms: [x], commit_bandwidth: 5 MiB}]", "rate"),
        ("policies: [{name: a, vms: [x], commit_bandwidth: 5 KiB/s}]", "MiB/s"),
        ("policies: [{name: a, vms: [x], time_zone: Mars/Base}]", "no time zone"),
        ("policies: [{name: a, vms: [x], drill: {checks: [{agent: {}, command: {run: [x]}}]}}]",
         "exactly one"),
        ("policies: [{name: a, vms: [x], "
         "drill: {checks: [{command: {run: [x], expect_output: '('}}]}}]",
         "regular expression"),
        ("policies: [{name: a, vms: [x], drill: {checks: [{console: {expect: 'login:|'}}]}}]",
         "nothing was written"),
        ("policies: [{name: a, vms: [x], drill: {checks: [{tcp: {port: 22, "
         "address: 'fe80::1%eth0'}}]}}]",
         "no address"),
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_a_mistake(text: str, words: str) -> None:
    found = problems(text)
    assert len(found) == 1 and words in found[0]
    assert "hunter2" not in found[0] and "secret" not in found[0]


def test_policies_match_by_name_and_pattern_and_exclude_disks_per_vm() -> None:
    policy = load_config(EXAMPLE, RULES, lambda: KINDS).policies[0]
    assert [policy.covers(vm, (), "") for vm in ("web7", "db1", "db10", "WEB1")] == [
        True,
        True,
        False,
        False,
    ]
    assert policy.excluded_disks("db1") == {"vdc"} and policy.excluded_disks("web1") == frozenset()


def test_control_characters_of_the_file_never_reach_a_message() -> None:
    assert all(line.isprintable() for line in problems('"a\\e[2J": 1'))


@given(st.text() | st.binary())
@example("? {}")
@example("=: 1")
@example("a: 2026-99-99")
@example("repository: {url: 's3://[x'}")
@example("repository: {url: 's3://b', endpoint: 'http://h:99999'}")
@example('state_dir: "/\\ud800"')
def test_any_text_loads_or_raises_a_config_error(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        parse_config(data, "c.yaml", RULES, lambda: KINDS)
    except ConfigError as error:
        assert error.problems


_KEYS = st.sampled_from(
    ["repository", "hosts", "policies", "drill", "checks", "name", "vms", "rpo"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
)


@given(st.dictionaries(_KEYS, _VALUES))
def test_any_structure_loads_or_raises_a_config_error(value: object) -> None:
    try:
        parse_config(
            yaml.safe_dump(value, allow_unicode=True).encode(), "c.yaml", RULES, lambda: KINDS
        )
    except ConfigError as error:
        assert error.problems


@given(st.integers(1, 10**8) | st.floats(0.001, 1000).map(lambda s: round(s, 3)))
def test_durations_read_back_as_the_same_number(seconds: float) -> None:
    assert parse_seconds(duration_text(seconds)) == seconds


def test_a_named_config_goes_before_the_environment(tmp_path: Path) -> None:
    assert find_config(tmp_path / "a", {"DRVM_CONFIG": "/b"}) == tmp_path / "a"
    assert find_config(None, {"DRVM_CONFIG": "/b"}) == Path("/b")


def test_a_missing_config_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml", RULES, lambda: KINDS)


def test_a_fifo_is_no_config_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="regular file"):
        load_config(tmp_path / "pipe", RULES, lambda: KINDS)
