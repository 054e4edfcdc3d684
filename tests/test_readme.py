"""The README keeps its word: its code runs, its tables are the results', its map names every module."""

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


def test_map_names_every_module():
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "torchlinreg").rglob("*.py")]
    unnamed = [
        name
        for name in modules
        if f"`{name}`" not in README
        and f"`{Path(name).parent}/`" not in README
        and not name.endswith("/__init__.py")
    ]
    assert not unnamed


def test_test_command_is_the_one_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-e ".[test]"' in README
    assert '-e ".[test]"' in script
    assert "-m pytest" in README
    assert "-m pytest" in script
