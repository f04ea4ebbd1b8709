"""``python -m tests.model``: run the protocol's model, or look for a planted fault.

::

    python -m tests.model                   every configuration, to its end
    python -m tests.model --config retention
    python -m tests.model --fault pardon    the shortest way in which it loses data
    python -m tests.model --list
"""

from __future__ import annotations

import argparse
import sys

from tests.model.configs import CONFIGS
from tests.model.explore import Result, explore
from tests.model.faults import FAULTS
from tests.model.world import Config, World, bits


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--config", choices=CONFIGS)
    parser.add_argument("--long", action="store_true", help="the large configurations too")
    parser.add_argument("--list", action="store_true", help="configurations and faults")
    options = parser.parse_args(argv)
    if options.list:
        print(*(f"config {name}" for name in CONFIGS), sep="\n")
        print(*(f"fault {fault.name}: {fault.text}" for fault in FAULTS.values()), sep="\n")
        return 0
    if options.fault:
        fault = FAULTS[options.fault]
        config = CONFIGS[options.config or fault.config]
        result = explore(config, frozenset({fault.name}))
        print(f"{fault.name}: {fault.text} (configuration {config.name})")
        print("\n".join(told(config, result)))
        return 0 if result.violation else 1
    bad = False
    for config in CONFIGS.values():
        wanted = (
            config.name == options.config if options.config else options.long or not config.long
        )
        if wanted:
            result = explore(config)
            bad |= result.violation is not None
            print(f"{config.name}:", *told(config, result), sep="\n  ", flush=True)
    return bad


def told(config: Config, result: Result) -> list[str]:
    """The trace, a line a step, and the verdict."""
    lines, before = [], config.start()
    for number, (who, step, after) in enumerate(result.trace, 1):
        lines.append(f"{number:3}. {who}: {step}{_details(config, before, after)}")
        before = after
    verdict = result.violation or "no violation"
    return [*lines, f"{verdict} ({result.states} states)"]


def _details(config: Config, before: World, after: World) -> str:
    words = [
        f"{sign}{kind} {config.pack_name(bit)}"
        for kind, old, new in (
            ("pack", before.packs, after.packs),
            ("tombstone", before.condemned, after.condemned),
        )
        for sign, mask in (("+", new & ~old), ("-", old & ~new))
        for bit in bits(mask)
    ]
    for kind, old, new in (
        ("manifest", before.manifests, after.manifests),
        ("ok", before.ok, after.ok),
        ("aborted", before.aborted, after.aborted),
    ):
        for sign, mask in (("+", new & ~old), ("-", old & ~new)):
            for bit in bits(mask):
                slot = bit.bit_length() - 1
                needs = ""
                if kind == "manifest" and sign == "+":
                    named = ", ".join(config.pack_name(pack) for pack in bits(after.needs[slot]))
                    needs = f" (needs {named})"
                words.append(f"{sign}{kind} {config.slot_name(slot)}{needs}")
    return f": {'; '.join(words)}" if words else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
