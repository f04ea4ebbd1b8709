"""From what is wrong to what is told: raised once, repeated each day, withdrawn once. Pure.

An alarm is raised by the first look that sees its concern. It is withdrawn when no look has seen it
for a while: two minutes at first, and twice as long each time that the same one came back within a
day, up to four hours. So what flaps is one alarm that lasts, and tells a few times a day at most.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from drvm.core.text import printable
from drvm.notify.model import MAX_TEXT_CHARS, Event, Message, Part, Severity
from drvm.report.attention import Concern

KINDS = ("failure", "rpo", "drill", "damage")
"""Of concerns that are told; what is only not protected stands in the report and in ``status``."""

MAX_ALARMS = 2000
MOST_ALONE = 5
"""Alarms of one kind that a look finds together are told one by one; more of them in one message:
a store that is away makes an alarm of each VM."""


@dataclass(frozen=True, slots=True)
class Rules:
    quiet_s: float = 120.0
    longest_quiet_s: float = 4 * 3600.0
    repeat_s: float = 86400.0
    remember_s: float = 86400.0


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """``told``: when last. ``absent``: since when no look saw its concern. ``over``: when it was
    withdrawn, after which only ``raises``, how often it came lately, is of use."""

    key: str
    kind: str
    severity: Severity
    vm: str
    vm_uuid: str
    text: str
    hint: str
    since: dt.datetime
    told: dt.datetime
    raises: int = 1
    absent: dt.datetime | None = None
    over: dt.datetime | None = None


class Alarms(msgspec.Struct, frozen=True, kw_only=True):
    """What is known from one look to the next, and over restarts. ``serial`` counts the looks that
    told anything: a look that is done again after a crash gives its messages the same ids."""

    serial: int = 0
    alarms: tuple[Alarm, ...] = ()

    def raised(self) -> tuple[Alarm, ...]:
        return tuple(alarm for alarm in self.alarms if alarm.over is None)


def step(
    before: Alarms,
    concerns: Iterable[Concern],
    now: dt.datetime,
    host: str,
    rules: Rules,
    unknown: Callable[[Alarm], bool] = lambda _: False,
) -> tuple[Alarms, tuple[Message, ...]]:
    """One look. ``unknown``: whether an alarm whose concern is not seen may last all the same,
    since nobody could look."""
    known = {alarm.key: alarm for alarm in before.alarms}
    present = {concern.key: concern for concern in concerns if concern.kind in KINDS}
    after: dict[str, Alarm] = {}
    told: list[tuple[Event, Alarm]] = []
    live = len(before.raised())
    for key, concern in present.items():
        alarm = known.get(key)
        if alarm is None or alarm.over is not None:
            if live >= MAX_ALARMS:
                continue
            live += 1
            after[key] = _raised(concern, alarm, now, rules)
            told.append(("raised", after[key]))
        else:
            after[key], event = _lasting(alarm, concern, now, rules)
            if event is not None:
                told.append((event, after[key]))
    for alarm in before.alarms:
        if alarm.key in after:
            continue
        if alarm.over is not None:
            if _passed(alarm.over, now) < rules.remember_s:
                after[alarm.key] = alarm
            continue
        kept, event = _absent(alarm, now, rules, doubtful=unknown(alarm))
        after[alarm.key] = kept
        if event is not None:
            told.append((event, kept))
    serial = before.serial + 1 if told else before.serial
    newest = sorted(after.values(), key=lambda one: (one.over is not None, one.over or now))
    state = Alarms(serial=serial, alarms=tuple(newest[: 2 * MAX_ALARMS]))
    return state, tuple(_messages(told, now, host, serial))


def encode(alarms: Alarms) -> str:
    return msgspec.json.encode(alarms).decode()


def decode(text: str | None) -> Alarms:
    """None at all for what can't be read: it was written by another drvm, or is damaged."""
    try:
        return Alarms() if text is None else msgspec.json.decode(text, type=Alarms)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Alarms()


