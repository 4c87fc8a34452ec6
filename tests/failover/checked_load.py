"""Writers of one process and readers of another that check each read against the acknowledged writes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc

from parlor.messaging.v1 import messaging_pb2
from tests.load import until
from tests.stack import PHONE, Stack, message_request, salon

DEADLINE_SECONDS = 1.0
LONGEST_LOAD_SECONDS = 60


@dataclass
class Chain:
    """A salon whose conversation has messages numbered from 1; `acknowledged` has the time of each acknowledgement."""

    salon_id: str
    acknowledged: list[float] = field(default_factory=list)


@dataclass
class Found:
    """The results; for each stale read, by how many s it was behind."""

    reads: int = 0
    hits: int = 0
    stale: list[float] = field(default_factory=list)
    longest_seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


class CheckedLoad:
    """The callers. Each repeats a write with its request_id until it is acknowledged."""

    def __init__(self, writer: Stack, reader: Stack, salons: int = 6, deadline: float = DEADLINE_SECONDS) -> None:
        """Prepare; `deadline` is that of a call, in s. Readers may be added while it runs."""
        self.writer, self.readers, self.deadline = writer, [reader], deadline
        self.chains = [Chain(f"salon-{number}") for number in range(salons)]
        self.found = Found()
        self.ending = False

    async def prepare(self) -> None:
        """Create the salons and their first messages."""
        for chain in self.chains:
            await salon(self.writer, chain.salon_id)
            await self._write(chain)

    async def call(self, rpc: Any, request: Any) -> tuple[Any, str]:
        """Return the reply, None if the call failed, and its source."""
        began, call = time.monotonic(), rpc(request, timeout=self.deadline)
        try:
            return await call, str(dict(await call.trailing_metadata()).get("x-cache", ""))
        except grpc.aio.AioRpcError as error:
            name = error.code().name
            self.found.failures[name] = self.found.failures.get(name, 0) + 1
            return None, ""
        finally:
            self.found.longest_seconds = max(self.found.longest_seconds, time.monotonic() - began)

    async def _write(self, chain: Chain) -> None:
        number = len(chain.acknowledged) + 1
        request = message_request(
            f"wamid.{number}", salon_id=chain.salon_id, content=str(number), request_id=str(uuid4())
        )
        while not self.ending:
            reply, _ = await self.call(self.writer.messaging.RecordMessage, request)
            if reply is not None:
                chain.acknowledged.append(time.monotonic())
                return
            await asyncio.sleep(0.02)

    async def _read(self, chain: Chain) -> None:
        request = messaging_pb2.GetConversationRequest(salon_id=chain.salon_id, phone_number=PHONE, message_limit=1)
        least, began = len(chain.acknowledged), time.monotonic()
        reply, source = await self.call(random.choice(self.readers).messaging.GetConversation, request)
        if reply is None:
            await asyncio.sleep(0.02)
            return
        self.found.reads += 1
        self.found.hits += source == "hit"
        if (shown := int(reply.messages[0].content)) < least:
            self.found.stale.append(began - chain.acknowledged[shown])

    async def _repeat(self, step: Any, chain: Chain, pause: float) -> None:
        while not self.ending:
            await step(chain)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run a writer and two readers per salon until the block ends."""
        async with asyncio.timeout(LONGEST_LOAD_SECONDS), asyncio.TaskGroup() as tasks:
            for chain in self.chains:
                tasks.create_task(self._repeat(self._write, chain, 0.03))
                for _ in range(2):
                    tasks.create_task(self._repeat(self._read, chain, 0.005))
            try:
                yield
            finally:
                self.ending = True

    async def back(self, since: float) -> float:
        """Wait until writes succeed in all salons; return how many s after `since` the first was acknowledged."""
        before = [len(chain.acknowledged) for chain in self.chains]
        await until(
            lambda: all(len(chain.acknowledged) > count for chain, count in zip(self.chains, before, strict=True))
        )
        return min(chain.acknowledged[count] for chain, count in zip(self.chains, before, strict=True)) - since
