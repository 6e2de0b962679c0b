"""Diffusion policies for robot action generation."""

__version__ = "0.1.0"
