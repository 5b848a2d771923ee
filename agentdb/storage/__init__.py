"""The two-tier storage engine: SQLite takes every write, Lance holds what is at rest."""
