"""A fault of a store is always of a kind: whoever catches it knows what is known."""

from __future__ import annotations

import ast

from drvm.core import errors
from tests.architecture.source import sources

KINDS = {
    errors.ObjectMissing,
    errors.ObjectDamaged,
    errors.ObjectExists,
    errors.StoreRefused,
    errors.StoreUnreachable,
}


def test_every_store_error_is_of_one_kind_and_only_the_unreachable_is_tried_again() -> None:
    found = {errors.StoreError}
    for kind in list(vars(errors).values()):
        if isinstance(kind, type) and issubclass(kind, errors.StoreError):
            found.add(kind)
    for error in found - {errors.StoreError}:
        (mine,) = [kind for kind in KINDS if issubclass(error, kind)]
        assert error.retryable == (mine is errors.StoreUnreachable)


def test_nobody_raises_a_store_error_of_no_kind() -> None:
    made = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("StoreError", "errors.StoreError")
    ]
    assert made == []
