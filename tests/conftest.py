from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("agentdb.testing")

# A file system's pauses are no failure of ours: no deadlines. `--hypothesis-profile=` chooses.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_common)
settings.register_profile("ci", max_examples=100, derandomize=True, print_blob=True, database=None, **_common)
settings.register_profile("long", max_examples=5_000, print_blob=True, **_common)
settings.load_profile("dev")


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    """A path where no database exists yet."""
    return tmp_path / "db"
