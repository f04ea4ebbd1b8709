"""The policies that docs/S3.md prints, as it prints them."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.architecture.source import ROOT

_BLOCK = re.compile(r"<!-- policy: ([a-z]+) -->\n+```json\n(.*?)```", re.DOTALL)


def statements(name: str, bucket: str) -> list[dict[str, Any]]:
    """Those of ``writer``, ``collector`` or ``reader``."""
    text = dict(_BLOCK.findall((ROOT / "docs/S3.md").read_text("utf-8")))[name]
    found: list[dict[str, Any]] = json.loads(text.replace("BUCKET", bucket))["Statement"]
    return found
