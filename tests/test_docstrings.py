"""Every public object is documented in numpydoc form, with the defaults its signature has."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from enum import EnumType
from typing import Any

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import torchlinreg

NOT_ASKED_FOR = {
    "GL01",  # the summary stands on the line of the opening quotes
    "ES01",  # not everything needs an extended summary,
    "SA01",  # nor a See Also
    "SA04",
    "RT02",  # what is returned may have a name
}
# A method is shown by the example of its class; nobody calls an enumeration's constructor.
NOT_ASKED_OF_METHODS = {"EX01"}
NOT_ASKED_OF_ENUMERATIONS = {"EX01", "PR01"}

INTERNAL = {"torchlinreg._solvers"}  # users choose a solver by name, through the estimator


def public_modules() -> Iterator[str]:
    yield "torchlinreg"
    for module in pkgutil.walk_packages(torchlinreg.__path__, "torchlinreg."):
        private = any(part.startswith("_") for part in module.name.split("."))
        if not private and module.name not in INTERNAL:
            yield module.name


MODULES = list(public_modules())


def public_objects(owner_name: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield the functions and classes of a module, and the methods that its classes define."""
    for name in getattr(owner, "__all__", vars(owner)):
        value = inspect.getattr_static(owner, name)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if (value.__doc__ or "").startswith("See `"):  # an override, documented where it is first defined
            continue
        yield f"{owner_name}.{name}", value
        if inspect.isclass(value):
            yield from public_objects(f"{owner_name}.{name}", value)


OBJECTS = {
    name: value
    for module in MODULES
    for name, value in public_objects(module, importlib.import_module(module))
}


def test_the_estimator_and_the_loaders_are_among_the_public_objects():
    assert {
        "torchlinreg.TorchLinearRegressor",
        "torchlinreg.TorchLinearRegressor.fit",
        "torchlinreg.TorchLinearRegressorCV.fit",
        "torchlinreg.regularization_path",
        "torchlinreg.datasets.load_hubble",
    } <= set(OBJECTS)


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is_and_what_it_exports(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert all(hasattr(module, exported) for exported in module.__all__)


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_is_valid_numpydoc(name):
    skipped = set(NOT_ASKED_FOR)
    if name.rpartition(".")[0] in OBJECTS:
        skipped |= NOT_ASKED_OF_METHODS
    if isinstance(OBJECTS[name], EnumType):
        skipped |= NOT_ASKED_OF_ENUMERATIONS
    errors = [f"{code}: {text}" for code, text in validate(name)["errors"] if code not in skipped]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if not isinstance(value, EnumType)])
def test_documented_defaults_are_those_of_the_signature(name):
    documented = {
        parameter.name: parameter.type.partition("default=")[2]
        for parameter in NumpyDocString(inspect.getdoc(OBJECTS[name]) or "")["Parameters"]
    }
    for parameter in inspect.signature(OBJECTS[name]).parameters.values():
        if parameter.default is not parameter.empty:
            text = documented.get(parameter.name)
            assert text, f"{parameter.name} should say default={parameter.default!r}"
            assert ast.literal_eval(text) == parameter.default
