"""Opens a trace file as text, and walks it as CSV, JSON lines or a JSON array, one row at a time.

Compression is known by a file's first bytes, encoding by its byte order mark. Whatever is wrong is one sentence.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

from cluster.errors import ConfigError

_CHUNK = 1 << 18
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_REFUSED = {
    # Python unpacks it from 3.14 on.
    b"\x28\xb5\x2f\xfd": "is packed with zstd: unpack it first (zstd -d)",
    b"PK\x03\x04": "is a zip archive: unpack it first",
    b"PAR1": "is a Parquet file: write it as CSV or JSON lines first",
    b"SQLite format 3": "is an SQLite file: write it as CSV or JSON lines first",
}


def shown(value: object, most: int = 60) -> str:
    """A value of the file as it can be printed in a sentence: one line, short, plain characters.

    Example:
        >>> shown("a" * 100, most=8)
        "'aaaa..."
    """
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        # A number of more digits than Python prints, or one nested too deep.
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else text[: most - 3] + "..."


def clean(text: str) -> str:
    r"""A name of the file in printable characters, and not endless.

    Example:
        >>> clean("a" + chr(0) + "b")
        'a\\x00b'
    """
    return text[:200] if text.isprintable() else text.encode("unicode_escape").decode()[:200]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What a file system, a decompressor or a decoder says becomes a `ConfigError`."""
    try:
        yield
    except (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"cannot read the trace {path}: {' '.join(str(error).split())}") from error


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file as text, decompressed, without its byte order mark; line ends are kept.

    Raises:
        ConfigError: it cannot be opened, unpacked or decoded.
    """
    with readable(path):
        if not path.is_file():
            path.open("rb").close()
            raise ConfigError(f"cannot read the trace {path}: it is no regular file, and is read twice")
        with path.open("rb") as raw:
            head = raw.read(16)
        for mark, reason in _REFUSED.items():
            if head.startswith(mark):
                raise ConfigError(f"{path}: {reason}")
        opener = next((found for mark, found in _OPENERS.items() if head.startswith(mark)), None)
        stream: IO[bytes] = path.open("rb") if opener is None else opener(path)
        with stream:
            if opener is not None:
                with opener(path) as peek:
                    head = peek.read(4)
            encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
                yield text


def squeezed(name: str) -> str:
    """A column's name as it is compared: without case, spaces, underscores and quotes.

    Example:
        >>> squeezed(' "Request tokens"')
        'requesttokens'
    """
    return "".join(each for each in name.casefold() if each.isalnum())


class CsvTable:
    """Rows of a CSV file under its header, whose names are found whatever their case and spaces.

    Args:
        path: For what is said when something is wrong.
        file: Text, from its start.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path = path
        first = next((line for line in file if line.strip()), "")
        delimiter = max(",;\t", key=first.count)
        # Decimal commas are not distinguished from separators; a file with `;` has to write points.
        self._reader = csv.reader(_after(first, file), delimiter=delimiter, skipinitialspace=True)
        self._raw: list[str] = []
        with self._wrong_csv():
            self._raw = next(self._reader, [])
        self.names = [clean(name.strip()) for name in self._raw]
        self._squeezed = [squeezed(name) for name in self._raw]
        self.repeated_headers = 0

    def column(self, name: str) -> int:
        """Place of a column.

        Raises:
            ConfigError: it is missing, or there twice.
        """
        found = self.maybe(name)
        if found is None:
            raise ConfigError(f"{self._path}: column {name} is missing")
        return found

    def maybe(self, name: str) -> int | None:
        """Place of a column, or None.

        Raises:
            ConfigError: it is there twice.
        """
        places = [place for place, each in enumerate(self._squeezed) if each == squeezed(name)]
        if len(places) > 1:
            raise ConfigError(f"{self._path}: column {name} occurs {len(places)} times")
        return places[0] if places else None

    def unused(self, *names: str) -> list[str]:
        """Columns other than these."""
        known = {squeezed(name) for name in names}
        return [name for name, each in zip(self.names, self._squeezed, strict=True) if each not in known]

    def __iter__(self) -> Iterator[list[str]]:
        width, raw = len(self._raw), self._raw
        with self._wrong_csv():
            for row in self._reader:
                if len(row) != width:
                    if not any(map(str.strip, row)):
                        continue
                    raise self.wrong(f"{len(row)} values under a header of {width}")
                if row == raw:
                    self.repeated_headers += 1
                    continue
                yield row

    def wrong(self, problem: object) -> ConfigError:
        """The error for what is wrong with the row just given."""
        return ConfigError(f"{self._path}: line {self._reader.line_num}: {problem}")

    @contextmanager
    def _wrong_csv(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise self.wrong(f"not CSV ({error})") from error


def _after(first: str, file: TextIO) -> Iterator[str]:
    if first:
        yield first
    yield from file


@contextmanager
def csv_table(path: Path) -> Iterator[CsvTable]:
    """A CSV file, opened.

    Raises:
        ConfigError: as for `opened`.
    """
    with opened(path) as file:
        yield CsvTable(path, file)


def parsed(text: str) -> Any:
    """One JSON value.

    Raises:
        ValueError: it is not JSON; the text says so in a few words.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON array, or of a file with one on each line, each with where it stands.

    Raises:
        ConfigError: as for `json_items` and `json_lines`.
    """
    with opened(path) as file:
        start = next((line.lstrip()[:1] for line in iter(lambda: file.readline(_CHUNK), "") if line.strip()), "")
    return json_items(path) if start == "[" else json_lines(path)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file with one on each line, each with where it stands (``line 3``).

    Raises:
        ConfigError: as for `opened`, or a line is not a JSON object.
    """
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = parsed(line)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number}: {error}") from error
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: line {number}: expected an object {{...}}, got {shown(value)}")
            yield f"line {number}", value


def json_items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file that is one JSON array, each with where it stands (``item 3``); never all at once.

    Raises:
        ConfigError: as for `opened`, the array is broken, or holds something else than objects.
    """
    with opened(path) as file:
        for number, value in enumerate(_items(path, file), 1):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: item {number}: expected an object {{...}}, got {shown(value)}")
            yield f"item {number}", value


def _items(path: Path, file: TextIO) -> Iterator[Any]:
    decoder, place = json.JSONDecoder(), 0
    buffer = file.read(_CHUNK).lstrip()
    if not buffer.startswith("["):
        raise ConfigError(f"{path}: expected a JSON array")
    place, number = 1, 0
    while True:
        while place < len(buffer) and (buffer[place].isspace() or (number and buffer[place] == ",")):
            place += 1
        if place < len(buffer) and buffer[place] == "]":
            return
        try:
            if place >= len(buffer):
                raise ValueError("the array does not end")
            value, end = decoder.raw_decode(buffer, place)
            if end == len(buffer) and not isinstance(value, (dict, list, str)):
                # A number may go on in the next piece.
                raise ValueError("the array does not end")
        except RecursionError as error:
            raise ConfigError(f"{path}: item {number + 1}: JSON nested too deep") from error
        except ValueError as error:
            more = file.read(max(_CHUNK, len(buffer) - place))
            if not more:
                text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ConfigError(f"{path}: item {number + 1}: not JSON ({text})") from error
            buffer, place = buffer[place:] + more, 0
            continue
        number += 1
        yield value
        place = end
        if place > _CHUNK:
            buffer, place = buffer[place:], 0


def document(path: Path) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        ConfigError: as for `opened`, or it is none.
    """
    with opened(path) as file:
        try:
            value = parsed(file.read())
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object {{...}}, got {shown(value)}")
    return cast(dict[str, Any], value)
