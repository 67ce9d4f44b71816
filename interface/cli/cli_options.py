"""Options that several commands take, alone or together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError
from interface.cli.kube_target import KubeTarget
from interface.client.credentials import Credentials

SpecOption = Annotated[Path | None, typer.Option("-f", "--file", help="Cluster spec; by default local.yaml.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Cluster, where several run on this machine.")]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint", help="host:port of a gateway; without it, the cluster on this machine.")
]
ControllerOption = Annotated[
    str | None, typer.Option("--controller", envvar="BATON_CONTROLLER", help="host:port of the controller's registry.")
]
ControllerSpecOption = Annotated[
    Path | None,
    typer.Option("-f", "--file", envvar="BATON_SPEC", help="With --controller: the spec, for its security section."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def credentials(
    key_file: Annotated[
        Path | None, typer.Option("--key-file", envvar="BATON_KEY_FILE", help="File with the API key or token to show.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", envvar="BATON_CA_FILE", help="Authority of the gateway's certificate: TLS."),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            "--server-name",
            envvar="BATON_SERVER_NAME",
            help="Name in the gateway's certificate, where not the endpoint's.",
        ),
    ] = None,
    certificate_file: Annotated[
        Path | None,
        typer.Option("--certificate-file", envvar="BATON_CERTIFICATE_FILE", help="Certificate to show, for mTLS."),
    ] = None,
    private_key_file: Annotated[
        Path | None, typer.Option("--private-key-file", envvar="BATON_PRIVATE_KEY_FILE", help="Its key.")
    ] = None,
) -> Credentials:
    """What to show to a gateway, and which authority to trust."""
    return Credentials.from_files(
        key_file,
        ca_file,
        server_name=server_name or "",
        certificate_file=certificate_file,
        private_key_file=private_key_file,
    )


def kube_target(
    release: Annotated[
        str | None, typer.Option("--release", help="Helm release on Kubernetes, reached through your kubeconfig.")
    ] = None,
    kube_context: Annotated[
        str | None,
        typer.Option("--kube-context", help="With --release: context of the kubeconfig; by default its current."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("-n", "--namespace", help="With --release: its namespace; by default the context's.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", help="With --release: by default $KUBECONFIG, then ~/.kube/config.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="With --release: which of two, during an upgrade.")
    ] = None,
) -> KubeTarget | None:
    """The release that is meant; None where ``--release`` is not given.

    Raises:
        ConfigError: the options contradict each other.
    """
    if release is not None:
        return KubeTarget(release, kube_context, namespace, kubeconfig, revision)
    if any((kube_context, namespace, kubeconfig, revision)):
        raise ConfigError("--kube-context, --namespace, --kubeconfig and --revision need --release")
    return None


def scaling(
    strategy: Annotated[
        str | None, typer.Option(help="Several traces: vote, best_of_n, confident_vote, refine; or single.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Traces at most.")] = None,
    agree: Annotated[float | None, typer.Option(help="How sure a vote has to be: above 0.5, below 1.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds; there is an answer at its end.")] = None,
    usd: Annotated[float | None, typer.Option(help="Budget in dollars, by the spec's prices.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Where a vote's answer stands: number, boxed, or a regular expression.")
    ] = None,
) -> dict[str, Any] | None:
    """What is asked of inference scaling; None where nothing is. A budget alone is for a single trace."""
    given = (strategy, samples, agree, seconds, usd, answer)
    if all(each is None for each in given):
        return None
    votes = (samples, agree, answer) != (None, None, None)
    asked: dict[str, Any] = {"strategy": strategy or ("vote" if votes else "single")}
    if samples is not None:
        asked["samples"] = {"max": samples}
    if agree is not None:
        asked["agree"] = agree
    if budget := {name: value for name, value in (("seconds", seconds), ("usd", usd)) if value is not None}:
        asked["budget"] = budget
    if answer is not None:
        kinds: dict[str, dict[str, Any]] = {"number": {"last_number": True}, "boxed": {"boxed": True}}
        asked["answer"] = kinds.get(answer, {"regex": answer})
    return asked


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have the options of each group, and get what the group makes of them, by the group's keyword."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        options = {key: inspect.signature(group, eval_str=True).parameters for key, group in groups.items()}
        parameters = [parameter for key, parameter in own.parameters.items() if key not in groups]
        parameters += [parameter for group in options.values() for parameter in group.values()]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {key: group(**{name: given.pop(name) for name in options[key]}) for key, group in groups.items()}
            command(**given, **made)

        # Typer reads the options off both.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
