"""Packs are uploaded behind the caller's back, and yet no error is lost and nothing hangs."""

import threading
from concurrent.futures import Future

import pytest

from drvm.core.errors import DamageFound, OutcomeUnknown, StoreRefused
from drvm.repository.pack import SealedPack
from drvm.repository.uploads import Uploads
from tests.unit.repository.faults import FaultyStore, within


def pack(number: int) -> SealedPack:
    return SealedPack(bytes([number]) * 32, bytes([number]) * 100)


def refuse(verb: str, name: str) -> None:
    raise StoreRefused("the bucket is full")


def test_everything_is_stored_when_finish_returns():
    store = FaultyStore()
    uploads = Uploads(store)
    for number in range(20):
        uploads.put(pack(number))
    uploads.finish()
    uploads.close()
    assert {name: data for name, (data, _) in store.objects.items()} == {
        f"packs/{pack(number).name.hex()}": pack(number).data for number in range(20)
    }
    assert uploads.stored_bytes == 2000


def test_an_error_ends_put_or_finish_and_stays():
    store = FaultyStore()
    store.before = refuse
    uploads = Uploads(store)

    def until_refused():
        with pytest.raises(StoreRefused):
            for number in range(20):
                uploads.put(pack(number))
        for number in range(20):  # whoever goes on is told again, and nobody waits for ever
            with pytest.raises(StoreRefused):
                uploads.put(pack(number))
        with pytest.raises(StoreRefused):
            uploads.finish()
        uploads.close()

    within(10, until_refused)


def test_an_error_is_not_lost_where_an_upload_ends_while_it_is_looked_at():
    class EndsAfterTheFirstLook(Future):
        def done(self):
            ended = super().done()
            if not ended:
                self.set_exception(StoreRefused("the bucket is full"))
            return ended

    uploads = Uploads(FaultyStore())
    uploads._pending.append(EndsAfterTheFirstLook())
    uploads.put(pack(1))
    with pytest.raises(StoreRefused):
        uploads.finish()
    uploads.close()


def test_no_more_packs_wait_than_there_is_room_for():
    go, store = threading.Event(), FaultyStore()
    store.before = lambda verb, name: go.wait(10) and None
    uploads = Uploads(store, threads=1, in_flight=2)
    uploads.put(pack(0))
    uploads.put(pack(1))
    third = threading.Thread(target=uploads.put, args=(pack(2),), daemon=True)
    third.start()
    third.join(0.1)
    assert third.is_alive()
    go.set()
    third.join(10)
    assert not third.is_alive()
    uploads.finish()
    uploads.close()


def test_close_gives_up_what_has_not_begun_and_ends_its_threads():
    go, store = threading.Event(), FaultyStore()
    store.before = lambda verb, name: go.wait(10) and None
    uploads = Uploads(store, threads=1, in_flight=3)
    for number in range(3):
        uploads.put(pack(number))
    closer = threading.Thread(target=uploads.close, daemon=True)
    closer.start()
    closer.join(0.05)
    go.set()
    closer.join(10)
    assert not closer.is_alive()
    assert len(store.objects) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("upload")]


def test_a_lost_reply_is_settled_by_reading_back_and_nothing_is_sent_twice():
    store = FaultyStore()
    store.lose_reply = lambda verb, name: True
    uploads = Uploads(store)
    uploads.put(pack(1))
    uploads.finish()
    uploads.close()
    assert [call.split()[0] for call in store.calls] == ["put", "get"]


def test_a_write_that_never_happened_is_not_taken_for_one_that_did():
    store = FaultyStore()

    def lost(verb: str, name: str) -> None:
        if verb == "put":
            raise OutcomeUnknown("the answer was lost, and so was the question")

    store.before = lost
    uploads = Uploads(store)
    uploads.put(pack(1))
    with pytest.raises(OutcomeUnknown):
        uploads.finish()
    uploads.close()
    assert [call.split()[0] for call in store.calls] == ["put", "get"]


def test_a_pack_that_arrived_otherwise_than_it_was_sent_is_damage():
    store = FaultyStore()
    store.lose_reply = lambda verb, name: (
        store.objects.update({name: (b"half", store.objects[name][1])}) or True
    )
    uploads = Uploads(store)
    uploads.put(pack(1))
    with pytest.raises(DamageFound):
        uploads.finish()
    uploads.close()
