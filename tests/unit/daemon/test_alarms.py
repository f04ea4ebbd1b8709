from __future__ import annotations

import datetime as dt
import itertools
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.daemon.alarms import MOST_ALONE, Alarms, Rules, decode, encode, step
from drvm.notify.model import Message
from drvm.report.attention import Concern

NOW = dt.datetime(2026, 11, 23, 4, 0, tzinfo=dt.UTC)
RULES = Rules()


def concern(key: str = "rpo 1", **fields: Any) -> Concern:
    usual = {
        "kind": "rpo",
        "severity": "critical",
        "vm": "web1",
        "text": "it is old",
        "hint": "drvm backup web1",
        "since": NOW - dt.timedelta(days=1),
    }
    return Concern(key=key, **(usual | fields))  # type: ignore[arg-type]


class Looks:
    """One look after the other; each begins with what the last one wrote down."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.kept: str | None = None
        self.now = NOW
        self.rules = rules
        self.told: list[tuple[str, str]] = []

    def look(
        self, *concerns: Concern, after_s: float = 60, unknown: bool = False
    ) -> list[tuple[str, str]]:
        self.now += dt.timedelta(seconds=after_s)
        state, messages = step(
            decode(self.kept), concerns, self.now, "kvm1", self.rules, lambda _: unknown
        )
        self.kept = encode(state)
        new = [pair for message in messages for pair in pairs(message)]
        self.told += new
        return new


def pairs(message: Message) -> list[tuple[str, str]]:
    keys = [message.key, *(part.key for part in message.others)]
    return [(message.event, key) for key in keys]


def test_a_concern_is_told_once_however_long_it_lasts_and_once_when_it_is_over() -> None:
    looks = Looks()
    assert looks.look(concern()) == [("raised", "rpo 1")]
    for _ in range(5):
        assert looks.look(concern()) == []
    assert [looks.look(), looks.look(), looks.look()] == [[], [], [("over", "rpo 1")]]
    assert looks.look(after_s=3600) == []


def test_what_lasts_is_told_again_each_day() -> None:
    looks = Looks()
    for hour in range(49):
        told = looks.look(concern(), after_s=3600)
        assert bool(told) == (hour % 24 == 0)
    assert [event for event, _ in looks.told] == ["raised", "reminder", "reminder"]


def test_what_becomes_critical_is_told_at_once_and_does_not_become_so_twice() -> None:
    looks = Looks()
    looks.look(concern(severity="warning"))
    assert looks.look(concern()) == [("reminder", "rpo 1")]
    assert looks.look(concern()) == []


def test_what_is_only_not_protected_is_not_told() -> None:
    assert Looks().look(concern(kind="unprotected")) == []


def test_a_look_that_could_not_look_withdraws_nothing() -> None:
    looks = Looks()
    looks.look(concern())
    for _ in range(10):
        assert looks.look(unknown=True) == []
    assert looks.look(concern()) == []


def test_what_flaps_for_a_day_is_told_a_few_times_only() -> None:
    looks = Looks()
    for minute in range(24 * 60):
        looks.look(*([concern()] if minute % 10 < 2 else []))
    raised = [event for event, _ in looks.told if event == "raised"]
    assert 2 <= len(raised) <= 4
    assert len(looks.told) <= 8


def test_after_a_quiet_day_a_withdrawal_is_quick_again() -> None:
    looks = Looks()
    for _ in range(4):
        looks.look(concern())
        for _ in range(60):
            looks.look()
    looks.look(after_s=2 * 86400)
    looks.look(concern())
    assert [looks.look(), looks.look(), looks.look()][-1] == [("over", "rpo 1")]


def test_many_alarms_of_one_kind_are_one_message() -> None:
    several = [concern(f"rpo {n}", vm=f"vm{n}", severity="warning") for n in range(200)]
    worst = concern("rpo x", vm="db1")
    _, messages = step(Alarms(), [*several, worst], NOW, "kvm1", RULES)
    (message,) = messages
    assert message.text == "db1: it is old; and 200 more"
    assert message.severity == "critical"
    assert len(message.others) == 200
    assert "vm7: it is old" in message.body()
    _, messages = step(Alarms(), several[:MOST_ALONE], NOW, "kvm1", RULES)
    assert len(messages) == MOST_ALONE


def test_a_look_that_is_done_again_after_a_crash_gives_its_messages_the_same_ids() -> None:
    state, first = step(Alarms(), [concern()], NOW, "kvm1", RULES)
    _, again = step(Alarms(), [concern()], NOW + dt.timedelta(seconds=9), "kvm1", RULES)
    assert [message.id for message in first] == [message.id for message in again]
    later = NOW + dt.timedelta(days=2)
    _, reminded = step(state, [concern()], later, "kvm1", RULES)
    assert reminded[0].event == "reminder" and reminded[0].id != first[0].id


def test_a_clock_that_is_set_back_neither_repeats_nor_forgets() -> None:
    looks = Looks()
    looks.look(concern())
    assert looks.look(concern(), after_s=-7 * 86400) == []
    for _ in range(3):
        looks.look()
    assert looks.told[-1] == ("over", "rpo 1")


def test_texts_of_guests_are_one_safe_line() -> None:
    _, messages = step(
        Alarms(), [concern(text="a\nb\x1b[2J" + "x" * 9999, vm="v\n")], NOW, "k\n", RULES
    )
    (message,) = messages
    assert message.title().isprintable()
    assert len(message.text) < 1200


@given(st.text() | st.just('{"alarms": 1}'))
def test_a_state_that_cant_be_read_is_empty(text: str) -> None:
    assert decode(text) == Alarms()


keys = st.sampled_from(["rpo 1", "rpo 2", "drill 1", "failure x"])
steps = st.lists(
    st.tuples(
        st.frozensets(keys), st.sampled_from([1, 60, 600, 90_000]), st.sampled_from([0, 0, 0, 1])
    ),
    max_size=60,
)


@pytest.mark.parametrize("quiet_s", [0.5, 120.0])
@given(steps)
def test_each_raise_has_exactly_one_withdrawal_whatever_comes(
    quiet_s: float, plan: list[tuple[frozenset[str], float, int]]
) -> None:
    looks = Looks(Rules(quiet_s=quiet_s))
    for seen, after_s, unknown in plan:
        looks.look(*map(concern, sorted(seen)), after_s=after_s, unknown=bool(unknown))
    for _ in range(3):  # at the end all is well
        looks.look(after_s=5 * 3600)
    by_key = defaultdict(list)
    for event, key in looks.told:
        by_key[key].append(event)
    for events in by_key.values():
        alternating = [event for event in events if event != "reminder"]
        assert alternating == ["raised", "over"] * (len(alternating) // 2)
        assert all(
            before in ("raised", "reminder")
            for before, event in itertools.pairwise(events)
            if event == "reminder"
        )
