"""`helm test` and laptops against gateways that ask for TLS, keys and certificates."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import Chart, Manifest, Rendered, RenderFailed, merged

TLS = {"certificate_file": "/etc/baton/tls/tls.crt", "private_key_file": "/etc/baton/tls/tls.key"}
TEST_POD = "trial-baton-test-generate"


def the_test_pod(rendered: Rendered) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Environment, volumes by name and mount paths by volume of the pod of `helm test`."""
    pod = rendered.of("Pod")[TEST_POD]["spec"]
    (container,) = pod["containers"]
    return (
        {entry["name"]: entry["value"] for entry in container["env"]},
        {volume["name"]: volume for volume in pod["volumes"]},
        {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]},
    )


def test_plain_gateways_need_nothing(chart: Chart, trial: Manifest) -> None:
    env, volumes, _ = the_test_pod(chart.render(trial))
    assert set(env) == {"HOME", "BATON_CACHE"}
    assert set(volumes) == {"tmp"}


def test_key_and_authority_come_from_secrets(chart: Chart, h100: Manifest) -> None:
    rendered = chart.render(h100)
    env, volumes, mounts = the_test_pod(rendered)
    key, authority = volumes["key"]["secret"], volumes["ca"]["secret"]
    assert (key["secretName"], key["items"]) == ("baton-test-key", [{"key": "key", "path": "key"}])
    assert env["BATON_KEY_FILE"] == f"{mounts['key']}/key"
    # Of the gateways' Secret the authority alone: their private key stays with them.
    assert (authority["secretName"], authority["items"]) == ("baton-tls", [{"key": "ca.crt", "path": "ca.crt"}])
    assert env["BATON_CA_FILE"] == f"{mounts['ca']}/ca.crt"
    assert "Secret" not in rendered.kinds


def test_own_authority_and_client_certificate(chart: Chart, h100: Manifest) -> None:
    values = merged(
        h100,
        {
            "config.security.tls": {**TLS, "client_ca_file": "/etc/baton/tls/ca.crt"},
            "helmTest": {"keySecret": "k", "keyField": "token", "caSecret": "roots", "clientSecret": "mine"},
        },
    )
    env, volumes, mounts = the_test_pod(chart.render(values))
    assert volumes["key"]["secret"]["items"] == [{"key": "token", "path": "key"}]
    assert volumes["ca"]["secret"]["secretName"] == "roots"
    assert volumes["client"]["secret"]["secretName"] == "mine"
    assert env["BATON_CERTIFICATE_FILE"] == f"{mounts['client']}/tls.crt"
    assert env["BATON_PRIVATE_KEY_FILE"] == f"{mounts['client']}/tls.key"


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"helmTest": {}}, "helmTest.keySecret"),
        (
            {"config.security.tls": {**TLS, "client_ca_file": "/etc/baton/tls/ca.crt"}},
            "helmTest.clientSecret",
        ),
    ],
)
def test_without_credentials_there_is_no_test_and_notes_say_why(
    chart: Chart, h100: Manifest, changes: Manifest, lacks: str
) -> None:
    values = merged(h100, changes)
    assert TEST_POD not in chart.render(values).of("Pod")
    notes = chart.notes(values)
    assert f"`helm test` needs credentials: set {lacks}." in notes
    assert "--logs" not in notes


def test_caller_expects_the_services_name(chart: Chart, h100: Manifest) -> None:
    rendered = chart.render(h100)
    env, _, _ = the_test_pod(rendered)
    assert env["BATON_SERVER_NAME"] == "trial-baton-grpc.serving.svc"
    assert rendered.gateway["metadata"]["annotations"]["baton.io/server-name"] == env["BATON_SERVER_NAME"]
    assert "trial-baton-grpc" in rendered.of("Service")
    named = chart.render(merged(h100, {"gateway.serverName": "llm.example.org"}))
    assert the_test_pod(named)[0]["BATON_SERVER_NAME"] == "llm.example.org"


def test_services_tell_balancers_of_tls(chart: Chart, trial: Manifest, h100: Manifest) -> None:
    for values, grpc, http in ((trial, "kubernetes.io/h2c", "http"), (h100, "https", "https")):
        services = chart.render(values).of("Service")
        assert services["trial-baton-grpc"]["spec"]["ports"][0]["appProtocol"] == grpc
        assert services["trial-baton-http"]["spec"]["ports"][0]["appProtocol"] == http


@pytest.mark.parametrize(
    ("field", "secret"),
    [("tls", "tls"), ("api_keys_file", "apiKeys"), ("cluster_secret_file", "cluster")],
)
def test_a_file_that_no_secret_brings_is_refused(chart: Chart, h100: Manifest, field: str, secret: str) -> None:
    h100["secrets"].pop(secret)
    with pytest.raises(RenderFailed, match=rf"config.security.{field} is set: name the Secret .* secrets.{secret}"):
        chart.render(h100)


def test_drain_in_a_pod_can_show_the_cluster_secret(chart: Chart, h100: Manifest) -> None:
    """`baton drain` of preStop and from a laptop reads the security section of the mounted spec."""
    rendered = chart.render(h100)
    for pod in (rendered.head, rendered.worker("decode")):
        (container,) = pod["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert env["BATON_SPEC"] == f"{mounts['spec']}/cluster.yaml"
        assert env["BATON_CONTROLLER"] == "trial-baton-r1-head-svc:50100"
        assert mounts["cluster-secret"] == "/etc/baton/cluster"
