from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from drvm.notify import outbox
from drvm.notify.outbox import MOST_PENDING, Outbox
from tests.unit.notify.messages import NOW, make_message


def later(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def test_a_message_that_is_put_in_twice_is_kept_once() -> None:
    box = Outbox().with_message(make_message()).with_message(make_message())
    assert len(box.pending) == 1


def test_messages_wait_in_order_and_an_outbox_never_grows_beyond_its_bound() -> None:
    box = Outbox()
    for number in range(MOST_PENDING + 5):
        box = box.with_message(make_message(id=str(number)))
    assert [message.id for message in box.pending] == [str(n) for n in range(5, MOST_PENDING + 5)]
    assert box.lost == 5


def test_what_did_not_arrive_is_tried_again_ever_later_and_at_least_every_ten_minutes() -> None:
    box, now, pauses = Outbox().with_message(make_message()), NOW, []
    for _ in range(9):
        box = box.not_arrived(make_message(), now, "no answer", refused=False)
        assert box.next_try is not None and box.due(now) is None
        pauses.append((box.next_try - now).total_seconds())
        now = box.next_try
        assert box.due(now) == make_message()
    assert pauses == [15, 30, 60, 120, 240, 480, 600, 600, 600]
    assert (box.failure, box.failing_since, box.lost) == ("no answer", NOW, 0)
    box = box.arrived(make_message(), now)
    assert (box.pending, box.failure, box.failing_since, box.attempts) == ((), "", None, 0)


def test_what_is_refused_three_times_is_given_up_and_the_next_is_told_at_once() -> None:
    box = Outbox().with_message(make_message()).with_message(make_message(id="2"))
    for _ in range(3):
        box = box.not_arrived(make_message(), NOW, "404", refused=True)
    assert box.lost == 1
    assert box.due(NOW) == make_message(id="2")


def test_what_nobody_takes_for_days_is_given_up() -> None:
    box = Outbox().with_message(make_message())
    box = box.not_arrived(make_message(), NOW + outbox.GIVE_UP_AFTER, "no", refused=False)
    assert (box.pending, box.lost) == ((make_message(),), 0)
    box = box.not_arrived(make_message(), later(4 * 86400), "no", refused=False)
    assert (box.pending, box.lost) == ((), 1)


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    box = Outbox().with_message(make_message())
    box = box.not_arrived(make_message(), NOW, "no", refused=False)
    assert box.due(later(-86400)) == make_message()


@given(st.text() | st.just('{"pending": [{}]}') | st.none())
def test_an_outbox_that_cant_be_read_is_empty(text: str | None) -> None:
    assert outbox.decode(text).pending == ()


def test_an_outbox_outlives_a_restart() -> None:
    box = Outbox().with_message(make_message()).not_arrived(None, NOW, "x", refused=False)
    assert outbox.decode(outbox.encode(box)) == box
