"""Exact similarity: one specification in numpy, and implementations that are held equal to it."""
