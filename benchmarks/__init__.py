"""Measurements behind the figures that the README quotes; not run by pytest."""
