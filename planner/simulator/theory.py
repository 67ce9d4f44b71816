"""What queueing theory says, to hold the simulator against."""

from __future__ import annotations

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.workload import Floats


def mm1_wait_s(rate_per_s: float, service_s: float) -> float:
    """Mean wait before service with Poisson arrivals and exponential service: ``rho / (1 - rho) * service``.

    Example:
        >>> mm1_wait_s(5.0, 0.1)
        0.1
    """
    return mg1_wait_s(rate_per_s, service_s, 1.0)


def mg1_wait_s(rate_per_s: float, service_s: float, service_cv: float) -> float:
    """Mean wait with Poisson arrivals and any service (Pollaczek and Khinchine); ``service_cv`` 0 is M/D/1.

    Raises:
        ConfigError: the load is 1 or more, so the queue has no mean.
    Example:
        >>> mg1_wait_s(5.0, 0.1, 0.0)
        0.05
    """
    load = rate_per_s * service_s
    if not 0 <= load < 1:
        raise ConfigError(f"load={load}: expected 0 <= load < 1")
    return load / (1.0 - load) * service_s * (1.0 + service_cv**2) / 2.0


def lindley_waits_s(arrival_s: Floats, service_s: Floats) -> Floats:
    """Exact wait of each request at one first-come server: ``W[i+1] = max(0, W[i] + S[i] - A[i+1])``, summed at once.

    Example:
        >>> lindley_waits_s(np.array([0.0, 1.0, 5.0]), np.array([3.0, 1.0, 1.0])).tolist()
        [0.0, 2.0, 0.0]
    """
    steps = service_s[:-1] - np.diff(arrival_s)
    walk = np.concatenate(([0.0], np.cumsum(steps)))
    waits: Floats = walk - np.minimum.accumulate(walk)
    return waits
