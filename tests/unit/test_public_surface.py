from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agentdb
import agentdb.errors

HEAVY = (
    "apsw",
    "httpx",
    "lance",
    "lancedb",
    "langchain",
    "langchain_core",
    "langgraph",
    "llama_index",
    "msgpack",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "sentence_transformers",
    "tenacity",
    "torch",
    "transformers",
    "typer",
    "zstandard",
)
BLOCKED = "import sys\nfor name in {names!r}: sys.modules[name] = None  # makes `import name` raise\n"
REPORT = "\nprint(*sorted(name for name in {names!r} if sys.modules.get(name)))"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_else() -> None:
    assert run("import sys, agentdb" + REPORT.format(names=HEAVY)) == ""
    own = run("import sys, agentdb; print(*sorted(n for n in sys.modules if n.startswith('agentdb.')))")
    assert own == ""


def test_import_works_where_everything_else_is_absent() -> None:
    program = (
        BLOCKED.format(names=HEAVY)
        + "import agentdb\nagentdb.AgentDBError, agentdb.Config(), agentdb.Hit, dir(agentdb)"
    )
    run(program)


def test_embedding_works_where_lance_and_torch_are_absent() -> None:
    absent = [name for name in HEAVY if name != "numpy"]
    program = "import agentdb; assert agentdb.load_embedder('hashing').embed(['a cat']).shape == (1, 256)"
    run(BLOCKED.format(names=absent) + program)


def test_adapters_load_no_framework_on_import() -> None:
    names = [name for name in HEAVY if name != "numpy"]
    assert run("import sys, agentdb_embedders" + REPORT.format(names=names)) == ""


def test_local_embedder_says_what_is_missing() -> None:
    program = (
        "import agentdb\n"
        "try: agentdb.load_embedder()\n"
        "except agentdb.MissingDependencyError as error: print(error, isinstance(error, ImportError))"
    )
    told = run(BLOCKED.format(names=["torch", "sentence_transformers"]) + program)
    assert "agentdb-lance[local]" in told
    assert told.endswith("True")


@pytest.mark.parametrize("name", agentdb.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(agentdb, name) is getattr(agentdb, name)


def test_names_are_sorted_and_unique() -> None:
    assert list(agentdb.__all__) == sorted(set(agentdb.__all__))
    assert set(agentdb.__all__) <= set(dir(agentdb))
    assert sorted(agentdb._HOMES) == agentdb.__all__


def test_type_checkers_see_the_same_names_from_the_same_places() -> None:
    tree = ast.parse(Path(agentdb.__file__).read_text("utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == agentdb._HOMES


def test_every_error_is_public() -> None:
    assert set(agentdb.errors.__all__) <= set(agentdb.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = agentdb.nothing
    with pytest.raises(ImportError):
        from agentdb import nothing  # noqa: F401


def test_submodules_are_still_found() -> None:
    from agentdb import errors

    assert errors.AgentDBError is agentdb.AgentDBError
