"""Nothing secret, and no word of a prompt or an answer, where others can read it: ps, environment, logs, errors."""

from __future__ import annotations

import json
import re
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from cluster.errors import ServingError
from cluster.spec.config import parse
from interface.api_keys import add_to_file, make_key
from interface.client.client import AsyncClient
from interface.client.credentials import Credentials
from tests.support.certificates import Authority
from tests.support.gateway_process import fake_workers, gateway_processes, spec_text

SECRET = "the-cluster-secret-0123456789abcdef"
PROMPT = "wisteria and mulberry"  # nothing that a log would say by itself
BAD = "zanzibar"


@pytest.mark.parametrize("log_text", [False, True])
async def test_a_gateway_shows_no_secret_and_no_text_unless_asked(tmp_path: Path, log_text: bool) -> None:
    key, entry = make_key("acme")
    add_to_file(tmp_path / "keys.yaml", entry)
    (tmp_path / "secret").write_text(SECRET)
    authority = Authority(tmp_path)
    front, inner = authority.pair("front"), authority.pair("inner")
    text = spec_text(
        security={
            "tls": {"certificate_file": str(front.certificate), "private_key_file": str(front.key)},
            "internal_tls": {
                "ca_file": str(authority.file),
                "certificate_file": str(inner.certificate),
                "private_key_file": str(inner.key),
            },
            "cluster_secret_file": str(tmp_path / "secret"),
            "api_keys_file": str(tmp_path / "keys.yaml"),
            "log_text": log_text,
        }
    )
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    said: list[str] = []
    async with (
        fake_workers(parse(text), "prefill-0", "decode-0") as workers,
        gateway_processes(text, workers.registry, tmp_path) as (gateway,),
    ):
        good = Credentials(api_key=key, ca_file=authority.file)
        async with AsyncClient(gateway.grpc, credentials=good) as client:
            answer = await client.complete(prompt=PROMPT, max_tokens=40)
            workers.engines["decode-0"].fail_next = RuntimeError(f"{BAD} broke")
            workers.engines["decode-0"].fail_times = 9
            bad: list[dict[str, Any]] = [
                {"prompt": PROMPT, "stop": ["x" * 5000]},
                {"prompt": PROMPT, "model": BAD},
                {"messages": [{"role": "", "content": BAD}]},
                {"prompt": PROMPT, "structured_output": None, "min_tokens": 9, "max_tokens": 3},
                {"prompt": PROMPT, "max_tokens": 9},
            ]
            for options in bad:
                with pytest.raises(ServingError) as failed:
                    await client.complete(**options)
                said.append(str(failed.value))
        for credentials in (Credentials(api_key=wrong, ca_file=authority.file), Credentials(ca_file=authority.file)):
            async with AsyncClient(gateway.grpc, credentials=credentials) as client:
                with pytest.raises(ServingError) as failed:
                    await client.complete(prompt=PROMPT)
                said.append(str(failed.value))
        context = ssl.create_default_context(cafile=str(authority.file))
        base = f"https://127.0.0.1:{gateway.ports['http_port']}"
        async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {key}"}) as session:
            for body in (b"{" + PROMPT.encode(), json.dumps({"model": "fake", "prompt": PROMPT, "n": BAD}).encode()):
                headers = {"Content-Type": "application/json"}
                async with session.post("/v1/completions", data=body, headers=headers, ssl=context) as reply:
                    assert reply.status == 400
                    said.append(await reply.text())
        metrics = f"https://127.0.0.1:{gateway.ports['metrics_port']}/metrics"
        async with aiohttp.ClientSession() as session:
            async with session.get(metrics, ssl=context) as reply:
                assert reply.status == 401
            async with session.get(metrics, ssl=context, headers={"Authorization": f"Bearer {key}"}) as reply:
                assert reply.status == 200
        process = psutil.Process(gateway.process.pid)
        visible = [*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())]
    log = gateway.log.read_text()
    private = [line for line in front.key.read_text().splitlines() if line and "PRIVATE" not in line]
    for secret in (key, wrong, key.rsplit("-", 1)[1], entry.sha256, SECRET, *private):
        for place in (*visible, *said, log):
            assert secret not in place
    assert "worker decode-0 joined" in log
    assert answer.text
    for words in (PROMPT, answer.text):
        assert (repr(words)[1:-1] in log) == log_text
    # What the caller sent is not logged when it is refused, whatever the refusal quotes to the caller itself.
    assert not re.search(r"x{20}", log)
