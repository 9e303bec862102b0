"""What a command ends with, whoever ends it."""

import sys
from typing import Any

import pytest
import typer

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
