"""Statistics equal the rows at every moment, while writers, jobs and folds run at random and jobs are killed."""

import os

from tests.rollup_load import Load
from tests.rollups import create_salons, is_exact

COMPARISONS = int(os.environ.get("ROLLUP_COMPARISONS", "1500"))


async def test_statistics_equal_the_rows_under_random_load(database_url: str) -> None:
    create_salons(database_url)
    load = Load(database_url, COMPARISONS, seed=int(os.environ.get("ROLLUP_SEED", "1")))
    await load.run()
    print(f"\n{COMPARISONS} comparisons, {load.commits} commits, {load.kills} jobs killed")
    assert load.different == []
    assert await is_exact(database_url)
