"""What is imported when: nothing heavy by ``import torchlinreg``, nothing upward inside it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from itertools import groupby
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchlinreg"

# Each module imports only from those before it. A new file takes its place here.
ORDER = [
    "torchlinreg.datasets._loaders",
    "torchlinreg.datasets",
    "torchlinreg._checks",
    "torchlinreg._linalg.double_double",
    "torchlinreg._linalg.threads",
    "torchlinreg._linalg.gram",
    "torchlinreg._linalg.sparse_gram",
    "torchlinreg._linalg.cholesky",
    "torchlinreg._linalg",
    "torchlinreg._data.rows",
    "torchlinreg._data",
    "torchlinreg._moments.moments",
    "torchlinreg._moments.exact",
    "torchlinreg._moments.gradient",
    "torchlinreg._moments.wide",
    "torchlinreg._moments.combinations",
    "torchlinreg._moments.standardised",
    "torchlinreg._moments.accumulated",
    "torchlinreg._moments",
    "torchlinreg.losses",
    "torchlinreg._objective.solution",
    "torchlinreg._objective.penalty",
    "torchlinreg._objective.problem",
    "torchlinreg._objective.evaluate",
    "torchlinreg._objective",
    "torchlinreg._solvers.least_squares.dominant_rows",
    "torchlinreg._solvers.least_squares.basis",
    "torchlinreg._solvers.least_squares.dependence",
    "torchlinreg._solvers.least_squares.minimum_norm",
    "torchlinreg._solvers.least_squares.basis_fit",
    "torchlinreg._solvers.least_squares.normal_equations",
    "torchlinreg._solvers.least_squares.dual",
    "torchlinreg._solvers.least_squares.whitening",
    "torchlinreg._solvers.least_squares",
    "torchlinreg._solvers.least_distance",
    "torchlinreg._solvers.null_space",
    "torchlinreg._solvers.best_constant",
    "torchlinreg._solvers.penalised.quadratic",
    "torchlinreg._solvers.penalised.units",
    "torchlinreg._solvers.penalised.refinement",
    "torchlinreg._solvers.penalised.nearest",
    "torchlinreg._solvers.coordinates",
    "torchlinreg._solvers.penalised.bounded",
    "torchlinreg._solvers.interior_point.program",
    "torchlinreg._solvers.interior_point.vertex",
    "torchlinreg._solvers.interior_point.optimal_face",
    "torchlinreg._solvers.interior_point.interior_point",
    "torchlinreg._solvers.interior_point",
    "torchlinreg._solvers.proximal_newton.points",
    "torchlinreg._solvers.proximal_newton.kinks",
    "torchlinreg._solvers.proximal_newton.convex",
    "torchlinreg._solvers.proximal_newton.model",
    "torchlinreg._solvers.proximal_newton.certificate",
    "torchlinreg._solvers.proximal_newton.proximal_newton",
    "torchlinreg._solvers.proximal_newton.recession",
    "torchlinreg._solvers.proximal_newton.by_rows",
    "torchlinreg._solvers.proximal_newton",
    "torchlinreg._solvers.newton.mean_loss",
    "torchlinreg._solvers.newton.certificate",
    "torchlinreg._solvers.newton.shortest",
    "torchlinreg._solvers.newton.newton",
    "torchlinreg._solvers.newton",
    "torchlinreg._solvers.penalised.active_set",
    "torchlinreg._solvers.penalised",
    "torchlinreg._solvers.tie_break",
    "torchlinreg._solvers",
    "torchlinreg._parameters",
    "torchlinreg._training.optimum",
    "torchlinreg._training.coordinates",
    "torchlinreg._training.optimizers",
    "torchlinreg._training.objectives",
    "torchlinreg._training.epochs",
    "torchlinreg._training.row_epochs",
    "torchlinreg._training.loop",
    "torchlinreg._training.checkpoint",
    "torchlinreg._training.report",
    "torchlinreg._training.plan",
    "torchlinreg._training",
    "torchlinreg._selection.path",
    "torchlinreg._selection.folds",
    "torchlinreg._selection.scores",
    "torchlinreg._selection.search",
    "torchlinreg._selection",
    "torchlinreg._estimator",
    "torchlinreg._estimator_cv",
    "torchlinreg.callbacks",
    "torchlinreg",
    "torchlinreg._cli.table",
    "torchlinreg._cli.main",
    "torchlinreg._cli",
    "torchlinreg.__main__",
]

# The packages, and the modules beside them, as imports run: each from those before it only.
PACKAGES = [
    "datasets",
    "_checks",
    "_linalg",
    "_data",
    "_moments",
    "losses",
    "_objective",
    "_solvers",
    "_parameters",
    "_training",
    "_selection",
    "_estimator",
    "_estimator_cv",
    "callbacks",
    "",
    "_cli",
    "__main__",
]

HEAVY = ["dask", "matplotlib", "pandas", "polars", "pyarrow", "statsmodels"]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str) -> Iterator[str]:
    """Yield the modules of the package that one of them imports, inside functions too."""
    path = MODULES[name]
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), parent)
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                if submodule in MODULES:
                    yield submodule
                elif source in MODULES:
                    yield source


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_down_the_order(name):
    upward = [other for other in imported_modules(name) if ORDER.index(other) >= ORDER.index(name)]
    assert not upward, f"{name} imports {upward}, which come after it in ORDER"


def test_modules_of_a_package_stand_together_in_the_order_of_packages():
    packages = [name.removeprefix("torchlinreg").removeprefix(".").partition(".")[0] for name in ORDER]
    assert [package for package, _ in groupby(packages)] == PACKAGES


def test_no_module_is_a_drawer_for_everything():
    drawers = {"utils", "_utils", "misc", "_misc", "common", "_common", "helpers", "_helpers"}
    assert not [name for name in MODULES if name.rpartition(".")[2] in drawers]


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_inside_functions(name):
    def at_import(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or ""
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                pass
            elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from at_import(child)

    tree = ast.parse(MODULES[name].read_text())
    assert not {module.partition(".")[0] for module in at_import(tree)} & set(HEAVY)


@pytest.mark.parametrize(
    "before",
    [
        # Recent scikit-learn itself imports pandas where it finds it: with scikit-learn loaded, the package
        # loads nothing heavy on top.
        "import sklearn.linear_model, torch; HEAVY = set(HEAVY) - set(sys.modules)",
        # It loads without any of it installed.
        pytest.param("sys.modules.update(dict.fromkeys(HEAVY))", marks=pytest.mark.exhaustive),
    ],
    ids=["on top of scikit-learn", "not installed"],
)
def test_import_of_the_package_loads_and_needs_nothing_heavy(before):
    report = "print(*sorted(name for name in HEAVY if sys.modules.get(name)))"
    program = f"import sys; HEAVY = {HEAVY}; {before}; import torchlinreg; {report}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
