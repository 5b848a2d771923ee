"""The two-tier storage engine: SQLite takes every write, Lance holds what is at rest."""

import os

# Lance warns on the standard error of whoever embeds us, about such things as empty partitions. It reads this when it loads.
os.environ.setdefault("LANCE_LOG", "error")
