"""Scanbench: honest comparison of deep-learning models on microscope scans."""

__version__ = "0.1.0"
