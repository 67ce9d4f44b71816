"""Whole days from ServeGen's published marginals: per client and window a rate and gaps, per client lengths.

Only marginals are public, so a request's input, output and reasoning share are drawn independently of each other.
Source: alibaba/ServeGen, arXiv:2505.09999.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.arrivals import Gaps, bridge
from planner.simulator.lengths import Quantiles
from planner.simulator.trace_formats.cells import seconds
from planner.simulator.trace_formats.source import clean, csv_table, document, opened, shown
from planner.simulator.workload import Floats, Workload

WINDOW_S = 600.0
SEGMENT_S = 21600.0
_POINTS = 1001
_MOST_PER_S = 1e5


@dataclass(frozen=True, slots=True)
class Window:
    """Ten minutes of one client."""

    client: str
    start_s: float
    rate_per_s: float
    gaps: Gaps


@dataclass(frozen=True)
class ServeGen:
    """A production day: the windows, and the inverse length distributions of each client and six-hour segment."""

    windows: tuple[Window, ...]
    quantiles: dict[tuple[str, int, str], Quantiles] = field(repr=False)

    @classmethod
    def read(cls, windows_path: Path, quantiles_path: Path) -> ServeGen:
        """Read the two tables: a window, and a length's quantiles, a row.

        Raises:
            ConfigError: one cannot be read or is malformed; the text names file and line.
        """
        windows = []
        with csv_table(windows_path) as table:
            client, start, rate, pattern, shape = (
                table.column(name) for name in ("client_id", "window_start_s", "rate_rps", "pattern", "shape")
            )
            for row in table:
                try:
                    gaps = _gaps(row[pattern], row[shape])
                    start_s, rate_per_s = seconds(row[start], "window_start_s"), _rate(row[rate])
                except ValueError as error:
                    raise table.wrong(error) from error
                windows.append(Window(clean(row[client]), start_s, rate_per_s, gaps))
        quantiles = {}
        with csv_table(quantiles_path) as table:
            client, segment, name = (table.column(each) for each in ("client_id", "segment_start_s", "field"))
            places = [table.column(f"q{index}") for index in range(101)]
            for row in table:
                try:
                    values = tuple(seconds(row[place], "quantile", least=0.0) for place in places)
                    key = (clean(row[client]), int(seconds(row[segment], "segment_start_s")), row[name])
                    quantiles[key] = Quantiles(values)
                except (ValueError, ConfigError) as error:
                    raise table.wrong(error) from error
        return cls(tuple(windows), quantiles)

    @classmethod
    def read_folder(cls, folder: Path) -> ServeGen:
        """Read ServeGen's own files: ``chunk-N-trace.csv`` without a header, ``chunk-N-dataset.json`` of densities.

        Raises:
            ConfigError: as for `read`.
        """
        windows, quantiles = [], {}
        for path in sorted(folder.glob("chunk-*-trace.csv"), key=lambda path: (len(path.name), path.name)):
            client = clean(path.name.split("-")[1])
            segments = _densities(folder / f"chunk-{client}-dataset.json")
            quantiles.update({(client, *key): found for key, found in segments.items()})
            for number, row in _plain_rows(path):
                try:
                    # A window without requests names no pattern.
                    if row[3].strip():
                        start_s, rate_per_s = seconds(row[0], "window start"), _rate(row[1])
                        windows.append(Window(client, start_s, rate_per_s, _gaps(row[3], row[4])))
                except (ValueError, IndexError) as error:
                    raise ConfigError(f"{path}: line {number}: {error}") from error
        return cls(tuple(windows), quantiles)

    def draw(
        self, rng: np.random.Generator, *, rate: float = 1.0, start_s: float = 0.0, end_s: float = 86400.0
    ) -> Workload:
        """The requests of ``[start_s, end_s)``, at ``rate`` times the measured rate, as a workload from time 0.

        Every window brings its measured number of requests times ``rate``, a fraction rounded at random.
        """
        tenants = tuple(dict.fromkeys(window.client for window in self.windows))
        number = {name: index for index, name in enumerate(tenants)}
        # Only reasoning models have the ratio.
        thinks = any(name == "reason_ratio" for _, _, name in self.quantiles)
        times: list[Floats] = []
        columns: list[tuple[int, Floats, Floats, Floats]] = []
        for window in self.windows:
            count = int(window.rate_per_s * WINDOW_S * rate + rng.random())
            if not count:
                continue
            times.append(bridge(window.gaps, count, window.start_s, WINDOW_S, rng))
            isl, osl = (
                self._quantiles(window, name).at_share(rng.random(count)) for name in ("input_tokens", "output_tokens")
            )
            share = self._quantiles(window, "reason_ratio").at_share(rng.random(count)) if thinks else np.zeros(count)
            columns.append((number[window.client], isl, osl, share))
        if not times:
            raise ConfigError("servegen: no request falls into the span asked for")
        arrival_s = np.concatenate(times)
        isl = np.maximum(1, np.rint(np.concatenate([each[1] for each in columns]))).astype(np.int64)
        osl = np.maximum(1, np.rint(np.concatenate([each[2] for each in columns]))).astype(np.int64)
        share = np.clip(np.concatenate([each[3] for each in columns]), 0.0, 1.0)
        # At least one token of answer: a request always ends with something said.
        reasoning = np.minimum(np.rint(osl * share).astype(np.int64), osl - 1)
        tenant = np.repeat([each[0] for each in columns], [len(each[1]) for each in columns]).astype(np.int64)
        order = np.argsort(arrival_s, kind="stable")
        day = Workload(
            arrival_s[order],
            isl[order],
            reasoning[order],
            (osl - reasoning)[order],
            tenant=tenant[order],
            tenants=tenants,
        )
        return day.between(start_s, end_s)

    def _quantiles(self, window: Window, name: str) -> Quantiles:
        """The client's lengths in this segment, or in the nearest one that was measured."""
        segment = int(window.start_s // SEGMENT_S * SEGMENT_S)
        found = self.quantiles.get((window.client, segment, name))
        if found is not None:
            return found
        near = [key for key in self.quantiles if key[0] == window.client and key[2] == name]
        if not near:
            raise ConfigError(f"servegen: client {window.client} has no quantiles of {name}")
        return self.quantiles[min(near, key=lambda key: abs(key[1] - segment))]


def _gaps(pattern: str, shape: str) -> Gaps:
    """Gaps of a client keep their shape; their scale follows from the rate of the window."""
    families: dict[str, Literal["gamma", "weibull"]] = {"gamma": "gamma", "weibull": "weibull"}
    family = families.get(pattern.strip().casefold())
    if family is None:
        raise ValueError(f"pattern: expected Gamma or Weibull, got {shown(pattern)}")
    return Gaps(family, seconds(shape, "shape", least=1e-6))


def _rate(value: str) -> float:
    rate_per_s = seconds(value, "rate", least=0.0)
    if rate_per_s > _MOST_PER_S:
        raise ValueError(f"rate: expected at most {_MOST_PER_S:,.0f} a second, got {shown(value)}")
    return rate_per_s


def _plain_rows(path: Path) -> list[tuple[int, list[str]]]:
    with opened(path) as file:
        lines = enumerate(file.read().splitlines(), 1)
    return [(number, line.split(",")) for number, line in lines if line.strip()]


def _densities(path: Path) -> dict[tuple[int, str], Quantiles]:
    """Quantiles by segment and field. A density is a text such as ``{39: 0.001, 40: 0.002}``; tokens or a ratio."""
    found = {}
    for start, fields in document(path).items():
        try:
            for name, text in fields.items():
                density = {float(at): float(weight) for at, weight in ast.literal_eval(text).items()}
                # Lists of lengths (images) have no place here; a segment without requests is empty.
                if density and sum(density.values()) > 0:
                    found[int(start), str(name)] = _quantiles_of(density)
        except (ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError, ConfigError) as error:
            problem = f"{type(error).__name__}, no density such as {{39: 0.001}}"
            raise ConfigError(f"{path}: segment {shown(start)}: {problem}") from error
    return found


def _quantiles_of(density: dict[float, float]) -> Quantiles:
    values = np.array(sorted(density))
    weights = np.array([density[value] for value in values])
    if not np.isfinite(values).all() or not np.isfinite(weights).all() or weights.min() < 0 or values[0] < 0:
        raise ValueError("expected finite values >= 0")
    shares = np.cumsum(weights) / weights.sum()
    places = np.searchsorted(shares, np.linspace(0.0, 1.0, _POINTS) - 1e-12)
    return Quantiles(tuple(values[np.minimum(places, len(values) - 1)].tolist()))
