"""The example of the library's README runs, and the write shows in the next read."""

import asyncio
import os
import re
import sys
from pathlib import Path

import psycopg

import libs.cache
from tests.cache.shop import RESET

README = Path(libs.cache.__file__).with_name("README.md")


async def test_the_example_of_the_readme_shows_its_write(database_url: str, redis_url: str) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(RESET)
    environment = {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", example, env=environment, stdout=-1, stderr=-1, cwd=README.parents[2]
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    replies = [line for line in output.decode().splitlines() if line.startswith("Reply(")]
    assert [re.findall(r"body=b'(\w+)'", line) for line in replies] == [["old"], ["Assam"]]
