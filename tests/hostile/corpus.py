"""All hostile repositories, by kind."""

from __future__ import annotations

from tests.hostile import definitions, manifests, maps, objects, packs, planted, slots, stores
from tests.hostile.case import Case

KINDS: dict[str, dict[str, Case]] = {
    "manifests": manifests.CASES,
    "maps": maps.CASES,
    "packs": packs.CASES,
    "slots": slots.CASES,
    "costs": slots.COSTS,
    "objects": objects.CASES,
    "stores": stores.CASES,
    "definitions": definitions.CASES,
}
PLANTED = planted.CASES
