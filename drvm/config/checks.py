"""Checks of drills. Which kinds there are, the config is told: each is a dataclass whose fields, of
types of ``fields`` and of this file, say what may be written below the name of the kind."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from ipaddress import ip_interface
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    create_model,
    model_validator,
)

from drvm.config.fields import DurationText, Text, matching
from drvm.config.section import Section

Kinds = Mapping[str, type]
"""The key of each kind of check, and the dataclass that makes it."""

CHECKS = "checks"
"""The key of what tells the kinds, a ``Callable[[], Kinds]``, in the context of a validation."""


def _read_guest_address(value: object) -> str:
    try:
        if not isinstance(value, str) or "%" in value:  # the link is the drill's own
            raise ValueError
        found = ip_interface(value)
    except ValueError:
        raise ValueError(f"{value!r} is no address such as 192.0.2.7 or 192.0.2.7/24") from None
    ip = found.ip
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified:
        raise ValueError(f"{value} can't be the address of a guest")
    return value


GuestAddress = Annotated[str, BeforeValidator(_read_guest_address)]
GuestPath = Annotated[
    str, matching(r"[^\x00-\x1f]{1,1000}", "a path without control characters, 1000 at most")
]
UrlPath = Annotated[
    str, matching(r"/[!-\"$-~]{0,999}", "a path such as /health, in ASCII, without blanks and '#'")
]
HostName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", "a host name such as www.example.org"
    ),
]
Sha256 = Annotated[str, matching(r"[0-9a-fA-F]{64}", "64 hexadecimal digits, as of sha256sum")]
Port = Annotated[int, Field(ge=1, le=65535)]
Status = Annotated[int, Field(ge=100, le=599)]
TimeLimit = Annotated[DurationText, Field(alias="timeout")]
Statuses = Annotated[tuple[Status, ...], Field(min_length=1, max_length=20)]
ExitCode = Annotated[int, Field(ge=0, le=255)]
Command = Annotated[tuple[Text, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """One check, made by the class of its ``kind``, and the machines that it is for."""

    kind: str
    check: Any
    vms: tuple[str, ...] = ("*",)


class CheckSection(Section):
    """What is written below the name of a kind."""

    made_by: ClassVar[type]

    def check(self) -> Any:
        """Raises ``ValueError``, as the kind's class does."""
        return self.made_by(**{name: getattr(self, name) for name in type(self).model_fields})

    @model_validator(mode="after")
    def _makes_a_check(self) -> Self:
        self.check()
        return self


class AnyCheckSection(Section):
    """A check as it is written: a key for each kind."""

    vms: tuple[Text, ...] = ("*",)

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if len(self.said()) != 1:
            known = ", ".join(self.kinds())
            raise ValueError(f"a check is exactly one of: {known} (write agent: {{}})")
        return self

    @classmethod
    def kinds(cls) -> list[str]:
        return [key for key in cls.model_fields if key != "vms"]

    def said(self) -> list[tuple[str, CheckSection]]:
        found = [(kind, getattr(self, kind)) for kind in self.kinds()]
        return [(kind, section) for kind, section in found if section is not None]


def section_of_checks(kinds: Kinds) -> type[AnyCheckSection]:
    return _section_of_checks(tuple(kinds.items()))


@functools.cache
def _section_of_checks(kinds: tuple[tuple[str, type], ...]) -> type[AnyCheckSection]:
    fields: dict[str, Any] = {kind: (section_of(made_by) | None, None) for kind, made_by in kinds}
    return create_model("AnyCheck", __base__=AnyCheckSection, **fields)


@functools.cache
def section_of(made_by: type) -> type[CheckSection]:
    """The fields of the dataclass by which checks differ: not its tools (``compare=False``)."""
    types = typing.get_type_hints(made_by, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (types[field.name], ... if field.default is MISSING else field.default)
        for field in dataclasses.fields(made_by)
        if field.compare
    }
    section = create_model(made_by.__name__, __base__=CheckSection, **fields)
    section.made_by = made_by
    return section


def _read_check(value: object, info: ValidationInfo) -> CheckConfig:
    if isinstance(value, CheckConfig):
        return value
    kinds: Kinds = (info.context or {}).get(CHECKS, dict)()
    section = section_of_checks(kinds).model_validate(value, context=info.context)
    ((kind, said),) = section.said()
    return CheckConfig(kind, said.check(), section.vms)


def _write_check(value: CheckConfig) -> dict[str, Any]:
    made_by: type = type(value.check)
    section = section_of(made_by)
    names = section.model_fields
    said = section.model_construct(**{name: getattr(value.check, name) for name in names})
    written = said.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"vms": list(value.vms), value.kind: written}


AnyCheck = Annotated[
    CheckConfig,
    PlainValidator(_read_check, json_schema_input_type=dict[str, Any]),
    PlainSerializer(_write_check, return_type=dict[str, Any]),
]
