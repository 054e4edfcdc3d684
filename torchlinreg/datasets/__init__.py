"""Small published data sets for linear regression, read from files of the package."""

from torchlinreg.datasets._loaders import load_hubble, load_perceptron25, load_plant_richness

__all__ = ["load_hubble", "load_perceptron25", "load_plant_richness"]
