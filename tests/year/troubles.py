"""What goes wrong in a year, and when: drawn by the world's own dice."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Sequence

from tests.year.fleet import HOSTS, HOUR_S, LIMITS
from tests.year.time import START
from tests.year.world import World

DAY_S = 24 * HOUR_S
DAYS = 365

CHANGES = ("03-08 07:00", "03-29 01:00", "04-04 15:00", "10-03 15:30", "10-25 01:00", "11-01 06:00")
"""When New York, Berlin and Lord Howe put their clocks forward and back in 2026, in UTC."""


def change_s(text: str) -> float:
    moment = dt.datetime.fromisoformat(f"2026-{text}").replace(tzinfo=dt.UTC)
    return (moment - START).total_seconds()


Rare = Sequence[tuple[Callable[[World], None], int]]


def plan_troubles(
    world: World, busy_changes: frozenset[str], rare: Rare | None = None, days: int = DAYS
) -> None:
    """Days on which a clock changes are calm, but for ``busy_changes``: then daemons die in the
    very hours. ``rare``: what happens once, on which day."""
    dice = world.rng
    calm = [change_s(text) for text in CHANGES if text not in busy_changes]
    for day in range(2, days - 3):
        for happens, chance in _USUAL:
            at_s = day * DAY_S + dice.uniform(0, DAY_S)
            if dice.random() < chance and not any(abs(at_s - c) < 1.5 * DAY_S for c in calm):
                world.events.at(at_s, _bound(happens, world))
    for text, hours in itertools.product(busy_changes, (-1.2, -0.6, 0.1, 0.7, 1.3)):
        world.events.at(change_s(text) + hours * HOUR_S, _bound(_restart, world))
    for happens, day in rare or _RARE:
        at_s = (day + dice.uniform(0, 1)) * DAY_S
        world.events.at(at_s, _bound(happens, world))


def _bound(happens: Callable[[World], None], world: World) -> Callable[[], None]:
    return lambda: happens(world)


def _host_away(world: World) -> None:
    host, seconds = world.rng.choice(HOSTS), world.rng.uniform(60, 6 * HOUR_S)
    hidden = world.rng.random() < 0.5
    world.trouble(seconds + 2 * HOUR_S, host)
    world.hosts_away.add(host)
    if hidden:
        world.hosts_hidden.add(host)

    def back() -> None:
        world.hosts_away.discard(host)
        world.hosts_hidden.discard(host)

    world.events.after(seconds, back)


def _store_away(world: World) -> None:
    seconds = world.rng.uniform(60, 5 * HOUR_S)
    world.trouble(seconds)
    world.store_away = True

    def back() -> None:
        world.store_away = False

    world.events.after(seconds, back)


def _failing(world: World) -> None:
    """A bad day: a third of all runs fail."""
    world.trouble(DAY_S)
    world.failing = 0.35

    def over() -> None:
        world.failing = 0.02

    world.events.after(DAY_S, over)


def _down(world: World, seconds: float, *, killed: bool) -> None:
    if world.engine is None:
        return
    world.trouble(seconds)
    world.downs.append(world.clock.true_s + seconds)
    if killed:
        world.kill()
    else:
        world.terminate()
    world.events.after(seconds, world.start)


def _restart(world: World) -> None:
    _down(world, world.rng.uniform(1, 60), killed=world.rng.random() < 0.5)


def _downtime(world: World) -> None:
    _down(world, world.rng.uniform(0.5, 4) * DAY_S, killed=world.rng.random() < 0.5)


def _jump(world: World, seconds: float) -> None:
    world.trouble(1.0, jump=True)
    world.jump(seconds)


def _corrected(world: World, seconds: float, after_s: float) -> None:
    """The clock is wrong for a while."""
    _jump(world, seconds)
    world.events.after(after_s, lambda: _jump(world, -seconds))


def _small_jump(world: World) -> None:
    _jump(world, world.rng.uniform(-600, 600))


def _back_hours(world: World) -> None:
    _corrected(world, -world.rng.uniform(0.5, 8) * HOUR_S, world.rng.uniform(0, 3) * DAY_S)


def _forward_hours(world: World) -> None:
    _corrected(world, world.rng.uniform(0.5, 8) * HOUR_S, world.rng.uniform(0, 3) * DAY_S)


def _forward_days(world: World) -> None:
    """Then the points of a while are dated in the future."""
    _corrected(world, world.rng.uniform(1, 40) * DAY_S, world.rng.uniform(0.1, 2) * DAY_S)


def _back_days(world: World) -> None:
    _corrected(world, -world.rng.uniform(1, 4) * DAY_S, world.rng.uniform(0.5, 5) * DAY_S)


def _asleep(world: World) -> None:
    seconds = world.rng.uniform(0.2, 30) * HOUR_S
    world.trouble(seconds, jump=True)
    world.suspend(seconds)


def _reload(world: World) -> None:
    few = world.wanted_limits["backups"] == LIMITS["backups"]
    world.wanted_limits = {**LIMITS, "backups": 6, HOSTS[0]: 2} if few else dict(LIMITS)


_USUAL = (
    (_host_away, 0.10),
    (_store_away, 0.05),
    (_restart, 0.10),
    (_failing, 0.01),
    (_reload, 0.03),
    (_small_jump, 0.01),
)
_RARE = (
    (_downtime, 20),
    (_back_hours, 33),
    (_forward_hours, 46),
    (_asleep, 55),
    (_downtime, 110),
    (_forward_days, 125),
    (_back_days, 150),
    (_asleep, 170),
    (_downtime, 185),
    (_back_hours, 200),
    (_forward_days, 220),
    (_back_hours, 240),
    (_asleep, 250),
    (_downtime, 260),
    (_forward_hours, 320),
    (_back_days, 335),
)

FEW: Rare = ((_downtime, 12), (_forward_days, 24), (_asleep, 35), (_back_days, 43), (_downtime, 55))
"""One of each kind, for a shorter life."""
