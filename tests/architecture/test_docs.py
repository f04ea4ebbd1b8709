"""The documentation names what is there, and FORMAT.md's figures and examples are the code's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from drvm.chunker import blocks, frames, runs
from drvm.chunker.blocks import BlockHasher
from drvm.chunker.runs import ZERO, Leaf, encode_leaf
from drvm.report.model import MAX_DETAIL_CHARS, MAX_ENCODED_BYTES, DrillResult
from drvm.repository import crypto, keyring, keys, layout, manifest, nodes, pack, paper
from drvm.repository.blobs import NewBlob
from drvm.repository.checks import CheckRecord
from drvm.repository.crypto import MasterKeys, Sealer
from drvm.repository.diskmap import levels
from drvm.repository.index import objects
from drvm.repository.index.hooks import PackHooks
from drvm.repository.nodes import Child, Node
from drvm.repository.packs import BlobRef
from drvm.store import base
from tests.architecture.source import ROOT
from tests.architecture.test_layers import LEVELS

FORMAT = (ROOT / "docs/FORMAT.md").read_text("utf-8")
ADRS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w/.-])((?:drvm|tests|docs)/[\w./<>*-]*[\w*/>])")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_VECTOR = re.compile(r"^vector ([a-z][a-z -]*?) {2,}((?:[0-9a-f]+\s+)+)", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    plain = _FENCE.sub("", text)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(plain)
    }


def broken_links(page: Path, text: str) -> Iterator[str]:
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists():
            yield target
            continue
        if anchor and anchor not in anchors(there.read_text("utf-8") if name else text):
            yield target


def test_pictures_are_shown_and_small() -> None:
    shown = "".join(page.read_text("utf-8") for page in pages())
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.name in shown
        assert picture.stat().st_size <= 300 * 1024


def missing_paths(text: str) -> Iterator[str]:
    for path in _PATH.findall(text):
        if "<" not in path and "*" not in path and not (ROOT / path).exists():
            yield path


@pytest.mark.parametrize("page", pages(), ids=named)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page, page.read_text("utf-8"))) == []


@pytest.mark.parametrize("page", pages(), ids=named)
def test_every_path_of_the_tree_that_is_named_exists(page: Path) -> None:
    assert list(missing_paths(page.read_text("utf-8"))) == []


def test_a_broken_link_and_a_missing_path_are_seen() -> None:
    page = ROOT / "docs/FORMAT.md"
    assert list(broken_links(page, "[a](absent.md) [b](#nowhere) [c](../CHANGELOG.md)")) == [
        "absent.md",
        "#nowhere",
    ]
    text = "`drvm/core/ids.py` `drvm/absent/x.py` `drvm/store/<name>.py`"
    assert list(missing_paths(text)) == ["drvm/absent/x.py"]


def test_every_decision_is_listed_with_its_title() -> None:
    listed = _LINK.findall((ROOT / "docs/adr/README.md").read_text("utf-8"))
    assert listed == [path.name for path in ADRS]
    numbers = [path.name.partition("-")[0] for path in ADRS]
    assert len(set(numbers)) == len(numbers), "two decisions have one number"
    for number, path in zip(numbers, ADRS, strict=True):
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert title.startswith(f"{number}: ")
        assert f"[{title}]({path.name})" in (ROOT / "docs/adr/README.md").read_text("utf-8")


@pytest.mark.parametrize("path", ADRS, ids=named)
def test_every_decision_has_context_decision_and_consequences(path: Path) -> None:
    found = re.findall(r"^\*\*(\w+)\.\*\*", path.read_text("utf-8"), re.MULTILINE)
    assert found == ["Context", "Decision", "Consequences"]


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text("utf-8")
    rooms = [path.parent.name for path in sorted((ROOT / "drvm").glob("*/__init__.py"))]
    assert [room for room in rooms if f"| `drvm/{room}` |" not in text] == []
    assert all(room in LEVELS for room in rooms)


def test_the_picture_of_the_levels_is_that_of_the_layer_test() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text("utf-8")
    drawn = {
        room: int(level)
        for level, line in re.findall(r"^ (\d)  ([a-z *]+?)(?: {4,}|$)", text, re.MULTILINE)
        for room in re.findall(r"[a-z]+", line)
    }
    assert drawn == {room: level for room, level in LEVELS.items() if room != "__main__"}


# -- FORMAT.md: constants ---------------------------------------------------------------------
def test_the_table_of_constants_is_the_codes() -> None:
    table = {
        name: int(value) for name, value in re.findall(r"^\| `(\w+)` \| (\d+) \|", FORMAT, re.M)
    }
    assert table == {
        "format_version": layout.FORMAT_VERSION,
        "block_bytes": blocks.BLOCK_BYTES,
        "frame_blocks": frames.FRAME_BLOCKS,
        "leaf_blocks": blocks.LEAF_BLOCKS,
        "fanout": layout.FANOUT,
        "pack_max_bytes": layout.PACK_MAX_BYTES,
        "pack_max_blocks": layout.PACK_MAX_BLOCKS,
        "footer_bytes": pack.FOOTER_BYTES,
        "id_bytes": blocks.ID_BYTES,
        "digest_bytes": nodes.DIGEST_BYTES,
        "max_object_bytes": base.MAX_OBJECT_BYTES,
        "max_blob_bytes": pack.MAX_BLOB_BYTES,
        "max_disk_bytes": manifest.MAX_DISK_BYTES,
    }
    assert crypto.MAX_OBJECT_BYTES == base.MAX_OBJECT_BYTES
    assert f"| ordinal of a block | {runs.MAX_ORDINAL} |" in FORMAT
    assert f"| blocks of a data pack | {layout.PACK_MAX_BLOCKS} |" in FORMAT
    assert f"counted once per leaf | {blocks.LEAF_BLOCKS} per present leaf |" in FORMAT
    assert f"window of a zstd frame | 22; {frames._MAX_WINDOW_BYTES} bytes |" in FORMAT
    table_bytes = 4 + 12 * pack._MAX_FRAMES
    assert f"| {pack._MAX_FRAMES}; {table_bytes} bytes |" in FORMAT
    assert f"{layout.PACK_MAX_BYTES} - {pack._TABLES_RESERVE_BYTES} bytes" in FORMAT


def test_the_argon2_parameters_and_bounds_are_the_codes() -> None:
    assert f"a writer uses {keys.MEMORY_KIB} |" in FORMAT
    assert f"| `passes` | number | a writer uses {keys.PASSES} |" in FORMAT
    assert f"| `lanes` | number | a writer uses {keys.LANES} |" in FORMAT
    assert f"| key slot | {keys.MAX_SLOT_BYTES} bytes |" in FORMAT
    bounds = [
        ("memory_kib", keys._MEMORY_BOUNDS),
        ("passes", keys._PASSES_BOUNDS),
        ("lanes", keys._LANES_BOUNDS),
    ]
    for field, allowed in bounds:
        assert f"{allowed[0]} <= `{field}` <= {allowed[-1]}" in FORMAT


def test_the_example_of_drvm_json_is_one() -> None:
    example = re.search(r"```json\n(.*?)```", FORMAT, re.DOTALL)
    assert example is not None
    config = layout.decode_config(example[1].encode())
    assert config.encode().decode() == example[1]


def test_the_table_of_tree_heights_is_the_codes() -> None:
    rows = re.findall(r"^\| up to \d+ \w+ \| (\d+) \| (\d+) \|", FORMAT, re.MULTILINE)
    assert len(rows) == 7
    for leaves, height in rows:
        assert levels(int(leaves)) == int(height)
    assert levels(int(rows[1][0]) + 1) == int(rows[1][1]) + 1
    assert f"height of a disk map | {manifest.MAX_DISK_BYTES}; {rows[-1][1]} |" in FORMAT
    assert f"{layout.FANOUT}^L >= leaves" in FORMAT


def section(heading: str) -> str:
    """From a heading to the next one."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", FORMAT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Manifest", manifest.Manifest),
        ("Key slots", keys.KeySlot),
        ("Drills", DrillResult),
        ("Checks", CheckRecord),
    ],
)
def test_the_fields_of_stored_documents_are_the_codes(heading: str, struct: type) -> None:
    tables = section(heading).split("| field | type | meaning |")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", tables[min(1, len(tables) - 1)], re.M)
    fields = [field for row in rows for field in re.findall(r"\w+", row)]
    assert sorted(fields) == sorted(struct.__struct_fields__)


