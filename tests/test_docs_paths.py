"""Files, folders and headings that the guides name exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "models").rglob("*.md"),
        ROOT / "helm" / "README.md",
    )
    # What history names may be gone.
    if path.name not in {"CHANGELOG.md", "lab-notes.md"} and path.parent.name != "adr"
)

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.~-])((?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*]/?|(?:README|CONTRIBUTING|CHANGELOG)\.md)")
FILE = re.compile(r"`(\w[\w-]*\.(?:py|md|proto|tpl|sh))`")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def file_names() -> frozenset[str]:
    """Names of all files in the repository's folders."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return frozenset(path.name for path in (*ROOT.iterdir(), *inside) if path.is_file())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in (first or second for first, second in LINK.findall(page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_exist(page: Path) -> None:
    text = re.sub(r"https?://\S+|\]\([^)]*\)", "", page.read_text())
    assert sorted({name for name in PATH.findall(text) if not exists(name)}) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_without_their_folder_exist(page: Path) -> None:
    assert sorted({name for name in FILE.findall(page.read_text()) if name not in file_names()}) == []


def exists(name: str) -> bool:
    """Whether a path, which may have an asterisk, leads to something."""
    return any(ROOT.glob(name.rstrip("/")))


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(name for name in guides if f"({name})" not in index) == []
