from collections.abc import Callable

import pytest

from drvm.report.input import ReportInput, VmRow
from drvm.report.model import DrillResult
from tests.unit.report.results import PNG, make_drill, make_report, make_row


@pytest.fixture
def drill() -> Callable[..., DrillResult]:
    return make_drill


@pytest.fixture
def row() -> Callable[..., VmRow]:
    return make_row


@pytest.fixture
def report() -> Callable[..., ReportInput]:
    return make_report


@pytest.fixture
def png() -> bytes:
    return PNG
