"""Reasoning in `encrypted_content`: clients that store nothing send back this field of a reasoning item alone. Pure.

Nothing is secret in it, since the item has the text beside it; the field is the way by which the text comes back.
"""

from __future__ import annotations

import base64
import binascii

INCLUDE = "reasoning.encrypted_content"
"""What clients name it in ``include``."""

_PREFIX = "baton:"


def sealed(text: str) -> str:
    """The field's value.

    Example:
        >>> sealed("Hm"), opened(sealed("Hm"))
        ('baton:SG0=', 'Hm')
    """
    return _PREFIX + base64.b64encode(text.encode()).decode()


def opened(value: str) -> str | None:
    """The text of a value; None where it was written elsewhere.

    Example:
        >>> opened("gAAAAABn") is None
        True
    """
    if not value.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(value.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
