"""Measurements and what they are held against. Nothing outside this package imports it."""
