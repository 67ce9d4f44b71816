"""What is added to vLLM and NIXL inside an engine's process, over the classes that the test plays."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cluster.engine import fault_injection
from cluster.engine.nixl_progress import PROGRESS_DELAY_ENV, let_progress_thread_sleep


def play(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """Have ``name`` and the packages around it imported from here."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def nixl(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    bind = SimpleNamespace(nixlAgent=lambda name, config: (name, config.pthrDelay))
    play(monkeypatch, "nixl._api", nixlBind=bind)
    return bind


@pytest.mark.parametrize(("setting", "delay_us"), [(None, 0), ("0", 0), ("1000", 1000)])
def test_the_progress_thread_sleeps_where_the_environment_says(
    nixl: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, setting: str | None, delay_us: int
) -> None:
    monkeypatch.delenv(PROGRESS_DELAY_ENV, raising=False)
    if setting is not None:
        monkeypatch.setenv(PROGRESS_DELAY_ENV, setting)
    let_progress_thread_sleep()
    assert nixl.nixlAgent("agent", SimpleNamespace(pthrDelay=0)) == ("agent", delay_us)


def test_agents_are_wrapped_once(nixl: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_DELAY_ENV, "1000")
    let_progress_thread_sleep()
    wrapped = nixl.nixlAgent
    let_progress_thread_sleep()
    assert nixl.nixlAgent is wrapped


def test_the_end_of_reasoning_is_looked_for_in_what_was_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, type] = {}

    class Manager:
        @staticmethod
        def register_module(name: str) -> Any:
            return lambda cls: registered.setdefault(name, cls)

    class Parser:
        def __init__(self, tokenizer: Any, **_: Any) -> None:
            self.tokenizer = tokenizer

    play(monkeypatch, "vllm.reasoning", ReasoningParser=Parser, ReasoningParserManager=Manager)
    monkeypatch.delitem(sys.modules, "cluster.engine.reasoning_parser", raising=False)
    importlib.import_module("cluster.engine.reasoning_parser")
    monkeypatch.delitem(sys.modules, "cluster.engine.reasoning_parser")  # so that others import it over vLLM
    parser = registered["baton"](None, end_ids=[8, 9])
    assert not parser.is_reasoning_end([8, 9])  # in the prompt it is an earlier turn's
    assert not parser.is_reasoning_end_streaming([8, 9, 5], [5])
    assert parser.is_reasoning_end_streaming([5, 8, 9], [9])  # it may have begun before
    assert not registered["baton"](None).is_reasoning_end_streaming([8, 9], [9])


def reads(*blocks: int) -> Any:
    return SimpleNamespace(reqs_to_recv={"a": SimpleNamespace(local_block_ids=(list(blocks),))})


def test_blocks_are_swapped_only_under_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, one, faulty = reads(1, 2, 3), reads(1), reads(1, 2, 3)
    fault_injection.swap_blocks(sound)
    assert sound.reqs_to_recv["a"].local_block_ids == ([1, 2, 3],)
    monkeypatch.setattr(fault_injection, "_active", {"swapped_blocks"})
    fault_injection.swap_blocks(faulty)
    assert [list(group) for group in faulty.reqs_to_recv["a"].local_block_ids] == [[2, 1, 3]]
    fault_injection.swap_blocks(one)
    assert [list(group) for group in one.reqs_to_recv["a"].local_block_ids] == [[1]]


def test_no_fault_is_watched_for_outside_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fault_injection.FOLDER, raising=False)
    before = threading.active_count()
    fault_injection.arm()
    assert threading.active_count() == before
    assert not fault_injection._armed