def _raised(concern: Concern, last: Alarm | None, now: dt.datetime, rules: Rules) -> Alarm:
    again = last is not None and last.over is not None
    again = again and _passed(last.over, now) < rules.remember_s  # type: ignore[union-attr,arg-type]
    return Alarm(
        key=concern.key,
        kind=concern.kind,
        severity=concern.severity,
        vm=_line(concern.vm),
        vm_uuid=concern.vm_uuid,
        text=_line(concern.text),
        hint=_line(concern.hint),
        since=min(concern.since or now, now),
        told=now,
        raises=last.raises + 1 if again and last is not None else 1,
    )


def _lasting(
    alarm: Alarm, concern: Concern, now: dt.datetime, rules: Rules
) -> tuple[Alarm, Event | None]:
    """Told again once a day, and at once where it has become critical."""
    worse = concern.severity == "critical" != alarm.severity
    told = min(alarm.told, now)  # a clock that was set back
    again = worse or _passed(told, now) >= rules.repeat_s
    changed = msgspec.structs.replace(
        alarm,
        severity=concern.severity,
        vm=_line(concern.vm),
        text=_line(concern.text),
        hint=_line(concern.hint),
        told=now if again else told,
        absent=None,
    )
    return changed, "reminder" if again else None


def _absent(
    alarm: Alarm, now: dt.datetime, rules: Rules, *, doubtful: bool
) -> tuple[Alarm, Event | None]:
    if doubtful:
        return msgspec.structs.replace(alarm, absent=None), None
    absent = min(alarm.absent or now, now)
    quiet_s = min(rules.longest_quiet_s, rules.quiet_s * 2.0 ** min(alarm.raises - 1, 30))
    if alarm.absent is None or _passed(absent, now) < quiet_s:
        return msgspec.structs.replace(alarm, absent=absent), None
    return msgspec.structs.replace(alarm, over=now), "over"


def _passed(then: dt.datetime, now: dt.datetime) -> float:
    return (now - then).total_seconds()


def _messages(
    told: Sequence[tuple[Event, Alarm]], now: dt.datetime, host: str, serial: int
) -> Iterable[Message]:
    together: dict[tuple[Event, str], list[Alarm]] = {}
    for event, alarm in told:
        together.setdefault((event, alarm.kind), []).append(alarm)
    for (event, kind), alarms in together.items():
        groups = [[alarm] for alarm in alarms] if len(alarms) <= MOST_ALONE else [alarms]
        for group in groups:
            yield _message(event, kind, group, now, host, serial)


def _message(
    event: Event, kind: str, alarms: Sequence[Alarm], now: dt.datetime, host: str, serial: int
) -> Message:
    worst = min(alarms, key=lambda alarm: alarm.severity != "critical")
    words = "\0".join((host, str(serial), event, *(alarm.key for alarm in alarms)))
    digest = hashlib.sha256(words.encode("utf-8", "backslashreplace")).hexdigest()
    text = _named(worst) if len(alarms) == 1 else f"{_named(worst)}; and {len(alarms) - 1} more"
    return Message(
        id=digest[:24],
        event=event,
        kind=kind,
        severity=worst.severity,
        key=worst.key,
        vm=worst.vm,
        text=printable(text, MAX_TEXT_CHARS),
        hint=worst.hint,
        since=worst.since,
        at=now,
        host=_line(host),
        others=tuple(
            Part(
                key=alarm.key,
                severity=alarm.severity,
                vm=alarm.vm,
                text=_named(alarm),
                since=alarm.since,
            )
            for alarm in alarms
            if alarm is not worst
        ),
    )


def _named(alarm: Alarm) -> str:
    return f"{alarm.vm}: {alarm.text}" if alarm.vm else alarm.text


def _line(text: str) -> str:
    return printable(text, MAX_TEXT_CHARS // 2)
