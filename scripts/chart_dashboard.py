"""The Grafana dashboard, from one line per panel."""

from __future__ import annotations

from typing import Any

W = "[$__rate_interval]"

PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "Time to first token",
        "s",
        [
            (f"histogram_quantile({q}, sum by (le) (rate(baton_ttft_seconds_bucket{W})))", f"p{int(q * 100)}")
            for q in (0.5, 0.95, 0.99)
        ],
    ),
    (
        "Time to first answer token",
        "s",
        [
            (f"histogram_quantile({q}, sum by (le) (rate(baton_ttfat_seconds_bucket{W})))", f"p{int(q * 100)}")
            for q in (0.5, 0.95)
        ],
    ),
    (
        "Gap between tokens",
        "s",
        [
            (f"histogram_quantile({q}, sum by (le) (rate(baton_itl_seconds_bucket{W})))", f"p{int(q * 100)}")
            for q in (0.5, 0.95, 0.99)
        ],
    ),
    ("Tokens per second", "short", [(f"sum by (phase) (rate(baton_tokens_total{W}))", "{{phase}}")]),
    ("Requests in flight", "short", [("sum by (state) (baton_in_flight_requests)", "{{state}}")]),
    (
        "Requests per second",
        "reqps",
        [
            (f"sum by (reason) (rate(baton_requests_finished_total{W}))", "finished: {{reason}}"),
            (f"sum by (error) (rate(baton_requests_failed_total{W}))", "failed: {{error}}"),
            (f"sum by (reason) (rate(baton_requests_rejected_total{W}))", "rejected: {{reason}}"),
        ],
    ),
    (
        "Wait for a pair",
        "s",
        [(f"histogram_quantile(0.95, sum by (le) (rate(baton_queue_seconds_bucket{W})))", "p95")],
    ),
    ("KV in use", "percentunit", [("max by (pool, worker) (baton_kv_used_ratio)", "{{worker}}")]),
    ("Workers", "short", [("max by (pool, state) (baton_workers)", "{{pool}} {{state}}")]),
    ("Pairs by transport", "short", [("max by (transport) (baton_pairs)", "{{transport}}")]),
    (
        "KV transfer rate",
        "Bps",
        [(f"sum(rate(baton_handoff_bytes_sum{W})) / sum(rate(baton_transfer_seconds_sum{W}))", "of a transfer")],
    ),
    (
        "Handoff",
        "s",
        [(f"histogram_quantile(0.95, sum by (le) (rate(baton_handoff_seconds_bucket{W})))", "p95")],
    ),
    (
        "Trouble",
        "short",
        [
            (f"sum(rate(baton_retries_total{W}))", "prefilled again"),
            (f"max by (worker) (increase(baton_canary_failures_total{W}))", "wrong: {{worker}}"),
            (f"sum(rate(vllm:nixl_num_kv_expired_reqs_total{W}))", "leases expired"),
            (f"sum(rate(vllm:nixl_num_failed_transfers_total{W}))", "transfers failed"),
        ],
    ),
]


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model: two panels a row."""
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": title,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + index), "expr": expression, "legendFormat": legend}
                for index, (expression, legend) in enumerate(queries)
            ],
        }
        for number, (title, unit, queries) in enumerate(PANELS)
    ]
    return {
        "title": "Baton",
        "uid": "baton",
        "tags": ["baton", "inference"],
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }
