"""Whole days from ServeGen's published marginals: per client and window a rate and gaps, per client lengths.

Only marginals are public, so a request's input, output and reasoning share are drawn independently of each other.
Source: alibaba/ServeGen, arXiv:2505.09999.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.errors import ConfigError
from orchestrator.simulator.arrivals import Gaps, bridge
from orchestrator.simulator.lengths import Quantiles
from orchestrator.simulator.workload import Floats, Workload

WINDOW_S = 600.0
SEGMENT_S = 21600.0


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
        """Read the two files.

        Raises:
            ConfigError: one cannot be read or is malformed; the text names file and line.
        """
        windows = []
        for number, row in _rows(windows_path):
            try:
                # Gaps of a client keep their shape; their scale follows from the rate of the window.
                gaps = Gaps("gamma" if row["pattern"] == "Gamma" else "weibull", float(row["shape"]))
                windows.append(Window(row["client_id"], float(row["window_start_s"]), float(row["rate_rps"]), gaps))
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigError(f"{windows_path}: line {number}: {error}") from error
        quantiles = {}
        for number, row in _rows(quantiles_path):
            try:
                values = tuple(float(row[f"q{index}"]) for index in range(101))
                key = (row["client_id"], int(float(row["segment_start_s"])), row["field"])
                quantiles[key] = Quantiles(values)
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigError(f"{quantiles_path}: line {number}: {error}") from error
        return cls(tuple(windows), quantiles)

    def draw(
        self, rng: np.random.Generator, *, rate: float = 1.0, start_s: float = 0.0, end_s: float = 86400.0
    ) -> Workload:
        """The requests of ``[start_s, end_s)``, at ``rate`` times the measured rate, as a workload from time 0.

        Every window brings its measured number of requests times ``rate``, a fraction rounded at random.
        """
        tenants = tuple(dict.fromkeys(window.client for window in self.windows))
        number = {name: index for index, name in enumerate(tenants)}
        times: list[Floats] = []
        columns: list[tuple[int, Floats, Floats, Floats]] = []
        for window in self.windows:
            count = int(window.rate_per_s * WINDOW_S * rate + rng.random())
            if not count:
                continue
            times.append(bridge(window.gaps, count, window.start_s, WINDOW_S, rng))
            isl, osl, share = (
                self._quantiles(window, name).at_share(rng.random(count))
                for name in ("input_tokens", "output_tokens", "reason_ratio")
            )
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


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="") as file:
            return [(number, row) for number, row in enumerate(csv.DictReader(file), 2)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
