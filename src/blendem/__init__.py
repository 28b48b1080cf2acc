"""Deblending of galaxies in multi-band images with a prior learned from them."""

from importlib.metadata import version

__version__ = version("blendem")
