"""Requests sampled from ServeGen: ``arrival_s, client_id, input_tokens, output_tokens``, and these apart as
``reason_tokens`` and ``answer_tokens``.
"""

from __future__ import annotations

from pathlib import Path

from planner.simulator.trace_formats.azure import header_notes
from planner.simulator.trace_formats.cells import MISSING, Clock, tokens
from planner.simulator.trace_formats.reading import Rows, TraceOptions, TraceReading
from planner.simulator.trace_formats.source import clean, csv_table

COLUMNS = ("arrival_s", "client_id", "input_tokens", "output_tokens", "reason_tokens", "answer_tokens")


def read(path: Path, options: TraceOptions) -> TraceReading:
    """Read one. The unit is in the column's name.

    Raises:
        ConfigError: the file cannot be read or a row is malformed; the text names the line.
    """
    rows, clock = Rows(), Clock("arrival_s", "auto", "s")
    with csv_table(path) as table:
        at, client, isl, osl, reason, answer = (table.column(name) for name in COLUMNS)
        for row in table:
            try:
                prompt, output = tokens(row[isl], "input_tokens"), tokens(row[osl], "output_tokens")
                thought, said = tokens(row[reason], "reason_tokens"), tokens(row[answer], "answer_tokens")
                at_s = clock.seconds(row[at])
            except ValueError as error:
                raise table.wrong(error) from error
            if prompt <= 0 or MISSING in (thought, said) or thought + said <= 0:
                rows.drop(prompt, MISSING if MISSING in (thought, said) else thought + said)
                continue
            if output not in (MISSING, thought + said):
                raise table.wrong(f"output_tokens {output} is not reason_tokens {thought} + answer_tokens {said}")
            rows.at_s.append(at_s)
            rows.isl.append(prompt)
            rows.answer.append(said)
            rows.reasoning.append(thought)
            rows.tenant.append(rows.tenant_number(clean(row[client])))
        rows.notes += header_notes(table.unused(*COLUMNS), table.repeated_headers)
    return rows.reading("sample", path, clock)
