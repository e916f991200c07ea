"""The benchmark of the hook runs, also where there is no torch."""

from __future__ import annotations

import importlib.util
import json

from tests.benchmarks import hook


def test_the_benchmark_runs_and_says_what_it_could_not_measure() -> None:
    """A quick round gives rows with milliseconds, and a sentence for each part whose packages are not there."""
    (result,) = hook.run(quick=True)
    json.dumps(result)
    assert result["rows"]
    assert all(row["ms"] > 0 for row in result["rows"])
    absent = {name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None}
    assert set(result["missing"]) == absent
    said = hook.text(result)
    assert all(f"{name} is not installed" in said for name in absent)
    assert (hook.OURS in said) == ("torch" not in absent)