def test_the_bounds_of_a_drill_are_the_codes() -> None:
    assert f"JSON of at most {MAX_ENCODED_BYTES} bytes" in section("Drills")
    assert f"*long text* up to {2 * MAX_DETAIL_CHARS}" in section("Drills")


def test_the_fields_of_a_disk_are_the_codes() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("Manifest").split("A disk:")[1], re.M)
    fields = [field for row in rows for field in re.findall(r"\w+", row)]
    assert sorted(fields) == sorted(manifest.Disk.__struct_fields__)


# -- FORMAT.md: examples ----------------------------------------------------------------------
VECTORS = {name: bytes.fromhex(re.sub(r"\s", "", value)) for name, value in _VECTOR.findall(FORMAT)}
RID = "00112233445566778899aabbccddeeff"
SALT = b"\x5a" * 32
MASTER = MasterKeys(bytes(range(32)), bytes(range(32, 64)))
SEALER = Sealer(MASTER, RID)
A, B, C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


@pytest.mark.parametrize(
    "purpose",
    ["pack-data", "pack-meta", "point", "final", "drill", "index", "pin", "check", "slot"],
)
def test_the_example_keys_are_derived_so(purpose: str) -> None:
    info = b"drvm " + purpose.encode() + b" " + bytes.fromhex(RID)
    assert VECTORS[f"key {purpose}"] == crypto.derive(MASTER.seal, SALT, info)


