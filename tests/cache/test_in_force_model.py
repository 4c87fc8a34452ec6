"""Every state of the model of how a cache comes into force; wrong variants must become stale."""

import random

import pytest

from tests.cache.in_force_model import Budget, Rules, Stale, explore, walk

# A stale reader, a writer and a third process suffice for r2 -> r1 -> r2; in the small cases every state is visited.
SMALL = [
    pytest.param(Rules(), ("r", "w"), Budget(raises=2, losses=1), id="bounded"),
    pytest.param(Rules(), ("r", "w"), Budget(raises=1, losses=1, replacements=1), id="bounded, data replaced"),
    pytest.param(Rules(wait=True), ("r", "w"), Budget(raises=1, losses=1), id="wait"),
    pytest.param(Rules(wait=True), ("r", "w"), Budget(raises=0, losses=0, replacements=1), id="wait, data replaced"),
]
LARGE = [
    pytest.param(Rules(wait=wait), roles, id=f"{'wait' if wait else 'bounded'} {' '.join(roles)}")
    for wait in (False, True)
    for roles in (("r", "w", "r"), ("rw", "rw", "r"))
]
TWO_RAISES, REPLACED = Budget(raises=2, losses=1), Budget(raises=0, losses=0, replacements=1)
WRONG = [
    pytest.param(Rules(epoch_at_begin="never"), TWO_RAISES, id="a write does not read the epoch"),
    pytest.param(Rules(epoch_at_begin="before the id"), TWO_RAISES, id="the epoch is read before the id is taken"),
    pytest.param(Rules(records="dropped after"), TWO_RAISES, id="dropped after the epoch is raised"),
    pytest.param(Rules(polls_compare=False), TWO_RAISES, id="polls do not compare"),
    pytest.param(Rules(wait=True, settles=False), TWO_RAISES, id="an epoch is used while leases of another last"),
    pytest.param(Rules(wait=True, looks_check_history=False), REPLACED, id="a hit is not checked for replaced data"),
]


@pytest.mark.parametrize(("rules", "roles", "budget"), SMALL)
def test_no_state_is_stale(rules: Rules, roles: tuple[str, ...], budget: Budget) -> None:
    states, hits = explore(rules, roles, budget)
    assert states > 5_000
    assert hits > 100


@pytest.mark.parametrize(("rules", "roles"), LARGE)
def test_no_random_walk_becomes_stale(rules: Rules, roles: tuple[str, ...]) -> None:
    assert walk(rules, roles, Budget(raises=3, losses=2, replacements=1), 100_000, random.Random(1)) > 1_000


@pytest.mark.parametrize(("rules", "budget"), WRONG)
def test_each_wrong_variant_becomes_stale(rules: Rules, budget: Budget) -> None:
    with pytest.raises(Stale):
        explore(rules, ("r", "w"), budget)
