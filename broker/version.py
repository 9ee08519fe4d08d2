"""The version of the installed distribution, in one place: pyproject.toml."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]

try:
    VERSION = version("iroh-broker")
except PackageNotFoundError:  # a source tree on the path, not installed
    VERSION = "0+unknown"
