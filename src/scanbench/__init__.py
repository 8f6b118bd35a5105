"""Scanbench: honest comparison of deep-learning models on microscope scans."""

__version__ = "0.1.0"

#: Packages that hold a study; `study` of a configuration or a run names one.
STUDIES = ("tipstate",)
