"""The one place that holds the version of distilljax."""

__version__ = "0.1.0"
