"""The same database in asyncio: the same names, with await; the event loop is never blocked."""

import asyncio
import tempfile
from pathlib import Path

import pyarrow as pa

import agentdb
from agentdb import TableSchema, field

MESSAGES = TableSchema(
    "messages",
    [pa.field("agent", pa.string()), pa.field("number", pa.int64()), pa.field("text", pa.string())],
    key=["agent", "number"],
)


async def main(path: Path) -> None:
    async with agentdb.open_async(path) as db:
        messages = await db.table(MESSAGES)

        async def agent(name: str) -> None:
            for number in range(5):
                # Message and state belong together. The transaction belongs to this task: no other can get into it.
                async with db.transaction():
                    await messages.put({"agent": name, "number": number, "text": f"{name} says {number}"})
                    await db.states.save(name, "chat", "context", {"last": number})

        # Writers of many tasks share commits; a hundred of them cost little more than ten.
        await asyncio.gather(*(agent(f"agent-{n:02}") for n in range(10)))
        print("messages:", await messages.count())

        # Iterators become async iterators. This one reads a snapshot, whatever is written meanwhile.
        rows = messages.scan(field("agent") == "agent-03", order_by="number")
        print("agent-03:", [row["number"] async for row in rows])

        # Cancelling never leaves half a commit: a transaction whose task is cancelled is undone.
        async def interrupted() -> None:
            async with db.transaction():
                await messages.delete_many(filter=field("number") >= 0)
                await asyncio.sleep(60)

        task = asyncio.create_task(interrupted())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        print("after the cancelled delete:", await messages.count())

        # A child task inherits its parent's context, but not the right to write into its transaction.
        async with db.transaction():
            try:
                await asyncio.create_task(as_task(messages))
            except agentdb.UnavailableError as error:
                print("in another task:", error)


async def as_task(messages: agentdb.AsyncTable) -> None:
    await messages.put({"agent": "child", "number": 0, "text": "hello"})


with tempfile.TemporaryDirectory() as directory:
    asyncio.run(main(Path(directory) / "db"))
