"""Which policy protects which machine: the first one that covers it.

By name and host as libvirt tells them, and by tags that stand in the machine's own definition: the
word ``#gold`` in its title, or metadata of drvm's own. A machine is followed by its UUID; of one
that no host has any more, its newest point's definition tells the tags. Where nobody can tell which
policy it is, that is said, and nothing is removed (docs/adr/045-selection-and-jobs.md).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drvm.config.policies import PolicyConfig
from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError, RestoreError
from drvm.host.model import Domain
from drvm.repository.manifest import Manifest, StoredBlob
from drvm.restore.machine.source import parse
from drvm.snapshot.imagefiles import ImageFilesEngine

TAGS_NAMESPACE = "urn:drvm:tags"
MAX_TAGS = 64
_MAX_TEXT_CHARS = 4096
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""As the config's: what matches no policy's tag is no tag."""


@dataclass(frozen=True, slots=True)
class Choice:
    """``policy``: ``None`` where none covers the machine. ``doubt``: why nobody can tell."""

    policy: PolicyConfig | None = None
    doubt: str = ""


def choose(
    policies: Sequence[PolicyConfig], vm: str, tags: frozenset[str] | None, host: str | None
) -> Choice:
    """``tags`` or ``host`` of ``None``: not known."""
    for policy in policies:
        covers = policy.covers(vm, tags, host)
        if covers is None:
            what = "host" if tags is not None else "tags" if host is not None else "tags and host"
            return Choice(None, f"its {what} can't be told, and may make policy {policy.name} its")
        if covers:
            return Choice(policy)
    return Choice()


def policy_of_name(policies: Sequence[PolicyConfig], name: str) -> PolicyConfig | None:
    """Of what is no machine of a host, such as image files: by its name alone."""
    return choose(policies, name, frozenset(), "").policy


def choice_of_domain(policies: Sequence[PolicyConfig], host_uri: str, domain: Domain) -> Choice:
    """As its stored definition says, not the one of this run. Raises ``UnknownVm`` and the host's
    errors; a definition that can't be read leaves a doubt where policies have tags."""
    tags: frozenset[str] | None = frozenset()
    if any(policy.tags for policy in policies):
        tags = _tags_or_none(domain.xml(inactive=True))
    return choose(policies, domain.name, tags, host_uri)


def policy_of_domain(
    policies: Sequence[PolicyConfig], host_uri: str, domain: Domain
) -> PolicyConfig | None:
    """The same, where a doubt means none."""
    return choice_of_domain(policies, host_uri, domain).policy


class PointPolicies:
    """The policies of points. ``there``: what is known of the machines that hosts have, by UUID;
    ``away``: the hosts that did not answer. ``blob`` reads a definition."""

    def __init__(
        self,
        policies: Sequence[PolicyConfig],
        there: Mapping[str, Sequence[Choice]],
        away: Sequence[str],
        blob: Callable[[StoredBlob], bytes],
    ) -> None:
        self._policies = policies
        self._there = there
        self._away = away
        self._tags = functools.lru_cache(maxsize=4096)(functools.partial(_stored_tags, blob))

    def of(self, manifest: Manifest) -> Choice:
        """Of the machine of a point; where several tell of one machine, ask with the newest."""
        if names_suffice(self._policies) or manifest.engine == ImageFilesEngine.name:
            return choose(self._policies, manifest.vm, frozenset(), "")
        if manifest.vm_uuid in self._there:
            found = self._there[manifest.vm_uuid]
            if all(choice == found[0] for choice in found):
                return found[0]
            return Choice(None, "two hosts have it, under different policies")
        if self._away:
            return Choice(None, f"{self._away[0]} does not answer, and may have it")
        tags = frozenset[str]()
        if any(policy.tags for policy in self._policies):
            stored = self._tags(manifest.definition) if manifest.definition is not None else None
            if stored is None:
                return choose(self._policies, manifest.vm, None, None)
            tags = stored
        return choose(self._policies, manifest.vm, tags, None)


def names_suffice(policies: Sequence[PolicyConfig]) -> bool:
    """Then a point's own name tells its policy, and no host is asked for it."""
    return not any(policy.tags or policy.hosts for policy in policies)


def tags_of(domain_xml: str) -> frozenset[str]:
    """At most ``MAX_TAGS``. Raises ``RestoreError`` for what is no definition of a machine."""
    tree = parse(domain_xml, hint="virsh dumpxml --inactive VM shows it")
    title = (tree.findtext("title") or "")[:_MAX_TEXT_CHARS].split()
    words = [word[1:] for word in title if word.startswith("#")]
    for group in tree.iterfind(f"metadata/{{{TAGS_NAMESPACE}}}tags"):
        words += (group.text or "")[:_MAX_TEXT_CHARS].split()
    tags = dict.fromkeys(word for word in words if _TAG.fullmatch(word))
    return frozenset(list(tags)[:MAX_TAGS])


def _tags_or_none(domain_xml: str) -> frozenset[str] | None:
    try:
        return tags_of(domain_xml)
    except RestoreError:
        return None


def _stored_tags(
    blob: Callable[[StoredBlob], bytes], definition: StoredBlob
) -> frozenset[str] | None:
    try:
        return _tags_or_none(blob(definition).decode())
    except (RepositoryError, ObjectMissing, ObjectDamaged, UnicodeDecodeError):
        return None
