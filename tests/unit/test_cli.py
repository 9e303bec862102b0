"""What a command ends with, whoever ends it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kfp_components import cli, errors


@pytest.mark.parametrize(
    ("raised", "code"),
    [(typer.Exit(1), 1), (typer.Exit(3), 3), (KeyboardInterrupt(), 130), (SystemExit(143), 143), (errors.Inconclusive("held"), 5), (None, 0)],
)
def test_a_command_ends_with_the_code_of_what_ended_it(
    raised: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Empty:
        def list(self, *_args: Any, **_options: Any) -> list[Any]:
            return []

    def cluster(_kubeconfig: object) -> Empty:
        if raised is not None:
            raise raised
        return Empty()

    if isinstance(raised, SystemExit):
        raised.add_note("v1 serves all requests")
    monkeypatch.setattr(cli, "_cluster", cluster)
    monkeypatch.setattr(sys, "argv", ["kfp-serving", "status", "-n", "ai-ml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    if isinstance(raised, SystemExit):
        assert "v1 serves all requests" in capsys.readouterr().err


def test_a_word_in_place_of_a_step_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kfp-serving", "compile", "--steps", "10,a"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def every_command(found: Any = None, *above: str) -> list[tuple[tuple[str, ...], Any]]:
    """Words and command of each, groups gone into."""
    found = found or typer.main.get_command(cli.app)
    inner = getattr(found, "commands", None)
    return [(above, found)] if inner is None else [one for name, command in inner.items() for one in every_command(command, *above, name)]


def test_every_command_gives_one_document_where_it_is_asked_for() -> None:
    assert [words for words, command in every_command() if not any("--json" in parameter.opts for parameter in command.params)] == []


@pytest.mark.parametrize("port", [None, 9123])
def test_local_status_says_where_grpc_is_answered(tmp_path: Path, port: int | None) -> None:
    if port:
        (tmp_path / "state.json").write_text(json.dumps({"parts": [], "facts": {"grpc_port": port}}))
    done = CliRunner().invoke(cli.app, ["local", "status", "--home", str(tmp_path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["grpc"] == (f"127.0.0.1:{port}" if port else None)
    told = CliRunner().invoke(cli.app, ["local", "status", "--home", str(tmp_path)]).stdout
    assert ("gRPC: 127.0.0.1:9123" in told) is bool(port)


def test_down_where_nothing_runs_and_compile_say_it_as_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["local", "down", "--home", str(tmp_path / "home"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"home": str(tmp_path / "home"), "running": False}
    done = CliRunner().invoke(cli.app, ["compile", "--output", str(tmp_path / "out"), "--json"])
    found = json.loads(done.stdout)
    assert found["wrote"] and {"promote_with_canary.yaml", "components/promote_model.yaml"} <= set(found["files"])
    assert all((tmp_path / "out" / name).is_file() for name in found["files"])
