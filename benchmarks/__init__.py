"""Measured figures, each beside a peer in the same run; see ``python -m benchmarks --help``."""

import os
from pathlib import Path

if "avx512f" in Path("/proc/cpuinfo").read_text():
    # Some peers bring an OpenBLAS that does not know newer processors and would be slow for that reason alone.
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
