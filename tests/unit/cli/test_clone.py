"""How ``drvm clone`` ends."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from drvm.cli.commands import clone
from drvm.cli.main import main
from tests.unit.cli.test_views import POINT


@pytest.mark.parametrize("code", [0, 3])
def test_a_clone_ends_with_what_was_found_in_the_repository(monkeypatch, code):
    done = []
    monkeypatch.setattr(clone, "opened", lambda *_: contextlib.nullcontext(SimpleNamespace()))
    monkeypatch.setattr(clone, "chosen_point", lambda *_: SimpleNamespace(manifest=POINT))
    monkeypatch.setattr(clone, "restore_machine", lambda *given, **_: done.append(given[3]))
    monkeypatch.setattr(clone, "ending", lambda _: code, raising=False)
    assert main(["clone", "web1", "web2"]) == code
    assert [(request.identity, request.name) for request in done] == [("clone", "web2")]
