"""A command in this process, on the tiny model."""

import pytest

from minifuse.cli import main


@pytest.fixture
def run(tiny_folder, capsys):
    """Run a command, check its status, and return what it printed."""

    def call(*arguments, status=0, model=True):
        extra = ["--model", str(tiny_folder)] if model else []
        assert main([*map(str, arguments), *extra]) == status
        return capsys.readouterr()

    return call
