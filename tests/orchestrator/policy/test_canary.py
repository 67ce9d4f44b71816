"""Canaries in virtual time: each kind of fault in one worker of many, rounding noise on all, and what they cost."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.protocol import WeightSums
from cluster.spec.config import Role
from orchestrator.policy.canary import Canary
from orchestrator.policy.canary_blame import judge, judge_links
from orchestrator.policy.canary_probe import (
    TOLERANCE_NAT,
    Answer,
    Answers,
    Position,
    deviation_nat,
    farthest,
    prompts,
    tolerance_nat,
)
from orchestrator.policy.canary_record import AcceptLink, Action, RefuseLink, Run, TakeOut, Undecided, WorkerIdentity
from orchestrator.policy.canary_weights import WeightRecord

TOLERANCE = TOLERANCE_NAT["float32"]
QUESTIONS = prompts(181, 32, 2048)


def truth(name: str, count: int = 4) -> Answer:
    draw = random.Random(name)
    positions = []
    for _ in range(count):
        rows = sorted(((draw.randrange(181), -draw.random() * 5) for _ in range(5)), key=lambda row: -row[1])
        positions.append(Position(rows[0][0], tuple(dict(rows).items())))
    return tuple(positions)


def noisy(answer: Answer, size_nat: float, draw: random.Random) -> Answer:
    return tuple(
        Position(at.chosen, tuple((token, value + draw.uniform(-size_nat, size_nat)) for token, value in at.logprobs))
        for at in answer
    )


NAMES = ("31", "33", "263", "263/32")
"""A part of them: virtual workers need not answer all."""
RIGHT: Answers = {prompt.name: truth(prompt.name, prompt.max_tokens) for prompt in QUESTIONS if prompt.name in NAMES}
few = settings(max_examples=20)
Spoil = Callable[[str, Answer], Answer]


def shift(nat: float) -> Spoil:
    return lambda _, answer: tuple(
        Position(at.chosen, tuple((token, value - nat) for token, value in at.logprobs)) for at in answer
    )


def only(names: Iterable[str], nat: float) -> Spoil:
    wanted, move = set(names), shift(nat)
    return lambda name, answer: move(name, answer) if name in wanted else answer


@dataclass
class World:
    """Workers with noise and faults, and the canary over them."""

    canary: Canary
    identities: list[WorkerIdentity]
    seed: int = 0
    noise_nat: float = TOLERANCE / 3
    alone: dict[str, Spoil] = field(default_factory=dict)
    links: dict[tuple[str, str], Spoil] = field(default_factory=dict)
    weights: dict[str, list[str]] = field(default_factory=dict)
    cost_s: float = 0.1
    now_s: float = 0.0
    ran: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.canary.know(self.identities)

    def do(self, run: Run) -> list[Action]:
        self.ran.append(run)
        self.canary.spent(run, dict.fromkeys(run.workers, self.cost_s), self.now_s)
        answers = {name: noisy(answer, self.noise_nat, self.draw) for name, answer in RIGHT.items()}
        for worker_id in run.workers:
            if worker_id in self.alone:
                answers = {name: self.alone[worker_id](name, answer) for name, answer in answers.items()}
        if run.prefill_id is None:
            sums = self.weights.get(run.worker_id, ["a", "b"])
            first = self.canary.weights.next_piece(run.worker_id)
            self.canary.weights.read(run.worker_id, WeightSums("x", 2, first, [sums[first]], 0.0))
            return self.canary.alone(run.worker_id, answers, self.now_s)
        spoil = self.links.get((run.prefill_id, run.worker_id))
        if spoil is not None:
            answers = {name: spoil(name, answer) for name, answer in answers.items()}
        return self.canary.handoff(run.prefill_id, run.worker_id, answers, self.now_s)

    def admit(self, *new: str) -> list[Action]:
        actions = [action for run in self.canary.admission(new) for action in self.do(run)]
        while run := self.canary.next_urgent():
            actions += self.do(run)
        for identity in self.identities:
            if identity.worker_id in new:
                self.canary.serve(identity.worker_id, self.now_s)
        return actions

    def live(self, until_s: float, *, step_s: float = 10.0, stop: bool = True) -> list[Action]:
        actions: list[Action] = []
        while self.now_s < until_s and not (stop and actions):
            while run := self.canary.next_run(self.now_s):
                actions += self.do(run)
                if stop and actions:
                    break
            self.now_s += step_s
        return actions

    def restart(self, worker_id: str) -> None:
        self.identities = [
            WorkerIdentity(identity.worker_id, identity.role, identity.incarnation + "'")
            if identity.worker_id == worker_id
            else identity
            for identity in self.identities
        ]
        self.canary.know(self.identities)


def world(prefills: int = 2, decodes: int = 2, *, reference: bool = True, seed: int = 0, **given_: float) -> World:
    canary = Canary(
        interval_s=given_.get("interval_s", 300),
        max_share=given_.get("max_share", 0.001),
        tolerance_nat=TOLERANCE,
        reference=RIGHT if reference else None,
    )
    identities = [WorkerIdentity(f"prefill-{index}", Role.PREFILL, f"p{index}") for index in range(prefills)]
    identities += [WorkerIdentity(f"decode-{index}", Role.DECODE, f"d{index}") for index in range(decodes)]
    made = World(canary, identities, seed)
    made.cost_s = given_.get("cost_s", 0.1)
    assert made.admit(*(identity.worker_id for identity in identities)) == []
    return made


def taken_out(actions: list[Action]) -> list[str]:
    return [action.worker_id for action in actions if isinstance(action, TakeOut)]


FAULTS: dict[str, Spoil] = {
    "everything": shift(20 * TOLERANCE),
    "one length": only(["33"], 20 * TOLERANCE),
    "no number": lambda _, answer: tuple(Position(0, ((0, math.nan),)) for _ in answer),
}


@few
@given(
    st.integers(2, 4),
    st.integers(2, 4),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from(sorted(FAULTS)),
    st.data(),
)
def test_a_faulty_worker_and_no_other_is_taken_out(
    prefills: int, decodes: int, reference: bool, seed: int, fault: str, data: st.DataObject
) -> None:
    made = world(prefills, decodes, reference=reference, seed=seed)
    victim = data.draw(st.sampled_from([identity.worker_id for identity in made.identities]))
    assert made.live(data.draw(st.integers(0, 2000))) == []
    made.alone[victim] = FAULTS[fault]
    actions = made.live(made.now_s + 3000)
    assert taken_out(actions) == [victim]
    assert len(actions) == 1
    del made.alone[victim]
    made.restart(victim)
    assert made.admit(victim) == []
    assert made.live(made.now_s + 3000) == []


@few
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_rounding_alone_is_no_fault(prefills: int, decodes: int, reference: bool, seed: int) -> None:
    made = world(prefills, decodes, reference=reference, seed=seed)
    assert made.live(7_000, step_s=10) == []
    assert not any(record.failures for record in made.canary.workers.values())


@few
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 10**6), st.data())
def test_blocks_swapped_on_their_way_into_a_worker_are_that_workers_fault(
    prefills: int, decodes: int, seed: int, data: st.DataObject
) -> None:
    made = world(prefills, decodes, seed=seed)
    victim = f"decode-{data.draw(st.integers(0, decodes - 1))}"
    # Whole blocks in another order change only what reads a prefix of them.
    spoil = only(["263/32"], 3.0)
    made.links = {(f"prefill-{index}", victim): spoil for index in range(prefills)}
    assert taken_out(made.live(10_000)) == [victim]


@few
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 10**6), st.data())
def test_a_worker_that_exports_wrong_kv_is_to_blame(
    prefills: int, decodes: int, seed: int, data: st.DataObject
) -> None:
    made = world(prefills, decodes, seed=seed)
    victim = f"prefill-{data.draw(st.integers(0, prefills - 1))}"
    made.links = {(victim, f"decode-{index}"): shift(1.0) for index in range(decodes)}
    assert taken_out(made.live(10_000)) == [victim]


def test_a_bad_link_between_workers_that_are_right_with_others_is_refused_and_taken_back() -> None:
    made = world(3, 3)
    made.links[("prefill-1", "decode-2")] = shift(1.0)
    (action,) = made.live(10_000)
    assert isinstance(action, RefuseLink)
    assert (action.prefill_id, action.decode_id) == ("prefill-1", "decode-2")
    assert made.canary.refused == [("prefill-1", "decode-2")]
    made.links.clear()
    assert made.live(made.now_s + 20_000) == [AcceptLink("prefill-1", "decode-2")]
    assert made.canary.refused == []


def test_of_one_pair_the_reader_is_replaced_first_and_then_the_source() -> None:
    made = world(1, 1)
    made.links[("prefill-0", "decode-0")] = shift(1.0)
    assert taken_out(made.live(10_000)) == ["decode-0"]
    made.restart("decode-0")
    assert taken_out(made.admit("decode-0")) == ["prefill-0"]


def test_without_a_reference_two_new_workers_that_differ_are_both_undecided() -> None:
    canary = Canary(interval_s=300, max_share=0.001, tolerance_nat=TOLERANCE)
    identities = [WorkerIdentity("prefill-0", Role.PREFILL, "a"), WorkerIdentity("decode-0", Role.DECODE, "b")]
    made = World(canary, identities, alone={"decode-0": shift(1.0)})
    actions = made.admit("prefill-0", "decode-0")
    undecided = [action for action in actions if isinstance(action, Undecided)]
    assert undecided[0].worker_ids == ("decode-0", "prefill-0")
    assert "baton model check" in undecided[0].sentence
    assert taken_out(actions) == []


def test_without_a_reference_the_one_of_two_that_changed_is_wrong_and_so_is_a_newcomer_that_differs() -> None:
    made = world(1, 1, reference=False)
    made.alone["prefill-0"] = shift(1.0)
    assert taken_out(made.live(5000)) == ["prefill-0"]
    made.restart("prefill-0")  # and it is as wrong as before
    assert taken_out(made.admit("prefill-0"))[0] == "prefill-0"


def test_with_a_reference_a_fault_that_all_share_is_found_before_any_serves() -> None:
    canary = Canary(interval_s=300, max_share=0.001, tolerance_nat=TOLERANCE, reference=RIGHT)
    identities = [WorkerIdentity("prefill-0", Role.PREFILL, "a"), WorkerIdentity("decode-0", Role.DECODE, "b")]
    made = World(canary, identities, alone=dict.fromkeys(("prefill-0", "decode-0"), shift(1.0)))
    actions = made.admit("prefill-0", "decode-0")
    assert set(taken_out(actions)) == {"prefill-0", "decode-0"}
    assert "off by 1 nat from the model's reference" in actions[0].sentence  # type: ignore[union-attr]


def test_a_single_wrong_answer_that_does_not_come_again_is_counted_and_no_more() -> None:
    made = world()
    made.alone["decode-1"] = shift(1.0)
    while not made.canary.workers["decode-1"].failures:
        run = made.canary.next_run(made.now_s)
        if run is None:
            made.now_s += 1
        else:
            assert made.do(run) == []
    made.alone.clear()
    assert made.live(made.now_s + 5000) == []
    assert made.canary.workers["decode-1"].strikes == 0
    assert sum(made.canary.workers["decode-1"].failures.values()) == 1


@pytest.mark.parametrize("piece", [0, 1])
def test_one_changed_weight_is_found_by_its_checksum_though_no_answer_reports(piece: int) -> None:
    made = world()
    made.live(2000)
    made.weights["decode-0"] = ["a", "b"]
    made.weights["decode-0"][piece] = "flipped"
    (action,) = made.live(made.now_s + 5000)
    assert isinstance(action, TakeOut)
    assert action.worker_id == "decode-0"
    assert f"piece {piece} of 2 is not what it was" in action.sentence


def test_weights_that_were_loaded_wrong_are_found_by_the_majority() -> None:
    weights = WeightRecord()
    for worker_id, value in (("a", "x"), ("b", "x"), ("c", "y")):
        weights.read(worker_id, WeightSums("same", 1, 0, [value], 0.0))
    assert weights.damage("a") == ""
    assert "not what 2 other workers loaded" in weights.damage("c")
    weights.read("d", WeightSums("other cut", 1, 0, ["z"], 0.0))
    assert weights.damage("d") == ""


@few
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(0.001, 5),
    st.floats(1, 600),
    st.sampled_from([0.001, 0.01, 0.1]),
)
def test_canaries_never_take_more_than_their_share(
    prefills: int, decodes: int, cost_s: float, interval_s: float, max_share: float
) -> None:
    made = world(prefills, decodes, cost_s=cost_s, interval_s=interval_s, max_share=max_share)
    made.ran.clear()
    for _ in range(50):
        made.live(made.now_s + 100, step_s=20)
        for record in made.canary.workers.values():
            assert record.share(made.now_s) <= max_share * (1 + 1e-9)
    # What is affordable is done.
    if 4 * cost_s * (prefills + decodes) / max_share < 5000 and interval_s < 1000:
        assert {run.worker_id for run in made.ran if run.prefill_id is None} == {s.worker_id for s in made.identities}


def test_each_worker_and_each_pair_has_its_turn() -> None:
    made = world(3, 3, interval_s=100, max_share=0.1)
    made.ran.clear()
    made.live(1001, step_s=1)
    assert len(set(made.ran)) == 6 + 9
    counts = [made.ran.count(run) for run in set(made.ran)]
    assert min(counts) >= 9
    assert max(counts) <= 10


def test_a_busy_worker_is_not_asked_twice_at_once() -> None:
    made = world(2, 2, interval_s=1, max_share=1)
    made.now_s = 100
    busy = frozenset({"prefill-0", "decode-0"})
    run = made.canary.next_run(made.now_s, busy)
    assert run is not None
    assert not busy & set(run.workers)


def test_prompts_lie_about_block_boundaries_and_fit_the_vocabulary_and_the_model() -> None:
    for vocab_size, block, longest in ((181, 32, 2048), (49152, 16, 8192), (128_256, 128, 131_072), (70, 32, 60)):
        asked = prompts(vocab_size, block, longest)
        assert len({prompt.name for prompt in asked}) == len(asked)
        by_name = {prompt.name: prompt for prompt in asked}
        for prompt in asked:
            assert all(0 <= token < vocab_size for token in prompt.token_ids)
            assert len(prompt.token_ids) + prompt.max_tokens <= longest
            if prompt.prefix_of:
                long = by_name[prompt.prefix_of].token_ids
                shared = prompt.prefix_tokens
                assert shared % block == 0
                assert prompt.token_ids[:shared] == long[:shared]
                assert prompt.token_ids[shared : shared + 1] != long[shared : shared + 1]
        lengths = {len(prompt.token_ids) for prompt in asked if not prompt.prefix_of}
        assert lengths >= {each for each in (block - 1, block, block + 1, 2 * block) if each + 4 < longest}


@few
@given(st.integers(0, 10**6))
def test_answers_are_compared_as_far_as_the_same_tokens_were_said(seed: int) -> None:
    answer = truth(str(seed))
    assert deviation_nat(answer, answer) == 0
    draw = random.Random(seed)
    assert deviation_nat(noisy(answer, 0.01, draw), answer) <= 0.01
    other = (answer[0], *truth("other")[1:])
    shifted = (Position(other[0].logprobs[1][0], other[0].logprobs), *other[1:])
    assert deviation_nat(shifted, answer) == 0  # the same numbers, a tie decided otherwise, then nothing comparable


def test_types_that_round_more_are_borne_with_more() -> None:
    assert tolerance_nat("float32") < tolerance_nat("float16") < tolerance_nat("bfloat16")
    assert tolerance_nat("bfloat16", "fp8") > tolerance_nat("bfloat16")
    assert tolerance_nat("bfloat16", "auto", "fp8") > tolerance_nat("bfloat16")


@few
@given(st.integers(3, 9), st.integers(0, 10**6), st.data())
def test_a_majority_decides_where_there_is_no_reference(count: int, seed: int, data: st.DataObject) -> None:
    draw = random.Random(seed)
    answers = {
        f"w{index}": {name: noisy(answer, TOLERANCE / 4, draw) for name, answer in RIGHT.items()}
        for index in range(count)
    }
    bad = data.draw(st.sets(st.sampled_from(sorted(answers)), max_size=(count - 1) // 2))
    for position, worker_id in enumerate(sorted(bad)):
        spoil = shift(1.0 + position)
        answers[worker_id] = {name: spoil(name, answer) for name, answer in answers[worker_id].items()}
    blame = judge(answers, tolerance_nat=TOLERANCE)
    assert set(blame.wrong) == bad
    assert not blame.undecided
    for worker_id, fault in blame.wrong.items():
        assert fault.nat == max(farthest(answers[worker_id], answers[other])[0] for other in [_centre(answers, bad)])


def _centre(answers: dict[str, dict[str, Answer]], bad: set[str]) -> str:
    return min(answers.keys() - bad)


@few
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_one_bad_end_explains_all_its_links(prefills: int, decodes: int, data: st.DataObject) -> None:
    sources, readers = [f"p{i}" for i in range(prefills)], [f"d{i}" for i in range(decodes)]
    victim = data.draw(st.sampled_from([*sources, *readers]))
    blame = judge_links({(p, d): victim not in (p, d) for p in sources for d in readers})
    assert blame.links == ()
    distinguished = prefills + decodes > 2
    assert blame.workers == ((victim,) if distinguished else ("d0",))
