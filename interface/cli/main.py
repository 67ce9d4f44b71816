"""The `baton` command. Each command's body is in a module of its own; here are names, options and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError, ServingError
from interface.cli import cli_options
from interface.cli.cli_options import (
    ControllerOption,
    ControllerSpecOption,
    EndpointOption,
    JsonOption,
    NameOption,
    SpecOption,
    takes,
)
from interface.cli.kube_target import KubeTarget
from interface.cli.later_commands import Commands
from interface.cli.model_app import model_app
from interface.client.credentials import Credentials

app = typer.Typer(
    name="baton",
    cls=Commands,
    help="An inference cluster for models that think: prefill and decode in pools of their own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def up(
    file: SpecOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec and print the placement plan.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the cluster is ready.")] = False,
    address: Annotated[str | None, typer.Option("--address", help="Join this Ray cluster.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a cluster and serve until Ctrl-C."""
    from interface.cli import up_command

    up_command.up(file, dry_run=dry_run, detach=detach, address=address, as_json=as_json)


@app.command()
def down(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Stop a cluster on this machine, also one whose `up` was killed."""
    from interface.cli import up_command

    up_command.down(name, as_json=as_json)


@app.command()
@takes(credentials=cli_options.credentials, target=cli_options.kube_target)
def status(
    name: NameOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    *,
    credentials: Credentials,
    target: KubeTarget | None,
) -> None:
    """Show workers, pairs and requests: of the cluster here, of a gateway, or of a release on Kubernetes."""
    from interface.cli import status_command

    _one_cluster(target, name, endpoint)
    status_command.status(name, endpoint, as_json=as_json, watch=watch, credentials=credentials, target=target)


@app.command()
@takes(credentials=cli_options.credentials, target=cli_options.kube_target)
def top(
    name: NameOption = None,
    endpoint: EndpointOption = None,
    once: Annotated[bool, typer.Option("--once", help="Draw one screen and end.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model, where the cluster has several; by default the first.")
    ] = None,
    *,
    credentials: Credentials,
    target: KubeTarget | None,
) -> None:
    """Watch the pools: demand against capacity, the forecast with its band, decisions, lengths by phase."""
    from interface.cli import status_command
    from interface.cli.top_view import TopView

    _one_cluster(target, name, endpoint)
    status_command.status(
        name,
        endpoint,
        as_json=False,
        watch=not once,
        credentials=credentials,
        target=target,
        draw=TopView(model).render,
    )


@app.command()
@takes(target=cli_options.kube_target)
def drain(
    workers: Annotated[list[str] | None, typer.Argument(help="Workers, as `baton status` names them.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="All workers on this machine, which goes away: for a pod's preStop.")
    ] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout-s", help="Stop them after this long; by default the spec's.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Start a new worker in each one's place.")] = False,
    controller: ControllerOption = None,
    file: ControllerSpecOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
    *,
    target: KubeTarget | None,
) -> None:
    """Empty workers, moving their requests elsewhere with the KV, then stop them."""
    from interface.cli import drain_command

    # BATON_CONTROLLER and BATON_SPEC may come from a pod's environment; a release asked for by name goes before them.
    _one_cluster(target, name)
    if target is not None:
        drain_command.drain_release(
            target, workers or [], local=local, replace=replace, timeout_s=timeout_s, as_json=as_json
        )
        return
    drain_command.drain(
        workers or [], name, controller, file, local=local, replace=replace, timeout_s=timeout_s, as_json=as_json
    )


@app.command()
@takes(target=cli_options.kube_target)
def role(
    worker: Annotated[str, typer.Argument(help="Worker, as `baton status` names it.")],
    wanted: Annotated[str, typer.Argument(metavar="ROLE", help="prefill or decode.")],
    controller: ControllerOption = None,
    file: ControllerSpecOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
    *,
    target: KubeTarget | None,
) -> None:
    """Let a worker do another pool's work, with no restart of its engine."""
    from interface.cli import role_command

    _one_cluster(target, name)
    if target is not None:
        target.baton_on_head(["role", *(["--json"] if as_json else []), "--", worker, wanted], tty=False)
        return
    role_command.role(worker, wanted, name, controller, file, as_json=as_json)


@app.command()
@takes(scaling=cli_options.scaling, credentials=cli_options.credentials)
def generate(
    prompt: Annotated[str, typer.Argument(help="The question.")],
    name: NameOption = None,
    endpoint: EndpointOption = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most output tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    effort: Annotated[
        str | None, typer.Option(help="Thinking effort: none, minimal, low, medium, high, xhigh or max.")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Thinking budget in tokens.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")] = False,
    deadline_s: Annotated[float, typer.Option("--deadline-s", help="Seconds the request may take.")] = 600.0,
    as_json: JsonOption = False,
    *,
    scaling: dict[str, Any] | None,
    credentials: Credentials,
) -> None:
    """Ask one question, stream the answer, and print what it took."""
    from interface.cli import generate_command

    generate_command.generate(
        prompt,
        name,
        endpoint,
        sampling=_present(max_tokens=max_tokens, temperature=temperature),
        reasoning=_present(effort=effort, budget_tokens=budget),
        scaling=scaling,
        raw=raw,
        deadline_s=deadline_s,
        as_json=as_json,
        credentials=credentials,
    )


@app.command()
@takes(credentials=cli_options.credentials)
def chat(
    name: NameOption = None,
    endpoint: EndpointOption = None,
    effort: Annotated[
        str | None, typer.Option(help="Thinking effort: none, minimal, low, medium, high, xhigh or max.")
    ] = None,
    *,
    credentials: Credentials,
) -> None:
    """Talk with the model; an empty line or Ctrl-D ends it."""
    from interface.cli import generate_command

    generate_command.chat(name, endpoint, reasoning=_present(effort=effort), credentials=credentials)


@app.command()
def keys(
    tenant: Annotated[str, typer.Argument(help="The tenant that the key is for.")],
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Add the entry to this key file.")] = None,
    valid_days: Annotated[float | None, typer.Option("--valid-days", min=0, help="Days until it expires.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key: the key on stdout, its hash into the key file."""
    from interface.cli import keys_command

    keys_command.keys(tenant, file, valid_days=valid_days, as_json=as_json)


@app.command()
def gateway(
    spec: Annotated[Path, typer.Option("--spec", help="Cluster spec.")],
    controller: Annotated[str, typer.Option("--controller", help="host:port of the controller's registry.")],
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; by default the spec's.")] = None,
    probe_port: Annotated[
        int | None, typer.Option("--probe-port", help="Serve /startupz, /readyz and /livez here.")
    ] = None,
    grace_s: Annotated[float, typer.Option("--grace-s", help="Seconds that streams have to end.")] = 2,
) -> None:
    """Run one gateway of a cluster that runs elsewhere: a container's entrypoint."""
    from interface.cli import node_command

    node_command.gateway(spec, controller, host=host, probe_port=probe_port, grace_s=grace_s)


@app.command(context_settings={"ignore_unknown_options": True})
def node(
    spec: Annotated[Path, typer.Option("--spec", help="Cluster spec.")],
    controller: Annotated[
        str,
        typer.Option("--controller", help="host:port of the controller's registry; on the head, where to serve it."),
    ],
    ray_command: Annotated[list[str], typer.Argument(help="`-- ray start ... --block`")],
    probe_host: Annotated[str, typer.Option("--probe-host", help="Address of this pod.")] = "127.0.0.1",
    probe_port: Annotated[int, typer.Option("--probe-port", help="Port of probes and metrics.")] = 8081,
    head: Annotated[bool, typer.Option("--head", help="Run the controller, too.")] = False,
    lease: Annotated[bool, typer.Option("--lease", help="Control only while holding a Kubernetes Lease.")] = False,
    stall_timeout_s: Annotated[
        float, typer.Option("--stall-timeout-s", help="A loading engine that does nothing for so long hangs.")
    ] = 300,
    placement_timeout_s: Annotated[
        float, typer.Option("--placement-timeout-s", help="How long a worker may wait for a node.")
    ] = 1800,
    remove_drained_pods: Annotated[
        bool, typer.Option("--remove-drained-pods", help="On the head: have KubeRay take the pods of drained workers.")
    ] = False,
    node_labels: Annotated[
        bool,
        typer.Option("--node-labels", help="On the head: read topology, GPU kind and spot from the nodes' labels."),
    ] = False,
    domain_label: Annotated[
        str, typer.Option("--domain-label", help="With --node-labels: the label of a rack or zone.")
    ] = "",
) -> None:
    """Run a node of the Ray cluster with probes and metrics: a container's entrypoint."""
    from interface.cli import node_command
    from orchestrator.node.node import NodeSettings

    settings = NodeSettings(
        spec=spec,
        controller=controller,
        probe_host=probe_host,
        probe_port=probe_port,
        head=head,
        lease=lease,
        stall_timeout_s=stall_timeout_s,
        placement_timeout_s=placement_timeout_s,
        remove_drained_pods=remove_drained_pods,
        node_labels=node_labels,
        domain_label=domain_label,
    )
    node_command.node(settings, ray_command)


app.add_typer(model_app, name="model")


@app.command()
def decisions(
    file: Annotated[Path, typer.Argument(help="Decision log, JSON lines.")],
    every: Annotated[bool, typer.Option("--all", help="Also those that changed nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the autoscaler's decisions from its log, and make each again from its inputs; exit 1 if one differs."""
    from interface.cli import decisions_command

    decisions_command.decisions(file, every=every, as_json=as_json)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the versions of Baton and of what it runs on."""
    from interface.cli import version_command

    version_command.version(as_json=as_json)


def _one_cluster(target: KubeTarget | None, *named: str | None) -> None:
    if target is not None and any(named):
        raise ConfigError("--release is a cluster on Kubernetes: leave --name and --endpoint out")


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def main() -> None:
    """Entry point. An error is one sentence on stderr; exit code 2 for bad input, 1 for a failure."""
    try:
        app()
    except ServingError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        else:
            typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