def test_the_example_of_a_key_slot() -> None:
    config = layout.RepositoryConfig(0, RID, ())
    kek = keys._stretch(b"correct horse battery staple", SALT, 65536, 3, 4)
    assert VECTORS["slot kek"] == kek
    aead, aad = AESGCM(kek), b"drvm key slot\0" + config.encode()
    wrapped = VECTORS["slot wrapped"]
    assert aead.decrypt(bytes(12), wrapped, aad) == MASTER.seal + MASTER.block_id
    text = config.encode().decode()
    slot = keys.KeySlot("argon2id", 65536, 3, 4, SALT.hex(), wrapped.hex(), text, "")
    assert slot.digest() == VECTORS["slot digest"].hex()
    assert f"no more than {keyring.MAX_SLOTS} of them" in FORMAT


def test_the_example_of_the_paper_form_is_the_example_keys() -> None:
    held = paper.Paper(RID, MASTER)
    assert "\n".join(paper.lines(held)) in FORMAT
    assert paper.read(section("Paper form").splitlines()) == held


def test_the_example_of_the_leaf_digest_key() -> None:
    assert VECTORS["leaf-digest-key"] == SEALER.leaf_digest_key()


def test_the_example_of_a_sealed_piece() -> None:
    cipher = SEALER.cipher(b"pack-data", SALT)
    assert VECTORS["sealed piece"] == cipher.seal(0, 5, b"drvm")


def test_the_example_of_a_sealed_object_opens() -> None:
    name = "final/0123456789abcdef.fedcba9876543210"
    plain = SEALER.open_object(b"final", name, VECTORS["sealed object"])
    assert json.loads(plain) == {"status": "ok", "manifest_sha256": "0" * 64}
    assert len(VECTORS["sealed object"]) == 115


def test_the_examples_of_block_id_and_leaf_digest() -> None:
    hasher = BlockHasher(SEALER.block_id_key(), SEALER.leaf_digest_key())
    ids = hasher.ids(b"\x01" * blocks.BLOCK_BYTES + bytes(blocks.BLOCK_BYTES))
    assert ids.tobytes() == VECTORS["block id"] + bytes(16)
    assert hasher.leaf_digest(ids)[: nodes.DIGEST_BYTES] == VECTORS["leaf digest"]


def test_the_example_of_an_index_object() -> None:
    keys = np.array([0x0807060504030201, 0xF7F6F5F4F3F2F1F0], dtype=np.uint64)
    none = np.zeros(0, dtype=np.int64)
    packs = [PackHooks(A, keys, np.array([0, 3])), PackHooks(B, keys[:0], none)]
    assert VECTORS["index object"] == objects.encode(packs)
    assert (
        f"| packs, hooks of an index object | {objects.MAX_PACKS}, {objects.MAX_HOOKS} |" in FORMAT
    )
    assert f"no more than {objects.SMALL_PACK_BLOCKS};" in FORMAT


def test_the_example_of_a_node() -> None:
    children = {
        0: Child(NewBlob(0, 5), b"\x10" * 16, (A,)),
        2: Child(BlobRef(C, 7), b"\x12" * 16, (A, B)),
    }
    encoded = nodes.encode_node(
        Node(1, 3, children), lambda ref: ref.pack if isinstance(ref, BlobRef) else None
    )
    assert VECTORS["node"] == encoded


def test_the_example_of_a_leaf() -> None:
    pack_of = np.full(16, ZERO, dtype=np.int64)
    ordinal = np.zeros(16, dtype=np.int64)
    for start, count, number, first in [
        (2, 3, 0, 300),
        (5, 2, 1, 64),
        (9, 1, 0, 307),
        (10, 1, 1, 67),
        (12, 4, 0, 10),
    ]:
        pack_of[start : start + count] = number
        ordinal[start : start + count] = np.arange(first, first + count)
    assert VECTORS["leaf"] == encode_leaf(Leaf((A, B), pack_of, ordinal)).data
