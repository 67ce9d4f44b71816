from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.spec.config import Role
from orchestrator.policy.standby import Exchange, Place, exchanges

SERVING, STANDBY = 2, 1


def test_a_pool_without_standby_is_left_alone() -> None:
    assert exchanges([Place("a", Role.DECODE, False, False), Place("b", Role.DECODE, False, True)]) == []


def test_nobody_takes_a_place_in_another_pool() -> None:
    spare = Place("decode-1", Role.DECODE, True, True)
    assert exchanges([Place("prefill-0", Role.PREFILL, False, False), spare]) == []
    absent = [Place(f"decode-{i}", Role.DECODE, False, False) for i in (2, 3)]
    assert exchanges([spare, *absent]) == [Exchange("decode-1", "decode-2")]


class Pools(RuleBasedStateMachine):
    """Workers that start, die, come back, are ordered and let go in any order, the exchanges made after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}
        self.wanted = dict.fromkeys(Role, SERVING)
        self.made = 0
        for role in Role:
            for index in range(SERVING + STANDBY):
                self._add(role, standby=index >= SERVING, ready=True)

    def _add(self, role: Role, *, standby: bool, ready: bool) -> None:
        self.made += 1
        name = f"w{self.made}"
        self.places[name] = Place(name, role, standby, ready)

    def _settle(self) -> None:
        for found in exchanges(self.places.values()):
            up, down = self.places[found.promoted], self.places[found.replaced]
            assert up.role is down.role
            assert (up.standby, up.ready, down.standby, down.ready) == (True, True, False, False)
            self.places[up.worker_id] = replace(up, standby=False)
            self.places[down.worker_id] = replace(down, standby=True)

    @rule(role=st.sampled_from(Role))
    def order_one_more(self, role: Role) -> None:
        at_once = any(each.standby and each.ready for each in self.places.values() if each.role is role)
        before = self._serving(role)
        self._add(role, standby=False, ready=False)
        self.wanted[role] += 1
        self._settle()
        assert self._serving(role) == before + at_once

    @rule(data=st.data())
    def come_or_die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.places)))
        self.places[name] = replace(self.places[name], ready=not self.places[name].ready)
        self._settle()

    @precondition(lambda self: any(not each.standby for each in self.places.values()))
    @rule(data=st.data())
    def let_one_go(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(key for key, each in self.places.items() if not each.standby)))
        self.wanted[self.places.pop(name).role] -= 1
        self._settle()

    def _serving(self, role: Role) -> int:
        return sum(each.role is role and not each.standby and each.ready for each in self.places.values())

    @invariant()
    def as_many_serve_as_can(self) -> None:
        for role in Role:
            of_role = [each for each in self.places.values() if each.role is role]
            assert sum(each.standby for each in of_role) == STANDBY
            assert sum(not each.standby for each in of_role) == self.wanted[role]
            assert self._serving(role) == min(self.wanted[role], sum(each.ready for each in of_role))


Pools.TestCase.settings = settings(deadline=None, max_examples=60)
TestPools = Pools.TestCase
