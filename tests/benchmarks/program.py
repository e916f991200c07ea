"""stepwatch itself, as whoever has installed it runs it, but with settings, receipts and a socket of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The installed ``stepwatch`` with a home below the benchmark's scratch folder."""

    home: Path
    ffmpeg: str
    """Path, or ``auto``: the one that stepwatch chooses by itself."""

    @classmethod
    def at(cls, home: Path, ffmpeg: str, **more: object) -> Program:
        """Make its home, and write its service file with *more* in it."""
        home.mkdir(parents=True, exist_ok=True)
        program = cls(home=home, ffmpeg=ffmpeg)
        program.service_file.write_text(json.dumps({"version": 1, "ffmpeg": ffmpeg, **more}), encoding="utf-8")
        program.service_file.chmod(0o600)
        return program

    @property
    def service_file(self) -> Path:
        return self.home / "service.yaml"

    @property
    def environment(self) -> Mapping[str, str]:
        places = dict.fromkeys(("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(self.home))
        # An installed program has its bytecode, also where somebody keeps Python from leaving any.
        return {name: value for name, value in {**os.environ, **places}.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def command(self, *arguments: str) -> list[str]:
        return [executable(), *arguments[:1], "-c", str(self.service_file), *arguments[1:]]


def executable() -> str:
    """The script that an installation makes."""
    return str(Path(sys.executable).with_name("stepwatch"))
