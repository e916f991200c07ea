"""What the package knows of hooks: the files that they are made of and the format of what they write."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def sidecar_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``run.json``."""
    schema: dict[str, Any] = json.loads(files("stepwatch").joinpath("hooks", "run.schema.json").read_text(encoding="utf-8"))
    return schema
