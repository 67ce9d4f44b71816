"""What is wrong when answers to a canary differ: a worker, a link, or undecided. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.policy.canary_probe import Answers, farthest

Link = tuple[str, str]
"""Prefill worker and decode worker."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One worker's answer is wrong: by how much, to which prompt, against what."""

    worker_id: str
    prompt: str
    nat: float
    against: str


@dataclass(frozen=True, slots=True)
class Blame:
    """``wrong`` workers; ``undecided`` ones answer differently and nothing shows which of them is right."""

    wrong: Mapping[str, Fault] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()


def judge(
    answers: Mapping[str, Answers],
    *,
    tolerance_nat: float,
    reference: Answers | None = None,
    earlier: Mapping[str, Answers] | None = None,
) -> Blame:
    """Judge what workers answered alone.

    A reference decides each prompt that it has. Else a worker is wrong that differs from a majority of all, which agree
    with one another. Without a majority (two workers) it is the one that differs from what it said before, or is new,
    if another one says what it said before.

    Args:
        answers: Latest answers of each worker.
        tolerance_nat: How far right answers may be apart.
        reference: Right answers, where they are known.
        earlier: What each that serves said when it was found right.
    """
    earlier = earlier or {}
    if reference is not None and all(name in reference for each in answers.values() for name in each):
        wrong = {}
        for worker_id, each in answers.items():
            nat, prompt = farthest(each, reference)
            if nat > tolerance_nat:
                wrong[worker_id] = Fault(worker_id, prompt, nat, "the model's reference")
        return Blame(wrong)
    apart = {(one, two): farthest(answers[one], answers[two]) for one in answers for two in answers if one < two}
    apart |= {(two, one): far for (one, two), far in apart.items()}
    agree = {one: [two for two in answers if two != one and apart[one, two][0] <= tolerance_nat] for one in answers}
    if all(len(others) == len(answers) - 1 for others in agree.values()):
        # All say the same. That they all changed together points at what they share, not at one of them.
        return Blame(_changed(answers, earlier, tolerance_nat)) if len(answers) == 1 else Blame()
    centre = max(sorted(answers), key=lambda worker_id: len(agree[worker_id]))
    majority = {centre, *agree[centre]}
    if 2 * len(majority) > len(answers):
        wrong = {}
        for worker_id in answers.keys() - majority:
            nat, prompt = apart[worker_id, centre]
            wrong[worker_id] = Fault(worker_id, prompt, nat, f"{len(majority)} other workers")
        return Blame(wrong)
    changed = _changed(answers, earlier, tolerance_nat)
    settled = [worker_id for worker_id in sorted(answers) if earlier.get(worker_id) and worker_id not in changed]
    if settled and all(two in agree[one] for one in settled for two in settled if one != two):
        wrong = dict(changed)
        for worker_id in answers.keys() - set(settled) - changed.keys():
            nat, prompt = apart[worker_id, settled[0]]
            if nat > tolerance_nat:
                wrong[worker_id] = Fault(worker_id, prompt, nat, f"{settled[0]}, which has not changed")
        return Blame(wrong)
    return Blame(undecided=tuple(sorted(answers)))


def _changed(answers: Mapping[str, Answers], earlier: Mapping[str, Answers], tolerance_nat: float) -> dict[str, Fault]:
    changed = {}
    for worker_id, each in answers.items():
        nat, prompt = farthest(each, earlier.get(worker_id, {}))
        if nat > tolerance_nat:
            changed[worker_id] = Fault(worker_id, prompt, nat, "what it answered before")
    return changed


@dataclass(frozen=True, slots=True)
class LinkBlame:
    """What bad links come to."""

    workers: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


def judge_links(right: Mapping[Link, bool], suspects: frozenset[str] = frozenset()) -> LinkBlame:
    """Judge links between workers that are all right alone.

    A worker is to blame if every link of it that was tried is bad and its partners are right with others. A bad link
    whose two ends are right with others is bad itself. Where nothing distinguishes the ends (one of each), it is the
    decode worker: it does the reading, and it is the end whose requests go on elsewhere.

    Args:
        right: Outcome of each link that was tried.
        suspects: Prefill workers whose partner was replaced for a bad link before; they are to blame if it stays bad.

    Example:
        >>> judge_links({("p0", "d0"): False, ("p0", "d1"): True, ("p1", "d0"): True})
        LinkBlame(workers=(), links=(('p0', 'd0'),))
        >>> judge_links({("p0", "d0"): False, ("p0", "d1"): True, ("p1", "d0"): False, ("p1", "d1"): True}).workers
        ('d0',)
        >>> judge_links({("p0", "d0"): False}).workers
        ('d0',)
    """
    proven = {worker_id for link, good in right.items() if good for worker_id in link}
    workers: set[str] = set()
    links: list[Link] = []
    for link, good in sorted(right.items()):
        if good:
            continue
        prefill, decode = link
        if prefill in proven and decode in proven:
            links.append(link)
        elif decode in proven or (prefill not in proven and prefill in suspects):
            workers.add(prefill)
        else:
            workers.add(decode)
    if len(workers) > 1:
        # Workers whose bad links another one explains are spared: p0 alone explains p0 -> d0 and p0 -> d1.
        bad = {link for link, good in right.items() if not good} - set(links)
        ends = sorted({worker_id for link in bad for worker_id in link if worker_id not in proven})
        single = [worker_id for worker_id in ends if all(worker_id in link for link in bad)]
        if single:
            workers = {single[-1] if len(bad) == 1 else single[0]}
    return LinkBlame(tuple(sorted(workers)), tuple(links))
