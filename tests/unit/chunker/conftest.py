"""Every kernel that can run here: the reference, and the native one in each of its widths."""

from __future__ import annotations

import pytest

from drvm.chunker.kernel import Kernel, reference_probe, reference_scan


@pytest.fixture(scope="session", params=["python", 4, 8, 16])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "python":
        return Kernel("python", reference_scan, reference_probe)
    _kernel = pytest.importorskip("drvm.chunker._kernel", reason="the kernel is not compiled")
    if request.param > _kernel.LANES:
        pytest.skip(f"this CPU has no vectors of {request.param} words")

    def scan(*buffers: bytes) -> int:
        return _kernel.scan(*buffers, request.param)

    return Kernel(f"native, {request.param} lanes", scan, _kernel.probe)
