"""`docs/api.md` says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from interface.http.known import HARMLESS, HARMLESS_IN_MESSAGE, HARMLESS_IN_PART, REFUSED, REFUSED_IN_COMPLETIONS
from interface.http.messages.request import HARMLESS_IN_MESSAGES, REFUSED_IN_MESSAGES
from interface.http.responses.request import HARMLESS_IN_RESPONSES, REFUSED_IN_RESPONSES
from interface.status import ROWS

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("### Let through", HARMLESS),
        ("In a message:", HARMLESS_IN_MESSAGE),
        ("In a part:", HARMLESS_IN_PART),
        ("### Refused", frozenset(REFUSED)),
        ("in completions also", frozenset(REFUSED_IN_COMPLETIONS)),
    ],
    ids=["harmless", "in a message", "in a part", "refused", "in completions"],
)
def test_fields_are_listed(heading: str, names: frozenset[str]) -> None:
    section = PAGE.partition(heading)[2].partition("\n#")[0]
    assert [name for name in sorted(names) if f"`{name}`" not in section] == []


@pytest.mark.parametrize(
    "names",
    [
        HARMLESS_IN_MESSAGES,
        frozenset(REFUSED_IN_MESSAGES),
        HARMLESS_IN_RESPONSES,
        frozenset(REFUSED_IN_RESPONSES),
    ],
)
def test_fields_of_other_dialects_are_listed(names: frozenset[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "agents.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_the_error_table_is_the_codes() -> None:
    rows = [
        f"| `{kind.__name__}` | `{row.grpc.name}` | {row.http} | `{row.type}` | `{row.code}` |"
        for kind, row in ROWS.items()
    ]
    assert PAGE.endswith("|---|---|---|---|---|\n" + "\n".join(rows) + "\n")
