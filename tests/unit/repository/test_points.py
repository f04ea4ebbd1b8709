"""The commit protocol, observed at the store: its order, and what a crash or a rival leaves."""

import pytest
from msgspec.structs import replace

from drvm.core.errors import (
    DamageFound,
    ObjectMissing,
    OutcomeUnknown,
    PacksCondemned,
    RepositoryError,
    StoreUnreachable,
)
from drvm.core.ids import new_point_id
from drvm.repository import points
from drvm.repository.layout import (
    CONDEMNED,
    CONFIG,
    FINALS,
    PACKS,
    POINTS,
    final_object,
    point_object,
)
from drvm.repository.manifest import Manifest
from tests.unit.repository.conftest import VM, Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise

OTHER_VM = "99999999-2222-4333-8444-555555555555"


@pytest.fixture
def faulty() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([noise(SMALL)])
    vault.store.calls.clear()
    return vault


def again(vault: Vault) -> Manifest:
    """The manifest of a further point with the same disks."""
    return replace(vault.repository.points().points[0].manifest, id=new_point_id())


def commit(vault: Vault, manifest: Manifest) -> points.Point:
    return vault.repository.commit(manifest)


def ids(vault: Vault) -> list[str]:
    return [point.id for point in vault.repository.points().points]


def test_the_order_is_manifest_then_condemned_then_packs_then_final(faulty):
    manifest = again(faulty)
    faulty.store.calls.clear()
    point = commit(faulty, manifest)
    assert [call for call in faulty.store.calls if not call.startswith(("get", "tail"))] == [
        f"head {CONFIG}",
        f"create {point_object(VM, point.id, point.generation)}",
        f"list {CONDEMNED}",
        f"list {PACKS}",
        f"create {final_object(point.id, point.generation)}",
    ]


def test_the_steps_are_told_as_they_become_true(faulty):
    told = []
    faulty.repository.commit(again(faulty), told.append)
    assert told == ["manifest-created", "condemned-listed", "packs-checked", "final-created"]


def test_two_attempts_have_different_generations(faulty):
    manifest = again(faulty)
    assert commit(faulty, manifest).generation != commit(faulty, manifest).generation


STEPS = [f"create {POINTS}", f"list {CONDEMNED}", f"list {PACKS}", f"create {FINALS}"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_leaves_a_good_point_or_none(faulty, step, after):
    manifest, before = again(faulty), ids(faulty)

    def dies(verb: str, name: str) -> bool:
        if f"{verb} {name}".startswith(step):
            raise KeyboardInterrupt
        return False

    if after and step.startswith("create"):
        faulty.store.lose_reply = dies
    else:
        faulty.store.before = dies
    with pytest.raises(KeyboardInterrupt):
        commit(faulty, manifest)
    faulty.store.before = faulty.store.lose_reply = lambda verb, name: False
    done = after and step == STEPS[-1]
    assert sorted(ids(faulty)) == sorted([*before, manifest.id] if done else before)
    assert faulty.repository.points().problems == ()
    assert commit(faulty, manifest).id in ids(faulty)  # the next attempt is not in its way


@pytest.mark.parametrize("verb_name", [f"list {CONDEMNED}", f"list {PACKS}"])
def test_a_listing_that_fails_means_no_point(faulty, verb_name):
    def fails(verb: str, name: str) -> None:
        if f"{verb} {name}" == verb_name:
            raise StoreUnreachable("half of the listing was lost")

    manifest, before = again(faulty), ids(faulty)
    faulty.store.before = fails
    with pytest.raises(StoreUnreachable):
        commit(faulty, manifest)
    faulty.store.before = lambda verb, name: None
    assert ids(faulty) == before


def packs_of(vault: Vault, manifest: Manifest) -> list[bytes]:
    return sorted(vault.repository.need(manifest))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["condemned", "absent"])
def test_a_pack_that_is_condemned_or_absent_aborts_the_generation(faulty, which, how):
    manifest = again(faulty)
    pack = packs_of(faulty, manifest)[which]
    before = ids(faulty)
    if how == "condemned":
        faulty.store.put(f"{CONDEMNED}{pack.hex()}", b"")
    else:  # collected between the manifest and the check
        faulty.store.before = lambda verb, name: (
            faulty.store.objects.pop(f"{PACKS}{pack.hex()}", None) and None
            if f"{verb} {name}" == f"list {PACKS}"
            else None
        )
    with pytest.raises(PacksCondemned) as failure:
        commit(faulty, manifest)
    assert failure.value.packs == {pack}
    faulty.store.before = lambda verb, name: None
    assert ids(faulty) == before
    finals = [name for name in faulty.store.objects if name.startswith(f"{FINALS}{manifest.id}")]
    assert len(finals) == 1


def test_an_aborted_generation_is_never_listed_and_the_next_one_is(faulty):
    manifest = again(faulty)
    name = f"{CONDEMNED}{packs_of(faulty, manifest)[0].hex()}"
    faulty.store.put(name, b"")
    with pytest.raises(PacksCondemned):
        commit(faulty, manifest)
    faulty.store.delete(name)
    point = commit(faulty, manifest)
    listing = faulty.repository.points()
    assert [p.generation for p in listing.points if p.id == manifest.id] == [point.generation]
    assert listing.problems == ()


