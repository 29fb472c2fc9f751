"""The version, read by nothing but the package itself and the records it writes."""

__version__ = "0.1.0"
