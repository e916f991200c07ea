"""The house: imports go one way, the core touches nothing, and nobody waits for what a command does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stepwatch"
MODULES = sorted(PACKAGE.rglob("*.py"))


def calls(path: Path) -> list[tuple[str, int]]:
    """Every function that a module calls, as it is written, with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_imports_go_one_way() -> None:
    """The contracts in pyproject.toml hold: layers, a pure core, one module that knows ffmpeg-python."""
    check = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", check], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SPEAKS = ("report.py", "__main__.py")
"""`report`, and what answers ``--help`` and ``--version`` before that is imported."""


@pytest.mark.parametrize("path", [path for path in MODULES if path.name not in SPEAKS], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_report_prints(path: Path) -> None:
    """No other module writes to a stream that a person reads."""
    printers = ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "sys.stderr.buffer.write")
    assert not [call for call in calls(path) if call[0] in printers]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "core"], ids=lambda path: path.name)
def test_the_core_asks_no_clock_and_opens_no_file(path: Path) -> None:
    """What needs no import either: open(), the time of day, and methods of paths that touch the disk."""
    names = [name for name, _ in calls(path)]
    assert "open" not in names
    assert not [name for name in names if name.endswith((".now", ".utcnow", ".today", ".read_text", ".read_bytes", ".stat", ".exists", ".iterdir"))]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["render", "--help"], ["completion", "zsh"]], ids=" ".join)
def test_help_loads_nothing_but_click(arguments: list[str]) -> None:
    """Help, version and completion load click and the standard library, so they answer at once."""
    script = f"""
import sys
from stepwatch.cli import run
code = run({arguments!r})
foreign = {{name.partition('.')[0] for name in sys.modules}} - set(sys.stdlib_module_names)
print(code, *sorted(foreign), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"], capture_output=True, text=True, check=True
    )
    assert set(done.stderr.split()) <= {"0", "__main__", "click", "stepwatch", "colorama"}, done.stderr
