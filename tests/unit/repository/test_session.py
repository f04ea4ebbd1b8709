"""A session may end anywhere: nothing hangs, nothing is left running, nothing half is believed."""

import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.errors import OutcomeUnknown, RepositoryError, StoreRefused, StoreUnreachable
from drvm.core.ids import new_point_id
from drvm.repository import pack
from drvm.repository.crypto import ObjectCipher
from drvm.repository.layout import PACKS
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore, within
from tests.unit.repository.test_round_trip import SMALL, noise


@pytest.fixture
def vault(monkeypatch) -> Vault:
    """Packs of a few frames, so that uploads happen while the disk is still being given."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 200_000)
    vault = new_vault(FaultyStore())
    vault.repository.refresh()
    return vault


def threads() -> list[str]:
    names = ("upload", "tables", "fetch")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.mark.parametrize("error", [StoreRefused("full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("nth", [1, 3, 9])
def test_an_upload_that_fails_ends_the_session_with_its_error_and_no_threads(vault, error, nth):
    puts = []

    def fails(verb: str, name: str) -> None:
        if verb == "put":
            puts.append(name)
            if len(puts) >= nth:
                raise error

    vault.store.before = fails

    def save() -> None:
        with pytest.raises(type(error)):
            vault.save([noise(400 * BLOCK_BYTES)])

    within(20, save)
    assert threads() == []
    assert vault.repository.points().points == ()


def test_an_interrupt_in_the_middle_of_a_disk_leaves_no_threads(vault):
    def interrupted() -> None:
        with vault.repository.session(level=1) as session:
            session.disk(1 << 30, None).data(noise(300 * BLOCK_BYTES))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert threads() == []


def test_a_session_that_died_wastes_nothing_and_the_next_one_is_right(vault):
    content = noise(300 * BLOCK_BYTES)
    with pytest.raises(KeyboardInterrupt), vault.repository.session(level=1) as session:
        session.disk(len(content), None).data(content)
        session._blocks.finish_pack()
        session._uploads.finish()
        raise KeyboardInterrupt
    point = vault.reopen().save([content])
    assert point.manifest.disks[0].new_bytes == 0
    assert vault.load(point) == [content]


def test_the_index_does_not_learn_of_packs_that_never_arrived(vault):
    def fails(verb: str, name: str) -> None:
        if verb == "put":
            raise StoreUnreachable("no answer")

    vault.store.before = fails
    content = noise(300 * BLOCK_BYTES)
    with pytest.raises(StoreUnreachable):
        vault.save([content])
    assert vault.repository._index.known() == set()
    vault.store.before = lambda verb, name: None
    assert vault.load(vault.save([content])) == [content]


def test_lost_replies_to_all_uploads_make_a_good_point(vault):
    vault.store.lose_reply = lambda verb, name: True
    content = noise(300 * BLOCK_BYTES)
    point = vault.save([content])
    puts = [call for call in vault.store.calls if call.startswith(("put", "create"))]
    assert len(puts) == len(set(puts))
    assert vault.reopen().load(point) == [content]


def test_an_upload_of_which_nothing_is_known_is_no_point(vault):
    def lost(verb: str, name: str) -> None:
        if verb == "put":
            raise OutcomeUnknown("the request was lost")

    vault.store.before = lost
    with pytest.raises(OutcomeUnknown):
        vault.save([noise(SMALL)])
    assert vault.repository.points().points == ()


def test_blobs_over_many_packs_come_back_in_their_order(vault, monkeypatch):
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 5000)
    texts = [noise(900, n) for n in range(40)] + [b"", noise(20_000)]
    with vault.repository.session(level=1) as session:
        places = [session.blob(text) for text in texts]
        written = session.finish()
    assert places == list(range(len(texts)))
    assert len({blob.pack for blob in written.blobs}) > 5
    assert [vault.repository.packs.blob(blob) for blob in written.blobs] == texts
    stored = sum(len(d) for n, (d, _) in vault.store.objects.items() if n.startswith(PACKS))
    assert written.stored_bytes == stored


def test_a_blob_that_no_reader_would_take_is_refused_before_anything_is_stored(vault):
    with pytest.raises(RepositoryError, match="at most"), vault.repository.session(level=1) as s:
        s.blob(bytes((32 << 20) + 1))


class Nonces:
    """Every (key, nonce) that was ever used for sealing. One object cipher holds one key."""

    def __init__(self) -> None:
        self.seen: set[tuple[bytes, int, int]] = set()
        self.lock = threading.Lock()

    def note(self, header: bytes, domain: int, number: int) -> None:
        with self.lock:
            used = (header, domain, number)  # the header holds purpose, repository and salt
            assert used not in self.seen, f"nonce {domain}/{number} was used twice"
            self.seen.add(used)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans())
def test_no_nonce_is_used_twice_under_a_key_whatever_happens(seeds, troubled):
    nonces, seal = Nonces(), ObjectCipher.seal

    def noted(self, domain, number, plain, bind=b""):
        nonces.note(self._header, domain, number)
        return seal(self, domain, number, plain, bind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectCipher, "seal", noted)
        patch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 100_000)
        vault, parent, refused = new_vault(FaultyStore()), None, [0]

        def sometimes(verb: str, name: str) -> None:
            refused[0] += 1
            if troubled and verb in ("put", "create") and refused[0] % 5 == 0:
                raise StoreUnreachable("no answer")

        vault.store.before = sometimes
        for seed in seeds:
            try:
                parent = vault.save([noise(90 * BLOCK_BYTES, seed), noise(SMALL, 9)], parent)
            except StoreUnreachable:
                continue
            with contextlib.suppress(StoreUnreachable):
                vault.repository.drills.put(parent.manifest.vm_uuid, new_point_id(), b"passed")
        assert troubled or len(nonces.seen) > 8
