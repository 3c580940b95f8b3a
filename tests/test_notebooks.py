"""Notebooks open in Colab by a badge, and their first cell installs gzpaper there; elsewhere it does nothing."""

import json

import pytest
from colab import INSTALL, notebooks, opened, opening


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_a_notebook_opens_in_colab(path):
    "After the title, a badge; then, as the first code cell, the installation."
    assert "".join(json.loads(path.read_text())["cells"][0]["source"]).startswith("# ")
    assert path.read_text() == opened(path), "run `make colab`"


class Shell:
    "IPython, which only notes what it is told."

    def __init__(self, name: str):
        self.name, self.told = name, []

    def __str__(self) -> str:
        return self.name

    def system(self, command: str):
        self.told.append(command)

    def run_line_magic(self, magic: str, line: str):
        self.told.append(f"%{magic} {line}")


def told(shell: str) -> list[str]:
    "What the first code cell tells a shell of this name."
    found = Shell(shell)
    exec("".join(opening(notebooks()[0])[1]["source"]), {"get_ipython": lambda: found})
    return found.told


def test_the_first_cell_does_nothing_elsewhere():
    assert told("<ipykernel.zmqshell.ZMQInteractiveShell object at 0x7f>") == []


def test_the_first_cell_installs_on_colab():
    "What is cloned is installed without the constraints, and is where the notebook goes on."
    clone, install, change = told("<google.colab._shell.Shell object at 0x7f>")
    place = clone.split()[-1]
    assert clone.startswith("git clone") and "https://github.com/" in clone
    assert f"{place}[paper]" in install and "-c " not in install
    assert change == f"%cd -q {place}"


def test_owner_and_repository_are_in_settings_alone():
    "A fork changes them in settings.ini, and runs `make colab`."
    assert "github.com" not in INSTALL
