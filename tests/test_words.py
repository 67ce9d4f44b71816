"""Code, messages and pages use the field's words (docs/glossary.md), not words made up here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"

HOME_MADE = {
    r"\bma(?:k(?:e|es|ing)|de)(?: |_)way\b": "preempt, be preempted",
    r"\bnudg\w*": "wake",
    r"\bb(?:ears?|orne|earing|ore)\b": "tolerate, support",
    r"(?:\b|_)doors?(?:\b|_)": "interface, endpoint; authentication",
    r"(?:\b|_)(?:tells|told|telling)(?:\b|_)": "report, notify, show; told apart: distinguished",
    r"\btell \w+(?: \w+)? apart\b": "distinguish",
    r"\b(?:a|an|each|every|one|two|the|this|last|next|first|few|per) looks?\b(?! like)": "tick, sample, check",
    r"\blooked at\b|\bis looked\b|\bdef look\b|\.look\(|--looks\b": "observe, check, read",
    r"(?:[\"#.:;]\s*|\b(?:and|by|from|if|in|is|of|refuses?|to|with) )who\b(?![\"(?])|\bwho(?:ever|m)\b|\bdef who\b": (
        "the caller, tenant, client, worker or request that …"
    ),
    r"\b(?:has|have|had|was|were) handed\b(?! (?:over|off))": "handed over",
    r"\b(?:takes?|taken|took|taking) (?:\w+ )?out\b": "remove",
    r"(?:\b|_)books?(?:\b|_)|(?<=[a-z])(?-i:Book)\b": "registry, record, log",
    r"(?:\b|_)rooms?(?:\b|_)": "capacity, headroom, free KV; package",
    r"\bcrowd\w*": "overloaded, saturated",
    r"\bnewcomers?\b": "new request, incoming request",
    r"\bpromis\w+": "reserve, reservation",
    r"\bmend(?:ed|s)?\b|\bwhole again\b": "fix; recover",
    r"\banew\b": "again, a new one",
    r"\bparted\b": "partitioned",
    r"\bbeliev\w*": "trust, take as given",
    r"\bheard?s? (?:of|from|nobody|nothing)\b": "receive, learn of",
    r"\basks? nobody\b|\bnobody is asked\b": "needs no credential",
    r"\bshak(?:e|es|en|ing) hands\b|\bshaken\b|\bshook hands\b": "pair, handshake",
    r"(?:\b|_)seats?(?:\b|_)": "slot, member",
    r"\bcallers? (?:goes|left|leaves|has gone|is gone)\b|\bthe caller go\b": "disconnect",
}
"""A pattern (case is ignored; a space may be a line's end), and the field's words for it."""
PATTERNS = [(re.compile(key.replace(" ", r"\s+"), re.IGNORECASE), instead) for key, instead in HOME_MADE.items()]

ALLOWED = {
    "models/problems.py": ('"books"',),
    # Rewritten with the gateway.
    "docs/architecture.md": ("most room", "connector believes", "answer's room", "tells\n   reasoning", "caller goes"),
}
"""Phrases that are ordinary English, or names that stay, by the file they are in."""

HISTORY = ("CHANGELOG.md", "docs/lab-notes.md", "tests/test_words.py")
LAST_ADR_OF_BEFORE = 26

_FOLDERS = (
    "bench benchmarks cluster decode_workers docker docs doctor examples helm interface kv_transfer models "
    "orchestrator planner prefill_workers proto scripts tests workers"
)
FOLDERS = _FOLDERS.split()
_GENERAL = (
    "ADR AMD AMX API AVX CPU CRD CRLF CSV CUDA BUF DMA DNS DRA EPYC GCC GPU HTTP IPC JSON LLM NCCL NIC NUL "
    "NUMA PEM PID RDMA README SHA SIGILL SIGSTOP SIGTERM SXM TCP TLS URL UTC UTF"
)
GENERAL = frozenset(_GENERAL.split())
"""Abbreviations that need no explanation here."""
SUFFIXES = {".html", ".md", ".proto", ".py", ".sh", ".tpl", ".txt", ".yaml"}


def pages() -> list[Path]:
    """Everything that a person wrote to be read."""
    found = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()
    ]
    found += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")]
    return [path for path in found if not is_exempt(path.relative_to(ROOT).as_posix())]


def is_exempt(name: str) -> bool:
    """History, and generated files."""
    if name.startswith("docs/adr/"):
        return int(name.removeprefix("docs/adr/")[:4]) <= LAST_ADR_OF_BEFORE
    return name in HISTORY or "/golden/" in name


def home_made(text: str, allowed: tuple[str, ...] = ()) -> list[tuple[int, str, str]]:
    """Line, word found and what to write instead."""
    for phrase in allowed:
        text = text.replace(phrase, re.sub(r"\S", " ", phrase))
    return [
        (text.count("\n", 0, found.start()) + 1, found[0], instead)
        for pattern, instead in PATTERNS
        for found in pattern.finditer(text)
    ]


def test_the_words_are_the_fields() -> None:
    faults = [
        f"{name}:{line}: {word!r}: {instead}"
        for path in sorted(pages())
        if (name := path.relative_to(ROOT).as_posix())
        for line, word, instead in home_made(path.read_text(), ALLOWED.get(name, ()))
    ]
    assert not faults, "\n".join(["home-made words", *faults])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The longest makes way.", ["makes way"]),
        ("# Who asks", ["# Who"]),
        ("It is told at each look.", ["told", "each look"]),
        ("the RequestBook of a waits_for_room", ["Book", "_room"]),
        ("users who wait in a queue", []),
        ("Look it up in the runbook, out of the way; it looks like a cached book_", ["book_"]),
    ],
)
def test_patterns_find_home_made_words_alone(text: str, found: list[str]) -> None:
    assert sorted(word for _, word, _ in home_made(text)) == sorted(found)


def terms() -> list[str]:
    """What the glossary explains."""
    return [term.strip() for bold in re.findall(r"\*\*([^*]+)\*\*", GLOSSARY.read_text()) for term in bold.split(",")]


def test_the_glossary_explains_each_term_once() -> None:
    found = terms()
    assert len(found) > 60
    assert [term for term in found if found.count(term) > 1] == []


def test_abbreviations_of_the_guides_are_explained() -> None:
    known = GENERAL.union(terms())
    unknown = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        if name not in HISTORY:
            prose = re.sub(r"```.*?```|`[^`]*`|^    .*$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
            used = re.findall(r"\b[A-Z]{3,}s?\b(?!\.md)", prose)
            unknown |= {(name, word) for word in used if word.removesuffix("s") not in known}
    assert unknown == set(), "explain these in docs/glossary.md, or write them out"
