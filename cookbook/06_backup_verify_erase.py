"""Copy a database in use, check every byte of it, and remove data so that no file holds it any more."""

import tempfile
from pathlib import Path

import pyarrow as pa

import agentdb
from agentdb import TableSchema, field

PEOPLE = TableSchema("people", [pa.field("id", pa.int64()), pa.field("name", pa.string())], key="id")
SECRET = "Rumpelstiltskin"


def files_with(directory: Path, text: str) -> int:
    return sum(text.encode() in file.read_bytes() for file in directory.rglob("*") if file.is_file())


with tempfile.TemporaryDirectory() as temporary:
    path, copy, second = (Path(temporary) / name for name in ("db", "copy", "second"))
    with agentdb.open(path) as db:
        people = db.table(PEOPLE)
        people.put_many({"id": n, "name": f"person {n}"} for n in range(1000))
        people.put({"id": 7, "name": SECRET})
        db.flush()  # from SQLite to columnar files; it happens by itself, here it is done now
        people.put({"id": 8, "name": f"{SECRET}'s friend"})

        # A backup is one consistent state, made while others read and write. It is a database itself.
        db.backup(copy)

        # A delete hides a row at once; its bytes stay in old files until maintenance gets there. Erase waits for that.
        receipt = people.erase_many(filter=field("id") <= 8)
        print(f"erased {receipt.rows} rows: {receipt.status}")

        # verify() reads everything: digests of all files, both tiers, keys and indices. It changes nothing.
        report = db.verify()
        print(f"verify: {'sound' if report.ok else report.problems}, {report.rows} rows, {report.files} files")
    print("files that still hold the name:", files_with(path, SECRET), "- in the backup:", files_with(copy, SECRET))

    # Restoring checks every file against its digest. The path appears complete or not at all.
    agentdb.restore(copy, second)
    with agentdb.open(second) as db:
        print("restored:", db.table("people").count(), "rows,", db.table("people").require(7)["name"])

    # What happens when a disk lies? Flip one bit of the columnar data, and look again.
    data = next(file for file in second.rglob("*.lance") if file.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with agentdb.open(second, read_only=True) as db:
        for problem in db.verify().problems:
            print("found:", problem.table, "-", problem.what)
