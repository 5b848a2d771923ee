"""The commands, on real databases; `Result.stdout` is what a script would read."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import parquet
from typer.testing import CliRunner

import agentdb
from agentdb import Config, TableSchema, VectorSpec
from agentdb.cli import app

EVERYTHING = TableSchema(
    "everything",
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("part", pa.int64(), nullable=False),
        pa.field("text", pa.large_string()),
        pa.field("flag", pa.bool_()),
        *(pa.field(f"i{bits}", getattr(pa, f"int{bits}")()) for bits in (8, 16, 32, 64)),
        *(pa.field(f"u{bits}", getattr(pa, f"uint{bits}")()) for bits in (8, 16, 32, 64)),
        pa.field("f32", pa.float32()),
        pa.field("f64", pa.float64()),
        pa.field("raw", pa.binary()),
        pa.field("big", pa.large_binary()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("day", pa.date32()),
        pa.field("words", pa.list_(pa.string())),
        pa.field("numbers", pa.list_(pa.uint64())),
        pa.field("times", pa.list_(pa.timestamp("us", tz="UTC"))),
        pa.field("blobs", pa.list_(pa.binary())),
        pa.field("floats", pa.list_(pa.float64())),
        pa.field("v32", pa.list_(pa.float32(), 3)),
        pa.field("v16", pa.list_(pa.float16(), 2)),
        pa.field("meta", pa.json_()),
    ],
    key=["id", "part"],
    indexed=["day"],
)
NOWHERE: dict[str, Any] = {column.name: None for column in EVERYTHING.columns}
ROWS: list[dict[str, Any]] = [
    {
        **NOWHERE,
        "id": 'quote " and \\ and \u2028 and \x01',
        "part": -(2**63),
        "text": "line\nbreak, tab\t, NUL \0, 🐍",
        "flag": False,
        "i8": -128,
        "i16": 32767,
        "i32": -1,
        "i64": 2**63 - 1,
        "u8": 255,
        "u16": 0,
        "u32": 2**32 - 1,
        "u64": 2**64 - 1,
        "f32": float(np.float32(0.1)),
        "f64": 0.1 + 0.2,
        "raw": bytes(range(256)),
        "big": b"",
        "at": datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        "day": date(9999, 12, 31),
        "words": ["", 'a"b', None],
        "numbers": [0, 2**64 - 1, None],
        "times": [datetime(2026, 7, 1, 12, 0, 0, 999_999, tzinfo=UTC), None],
        "blobs": [b"\0\xff", None],
        "floats": [1e-300, -0.0, float("inf")],
        "v32": np.array([0.1, -1e30, 0], np.float32),
        "v16": np.array([0.5, -65504], np.float16),
        "meta": {"a": [1, 1.0, True, None, {"b": 2**70}], "é": "\n", "": {}},
    },
    {**NOWHERE, "id": "nulls", "part": 0},
    {
        **NOWHERE,
        "id": "extremes",
        "part": 1,
        "f32": float("-inf"),
        "f64": float("inf"),
        "words": [],
        "meta": ["Infinity"],
        "text": "Infinity",
    },
    {**NOWHERE, "id": "scalars", "part": 2, "meta": "only a string", "text": ""},
    {**NOWHERE, "id": "scalars", "part": 3, "meta": 7.5},
    {**NOWHERE, "id": "scalars", "part": 4, "meta": False},
]
TYPES = [f"--type={column.name}={column.type_name}" for column in EVERYTHING.columns]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def ok(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*arguments: object, code: int = 1) -> str:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("agentdb: ")
    return result.stderr


def rows_of(path: Path, name: str) -> list[dict[str, Any]]:
    with agentdb.open(path, read_only=True) as db:
        table = db.table(name)
        return [comparable(row) for row in table.scan(order_by=list(table.schema.key))]


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """With vectors as bytes, so that rows compare exactly, and floats by their bits."""
    exact = {}
    for name, value in row.items():
        exact[name] = (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)
    return exact


@pytest.fixture
def full(db_path: Path) -> Path:
    """A database with rows of every type in both tiers."""
    with agentdb.open(db_path) as db:
        table = db.table(EVERYTHING)
        table.put_many(ROWS[:3])
        db.flush()
        table.put_many(ROWS[3:])
    return db_path


# --- export and import ----------------------------------------------------------------------------------------------------


def test_parquet_round_trip_of_every_type(full: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "all.parquet", tmp_path / "other"
    assert ok("export", full, "everything", file) == f"exported 6 rows to {file}\n"
    assert ok("import", other, "again", file) == "imported 6 rows into again\n"
    assert rows_of(other, "again") == rows_of(full, "everything")
    assert len(rows_of(other, "again")) == len(ROWS)
    with agentdb.open(other, read_only=True) as db:
        made = db.table("again").schema
        assert made.columns == EVERYTHING.columns
        assert (made.key, made.indexed) == (EVERYTHING.key, EVERYTHING.indexed)
    # Readable by others, too.
    assert parquet.read_table(file).column("u64").to_pylist().count(2**64 - 1) == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["all.parquet", "db", "other"]


def test_jsonl_round_trip_of_every_type(full: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "all.jsonl", tmp_path / "other"
    ok("export", full, "everything", file)
    ok("import", other, "again", file, "--key", "id", "--key", "part", *TYPES)
    assert rows_of(other, "again") == rows_of(full, "everything")


def test_jsonl_into_a_table_that_exists(full: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "all.jsonl", tmp_path / "other"
    with agentdb.open(other) as db:
        db.table(EVERYTHING).put({"id": "nulls", "part": 0, "text": "replaced"})
        db.table(EVERYTHING).put({"id": "stays", "part": 0})
    ok("export", full, "everything", file)
    ok("import", other, "everything", file)
    assert len(rows_of(other, "everything")) == len(ROWS) + 1
    assert [row for row in rows_of(other, "everything") if row["id"] != "'stays'"] == rows_of(full, "everything")


def test_how_values_go_into_jsonl(full: Path) -> None:
    lines = {
        row["id"]: row for row in map(json.loads, ok("export", full, "everything").splitlines()) if row["part"] < 2
    }
    first, other = lines[ROWS[0]["id"]], lines["extremes"]
    assert first["at"] == "0001-01-01T00:00:00.000001Z"
    assert first["day"] == "9999-12-31"
    assert first["blobs"] == ["AP8=", None]
    assert first["v16"] == [0.5, -65504.0]
    assert first["u64"] == 2**64 - 1
    assert first["meta"] == ROWS[0]["meta"]
    assert (other["f32"], other["f64"], other["text"]) == ("-Infinity", "Infinity", "Infinity")
    assert lines["nulls"]["meta"] is None


def test_types_of_a_new_table_are_found(db_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    rows = [
        {"id": "a", "n": 1, "x": 1, "ok": True, "tags": ["t"], "mixed": 1, "none": None, "day": "2026-01-01"},
        {"id": "b", "n": 2, "x": 0.5, "late": {"k": 1}, "mixed": "one"},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    ok("import", db_path, "notes", file, "--key", "id", "--type", "day=date")
    with agentdb.open(db_path) as db:
        found = {column.name: column.type_name for column in db.table("notes").schema.columns}
        assert found == {
            "day": "date",
            "id": "string",
            "n": "int64",
            "x": "float64",
            "ok": "bool",
            "tags": "json",
            "mixed": "json",
            "none": "json",
            "late": "json",
        }
        assert db.table("notes").require("a")["day"] == date(2026, 1, 1)
        assert db.table("notes").require("b")["late"] == {"k": 1}


def test_parquet_of_others(db_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "others.parquet"
    at = datetime(2026, 1, 1, tzinfo=UTC)
    table = pa.table(
        {
            "id": pa.array(["a", "b"]).dictionary_encode(),
            "at": pa.array([at, None], pa.timestamp("ns", tz="Europe/Berlin")),
            "meta": pa.array(['{"k": 1}', None]),
        }
    )
    parquet.write_table(table, file)
    ok("import", db_path, "others", file, "--key", "id", "--type", "meta=json")
    with agentdb.open(db_path) as db:
        assert db.table("others").require("a") == {"id": "a", "at": at, "meta": {"k": 1}}


def test_many_rows_in_several_batches(db_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentdb.cli._PARQUET_BYTES", 6 << 20)
    schema = TableSchema("wide", [pa.field("id", pa.int64()), pa.field("v", pa.list_(pa.float32(), 256))], key="id")
    values = np.random.default_rng(0).random((20_000, 256), np.float32)
    with agentdb.open(db_path, config=Config(maintenance=False)) as db:
        vectors = pa.FixedSizeListArray.from_arrays(values.ravel(), 256)
        db.table(schema).put_many(pa.table({"id": np.arange(20_000), "v": vectors}))
    file, other = tmp_path / "wide.pq", tmp_path / "other"
    ok("export", db_path, "wide", file)
    ok("import", other, "wide", file)
    with agentdb.open(other) as db:
        table = db.table("wide")
        assert table.count() == 20_000
        assert np.array_equal(table.require(19_999)["v"], values[19_999])
        assert db.verify().ok


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "n": "one"}', "line 3: column n"),
        (b'{"id": "x", "other": 1}', "line 3: the table has no column 'other'"),
        (b'{"id": "x", "at": "yesterday"}', "line 3: column at"),
        (b'{"id": "x", "at": "2026-01-01"}', "line 3: column at"),
        (b'{"id": "x", "id": "y"}', "line 3"),
        (b'{"id": "x"', "line 3 is not valid JSON"),
        (b"[1]", "line 3 is no JSON object"),
        (b"\xff\xfe", "line 3 is not UTF-8"),
        (b'{"id": null}', "line 3: column id"),
    ],
)
def test_a_bad_line_imports_nothing(db_path: Path, tmp_path: Path, line: bytes, message: str) -> None:
    fields = [pa.field("id", pa.string()), pa.field("n", pa.int64()), pa.field("at", pa.timestamp("us", tz="UTC"))]
    with agentdb.open(db_path) as db:
        db.table(TableSchema("notes", fields, key="id")).put({"id": "stays", "n": 0})
    file = tmp_path / "notes.jsonl"
    file.write_bytes(b'{"id": "a", "n": 1}\n{"id": "b"}\n' + line + b"\n")
    assert message in failed("import", db_path, "notes", file)
    assert [row["id"] for row in rows_of(db_path, "notes")] == ["'stays'"]


def test_a_failing_import_makes_no_table(db_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    # The types come from the first thousand rows; the failure comes after a batch was stored.
    lines = [json.dumps({"id": number}) for number in range(10_000)] + ['{"id": "x"}']
    file.write_text("\n".join(lines), "utf-8")
    assert "line 10001: column id" in failed("import", db_path, "notes", file, "--key", "id")
    assert json.loads(ok("info", db_path, "--json"))["tables"].keys().isdisjoint({"notes"})


def test_a_failing_export_leaves_nothing(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "all.jsonl"
    monkeypatch.setattr("agentdb.cli._to_json", full_disk)
    assert "No space left" in failed("export", full, "everything", file)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["db"]
    file.write_text("precious")
    assert "--force" in failed("export", full, "everything", file)
    failed("export", full, "everything", file, "--force")
    assert file.read_text() == "precious"
    monkeypatch.undo()
    ok("export", full, "everything", file, "--force")
    assert file.read_text("utf-8").count("\n") == len(ROWS)


def test_errors_of_import_and_export(full: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "notes.jsonl"
    jsonl.write_text('{"id": 1, "my col": 2}\n')
    assert "no table 'none'" in failed("export", full, "none", tmp_path / "x.parquet")
    assert "--key" in failed("import", full, "new", jsonl)
    assert "--key" in failed("import", tmp_path / "new", "new", jsonl)
    assert not (tmp_path / "new").exists()
    assert "'my col'" in failed("import", full, "new", jsonl, "--key", "id")
    assert "type" in failed("import", full, "new", jsonl, "--key", "id", "--type", "id=huge")
    assert "No such file" in failed("import", full, "new", tmp_path / "none.jsonl", "--key", "id")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and so on")
    failed("import", full, "new", tmp_path / "bad.parquet", "--key", "id")
    failed("export", full, "everything", "--format", "parquet", code=2)
    failed("export", full, "everything", tmp_path / "notes.csv", code=2)
    failed("import", full, "new", jsonl, "--type", "id", code=2)
    failed("import", full, "_states", jsonl, code=2)
    failed("import", full, code=2)
    failed("fly", code=2)


# --- the other commands ---------------------------------------------------------------------------------------------------


def test_info(full: Path) -> None:
    before = sorted(one.name for one in full.rglob("*"))
    shown = ok("info", full)
    assert "everything" in shown
    assert "id, part" in shown
    told = json.loads(ok("info", full, "--json"))
    assert told["format"] == 1
    table = told["tables"]["everything"]
    assert (table["rows"], table["hot_rows"], table["cold_rows"]) == (6, 3, 3)
    assert table["columns"]["v32"] == "vector<float32,3>"
    assert table["key"] == ["id", "part"]
    assert sorted(one.name for one in full.rglob("*")) == before


def test_info_tells_about_collections(db_path: Path) -> None:
    with agentdb.open(db_path, embedder=agentdb.load_embedder("hashing")) as db:
        db.collection("notes", schema={"agent": str}).upsert(["a", "b"], texts=["x", "y"])
        db.collection("late", vectors={"v": VectorSpec(3, "dot"), "t": VectorSpec(2, multi=True)}).set_index("none")
    shown = " ".join(ok("info", db_path).split())
    assert "notes 2 vector 256 float32 cosine" in shown
    assert "v 3 float32 dot, t 2 float16 tokens" in shown
    told = json.loads(ok("info", db_path, "--json"))["collections"]
    assert list(told) == ["late", "notes"]
    assert told["notes"]["embedder"].startswith("hashing")
    assert told["notes"]["promoted"] == {"agent": "string"}
    assert told["notes"]["vectors"]["vector"]["embedded"] is True
    assert told["late"]["indexes"] == {"v": {"choice": "none", "state": {}}}


def test_info_needs_a_database(tmp_path: Path) -> None:
    assert "there is no database" in failed("info", tmp_path / "none")
    (tmp_path / "file").write_text("x")
    failed("info", tmp_path / "file")
    failed("optimize", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_verify(full: Path) -> None:
    assert ok("verify", full).startswith("no problem in ")
    assert json.loads(ok("verify", full, "--json"))["ok"] is True
    data = next(one for one in full.rglob("*.lance") if one.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    result = call("verify", full)
    assert result.exit_code == 1
    assert result.stdout.startswith("everything: ")
    assert " problems in " in result.stdout.splitlines()[-1]
    report = call("verify", full, "--json")
    assert report.exit_code == 1
    assert json.loads(report.stdout)["problems"][0]["table"] == "everything"


def test_optimize(full: Path) -> None:
    assert ok("optimize", full).startswith("optimised: ")
    assert json.loads(ok("info", full, "--json"))["tables"]["everything"]["hot_rows"] == 0


def test_backup_and_restore(full: Path, tmp_path: Path) -> None:
    copy, again = tmp_path / "copy", tmp_path / "again"
    with agentdb.open(full) as db:
        db.states.save("ann", "s", "task", {"step": 1})
    ok("backup", full, copy)
    ok("restore", copy, again)
    assert rows_of(again, "everything") == rows_of(full, "everything")
    with agentdb.open(again) as db:
        assert db.states.load("ann", "s", "task") is not None
    assert "not an empty directory" in failed("backup", full, copy)
    assert "not an empty directory" in failed("restore", copy, full)
    failed("restore", tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_commands_while_another_process_writes(full: Path, tmp_path: Path) -> None:
    with agentdb.open(full) as db:
        db.table("everything").put({"id": "hot", "part": 9})
        for arguments in (["info", "--json"], ["verify"], ["export", "everything"], ["backup", tmp_path / "copy"]):
            command, *rest = map(str, arguments)
            done = subprocess.run(
                [sys.executable, "-c", "from agentdb.cli import main; main()", command, str(full), *rest],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
    assert len(rows_of(tmp_path / "copy", "everything")) == len(ROWS) + 1


def test_help_and_version() -> None:
    assert ok("--version") == f"agentdb {agentdb.__version__}\n"
    shown = ok("--help")
    for command in ("demo", "info", "verify", "optimize", "export", "import", "backup", "restore"):
        assert f"  {command} " in shown
        assert "Usage: " in ok(command, "--help")
