"""What a body of 20,000 messages does to the small bodies of another salon."""

import asyncio
from contextlib import ExitStack
from itertools import count
from statistics import median

from tests.benchmarks.conftest import Report
from tests.test_neighbors import Street, bodies, cut, messages, shown, street

__all__ = ["street"]
MESSAGES = 20_000
ROUNDS = 3
SECONDS = 5
MOST_TIMES = 2.0
TITLE = "Small bodies of a salon while another one's body of 20,000 messages is recorded."


async def test_a_large_body_at_most_doubles_the_time_of_others(street: Street, report: Report) -> None:
    numbers, ratios = count(), list[float]()
    with ExitStack() as exits:
        neighbors = [street.neighbor("IngestWebhook", exits)]
        for _ in range(ROUNDS):
            await street.round(neighbors)
            await asyncio.sleep(SECONDS)
            [quiet] = await street.round(neighbors)
            await bodies(street, messages(f"large{next(numbers)}", MESSAGES))()
            [loud] = await street.round(neighbors)
            ratios.append(cut(loud, 95) / cut(quiet, 95))
            report.add(TITLE, f"round {len(ratios)}", quiet=shown(quiet), loud=shown(loud), ratio=f"{ratios[-1]:.2f}")
    assert median(ratios) <= MOST_TIMES