def test_a_backup_whose_packs_are_condemned_is_written_anew_without_them(faulty):
    content = noise(SMALL)
    (parent,) = faulty.repository.points().points
    condemned = set(packs_of(faulty, parent.manifest))

    def at_the_last_moment(verb: str, name: str) -> None:
        if f"{verb} {name}" == f"list {CONDEMNED}" and "create points" in faulty.store.calls[-2]:
            for pack in condemned:
                faulty.store.put(f"{CONDEMNED}{pack.hex()}", b"")

    faulty.store.before = at_the_last_moment
    with pytest.raises(PacksCondemned) as failure:
        faulty.save([content], parent)
    again = faulty.save([content], parent, banned=failure.value.packs)
    assert not condemned & set(packs_of(faulty, again.manifest))
    assert faulty.load(again) == [content]


def decided(vault: Vault, manifest: Manifest, status: str) -> FaultyStore:
    """A rival decides the final just before the writer does."""
    store = vault.store
    assert isinstance(store, FaultyStore)

    def rival(verb: str, name: str) -> None:
        if verb == "create" and name.startswith(FINALS) and name not in store.objects:
            store.before = lambda verb, name: None
            point_id, generation = name.removeprefix(FINALS).split(".")
            sealed = store.get(point_object(manifest.vm_uuid, point_id, generation))
            points._decide(store, vault.repository._sealer, point_id, generation, status, sealed)

    store.before = rival
    return store


def test_a_writer_that_a_collector_gave_up_has_no_point_and_says_so(faulty):
    manifest = again(faulty)
    decided(faulty, manifest, "aborted")
    with pytest.raises(RepositoryError, match="given up"):
        commit(faulty, manifest)
    assert manifest.id not in ids(faulty)


def test_an_abort_that_somebody_else_has_written_is_good_enough(faulty):
    manifest = again(faulty)
    faulty.store.put(f"{CONDEMNED}{packs_of(faulty, manifest)[0].hex()}", b"")
    decided(faulty, manifest, "aborted")
    with pytest.raises(PacksCondemned):
        commit(faulty, manifest)


@pytest.mark.parametrize("prefix", [POINTS, FINALS])
def test_a_lost_reply_is_settled_by_reading_back(faulty, prefix):
    manifest = again(faulty)
    faulty.store.calls.clear()
    faulty.store.lose_reply = lambda verb, name: name.startswith(prefix)
    commit(faulty, manifest)
    creates = [call for call in faulty.store.calls if call.startswith("create")]
    assert len(creates) == len(set(creates)) == 2
    assert manifest.id in ids(faulty)


@pytest.mark.parametrize("prefix", [POINTS, FINALS])
def test_a_create_of_which_nothing_is_known_is_no_success(faulty, prefix):
    manifest = again(faulty)

    def lost(verb: str, name: str) -> None:
        if verb == "create" and name.startswith(prefix):
            raise OutcomeUnknown("the request was lost")

    faulty.store.before = lost
    with pytest.raises(OutcomeUnknown):
        commit(faulty, manifest)
    faulty.store.before = lambda verb, name: None
    assert manifest.id not in ids(faulty)


def test_a_manifest_that_no_reader_would_take_is_not_committed(faulty):
    manifest = replace(again(faulty), vm_uuid=VM.replace("1", "A"))
    before = set(faulty.store.objects)
    with pytest.raises(RepositoryError):
        commit(faulty, manifest)
    assert set(faulty.store.objects) == before


def test_points_are_listed_oldest_first_and_by_vm(vault):
    first, second = vault.save([noise(SMALL)]), vault.save([noise(SMALL, 1)])
    other = vault.repository.commit(replace(first.manifest, id=new_point_id(), vm_uuid=OTHER_VM))
    assert vault.repository.points(VM).points == (first, second)
    assert vault.repository.points(OTHER_VM).points == (other,)
    assert len(vault.repository.points().points) == 3


def test_of_two_generations_one_is_listed_and_either_serves(vault):
    point = vault.save([noise(SMALL)])
    twin = vault.repository.commit(point.manifest)
    (listed,) = vault.repository.points().points
    vault.store.delete(point_object(VM, listed.id, listed.generation))
    (other,) = vault.repository.points().points
    assert {listed.generation, other.generation} == {point.generation, twin.generation}
    assert vault.load(other) == [noise(SMALL)]


def test_a_damaged_generation_is_told_and_the_other_one_serves(vault):
    point = vault.save([noise(SMALL)])
    twin = vault.repository.commit(point.manifest)
    for broken, whole in ((point, twin), (twin, point)):
        name = point_object(VM, broken.id, broken.generation)
        kept = vault.store.get(name)
        vault.store.put(name, b"")
        listing = vault.repository.points()
        assert listing.points == (whole,)
        assert len(listing.problems) == 1
        assert name in listing.problems[0]
        vault.store.put(name, kept)


