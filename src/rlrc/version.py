"""The version of this package, on the ground floor, so that whoever writes it down need not import the package."""

__version__ = "0.1.0"
