"""The server's side of a served point, as nbdkit calls it."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path

from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.restore.served.hints import write_hint
from drvm.restore.served.order import tell_order
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring.jobs import take_image_point
from drvm.wiring.serving import open_order, service_of
from tests.appliance import make_appliance


class Ears:
    """A child as far as it listens."""

    heard = b""

    def tell(self, line: str) -> None:
        self.heard += line.encode() + b"\n"


def test_no_thread_works_before_the_server_has_its_standard_input_and_output(
    tmp_path: Path,
) -> None:
    image, child = tmp_path / "disk.raw", Ears()
    image.write_bytes(random.Random(1).randbytes(2 * MIB))
    with make_appliance(tmp_path, f"file://{tmp_path}/store", None).wiring() as wiring:
        wiring.create_repository()
        take_image_point(wiring, "disk", [ImageFile(image, "raw")], NoProgress())
        repository = wiring.repository()
        (point,) = repository.points().points
        hints = wiring.cache_dir / repository.id / "boots"
        write_hint(hints / f"{point.manifest.vm_uuid}.disk0", set(range(16)))
        tell_order(child, service_of(wiring, point, boot=True).order)  # type: ignore[arg-type]
    before = set(threading.enumerate())
    serving = open_order(io.BytesIO(child.heard), lambda line: None)
    try:
        assert set(threading.enumerate()) <= before
        serving.begin()
        assert set(threading.enumerate()) - before, "what the last boot read is fetched"
    finally:
        serving.close()
