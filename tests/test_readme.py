"""The README keeps its word: its code runs, its tables are the results'; the map of the code is whole."""

import re
from pathlib import Path

import pytest

from benchmarks import readme_tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})


def test_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert readme_tables.main(["--check"]) == 0


def test_map_names_every_package_and_its_modules():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `torchlinreg/")}
    package = ROOT / "torchlinreg"
    for path in package.rglob("*.py"):
        if path.stem.startswith("__") or path.is_relative_to(package / "datasets"):
            continue
        top = path.relative_to(package).parts[0]
        if path.parent == package:
            assert f"torchlinreg/{top}" in rows
        else:
            assert f"`{path.stem}`" in rows[f"torchlinreg/{top}/"]


def test_test_command_is_the_one_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-e ".[test]"' in README
    assert '-e ".[test]"' in script
    assert "-m pytest" in README
    assert "-m pytest" in script
