"""The command line."""

import pytest

from fastclf.cli import main


def test_no_command_shows_the_commands(capsys):
    main([])
    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "env" in shown


def test_an_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["train"])
    assert "'train'" in capsys.readouterr().err


def test_env_names_what_runs(capsys):
    main(["env"])
    assert "native code" in capsys.readouterr().out
