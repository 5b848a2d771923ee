"""The Python blocks of the README run, in order: those under one second-level heading make one program.

Only blocks that begin with ```python are run; ```text, ```bash and ```pycon are for reading.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
FENCE = re.compile(r"( *)(```+|~~~+)(.*)")


def programs_of(text: str) -> dict[str, str]:
    """Return heading -> program; every line stands at the place it has in the text, so that errors name README lines."""
    programs: dict[str, list[str]] = {}
    heading = ""
    fence: tuple[str, str, bool] | None = None
    for number, line in enumerate(text.splitlines()):
        found = FENCE.fullmatch(line)
        if fence is not None:
            indent, mark, is_python = fence
            if found and found[2].startswith(mark) and not found[3].strip():
                fence = None
            elif is_python:
                lines = programs.setdefault(heading, [])
                lines.extend([""] * (number - len(lines)))
                lines.append(line.removeprefix(indent))
        elif found:
            fence = (found[1], found[2], found[3].strip() == "python")
        elif line.startswith(("# ", "## ")):
            heading = line.lstrip("# ").strip()
    return {name: "\n".join(lines) + "\n" for name, lines in programs.items()}


PROGRAMS = programs_of(README.read_text("utf-8"))


@pytest.mark.parametrize("heading", PROGRAMS)
def test_runs(heading: str, tmp_path: Path) -> None:
    script = tmp_path / "README.md"
    script.write_text(PROGRAMS[heading], "utf-8")
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=work, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_blocks_under_one_heading_make_one_program() -> None:
    text = """# Title
```python
a = 1
```
## Use
```bash
rm -rf /
```
### Deeper
```python
b = 2
```
and

   ```python
   if b:
       c = "```"
   ```
## Other
~~~python
d = 4
~~~
```text
not python
```
"""
    found = programs_of(text)
    assert list(found) == ["Title", "Use", "Other"]
    assert found["Use"].split("\n")[10] == "b = 2"
    assert found["Use"].split() == ["b", "=", "2", "if", "b:", "c", "=", '"```"']
    assert found["Other"].split("\n")[20] == "d = 4"
    for program in found.values():
        compile(program, "README.md", "exec")