def test_objects_that_go_away_while_they_are_listed_are_no_problem(faulty):
    faulty.save([noise(SMALL, 1)])

    def gone(verb: str, name: str) -> None:
        if verb == "get" and name.startswith((FINALS, POINTS)):
            raise ObjectMissing("deleted a moment ago")

    faulty.store.before = gone
    assert faulty.repository.points() == points.Listing((), ())


def test_a_listing_that_cannot_be_had_is_an_error_and_not_an_empty_list(faulty):
    def fails(verb: str, name: str) -> None:
        if verb == "get" and name.startswith(POINTS):
            raise StoreUnreachable("no answer")

    faulty.store.before = fails
    with pytest.raises(StoreUnreachable):
        faulty.repository.points()


@pytest.mark.parametrize("prefix", [POINTS, FINALS])
def test_an_object_too_large_to_be_taken_is_a_problem_of_its_point_only(vault, prefix):
    good, bad = vault.save([noise(SMALL)]), vault.save([noise(SMALL, 1)])
    names = {
        POINTS: point_object(VM, bad.id, bad.generation),
        FINALS: final_object(bad.id, bad.generation),
    }
    _, moment = vault.store.objects[names[prefix]]
    vault.store.objects[names[prefix]] = (bytes((64 << 20) + 1), moment)
    get = vault.store.get
    vault.store.get = lambda name, **k: (
        pytest.fail("it was fetched") if name == names[prefix] else get(name, **k)
    )
    listing = vault.repository.points()
    assert listing.points == (good,)
    assert len(listing.problems) == 1


def test_strange_objects_among_points_and_finals_are_passed_over(vault):
    point = vault.save([noise(SMALL)])
    for name in ("points/x", f"points/{VM}/x.y", "final/x", f"points/{VM}/{'0' * 16}.{'0' * 16}"):
        vault.store.put(name, b"noise")
    assert vault.repository.points() == points.Listing((point,), ())


def test_a_manifest_copied_to_another_vm_or_id_is_not_a_point_there(vault):
    point = vault.save([noise(SMALL)])
    manifest = vault.store.get(point_object(VM, point.id, point.generation))
    final = vault.store.get(final_object(point.id, point.generation))
    vault.store.put(point_object(OTHER_VM, point.id, point.generation), manifest)
    vault.store.put(point_object(VM, "0" * 16, "1" * 16), manifest)
    vault.store.put(final_object("0" * 16, "1" * 16), final)
    listing = vault.repository.points()
    assert listing.points == (point,)
    assert len(listing.problems) == 2


def test_a_manifest_of_another_point_under_a_valid_seal_is_damage(vault):
    """A key holder seals the manifest of one point under the name of another."""
    point = vault.save([noise(SMALL)])
    sealer = vault.repository._sealer
    name = point_object(OTHER_VM, point.id, "2" * 16)
    sealed = sealer.seal_object(b"point", name, point.manifest.encode())
    vault.store.put(name, sealed)
    points._decide(vault.store, sealer, point.id, "2" * 16, "ok", sealed)
    with pytest.raises(DamageFound, match="another point"):
        points.read_point(vault.store, sealer, OTHER_VM, point.id, "2" * 16)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"status": "ok"}', b"[" * 100_000, b'{"status": 1}', b"\xff"]
)
def test_a_final_that_says_nothing_is_damage(vault, body):
    point = vault.save([noise(SMALL)])
    name = final_object(point.id, point.generation)
    vault.store.put(name, vault.repository._sealer.seal_object(b"final", name, body))
    listing = vault.repository.points()
    assert listing.points == ()
    assert len(listing.problems) == 1


def test_a_point_is_current_in_its_generation_in_another_good_one_or_not_at_all(vault):
    first = vault.save([noise(SMALL)])
    second = commit(vault, first.manifest)
    assert vault.repository.current(first) == first
    name = point_object(VM, first.id, first.generation)
    vault.store.delete(name)
    assert vault.repository.current(first) == second
    vault.store.put(point_object(VM, first.id, second.generation), b"noise")
    assert vault.repository.current(first) is None
    vault.repository.end_point(first)
    assert vault.repository.current(first) is None


def test_a_point_was_ended_if_it_was_good_once_and_no_manifest_is_left(vault):
    point = vault.save([noise(SMALL)])
    assert not vault.repository.was_ended(point)
    vault.repository.end_point(point)
    assert vault.repository.was_ended(point)
    final = final_object(point.id, point.generation)
    vault.store.put(final, b"noise")
    assert not vault.repository.was_ended(point)
    vault.store.delete(final)
    assert not vault.repository.was_ended(point)


def test_a_point_that_was_only_given_up_was_not_ended(faulty):
    manifest = again(faulty)
    (pack, *_) = faulty.repository.need(manifest)
    faulty.store.put(CONDEMNED + pack.hex(), b"")
    with pytest.raises(PacksCondemned):
        commit(faulty, manifest)
    point = points.Point(manifest, "0" * 16)
    faulty.repository.end_point(point)
    assert not faulty.repository.was_ended(point)
