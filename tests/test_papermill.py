"""Every paper notebook by plain papermill, as in JupyterLab: without the chain, from its own folder. What a run of the chain, which works
in the repository's, has trained is used again."""

import subprocess
import sys

import papermill
import pytest

from gzpaper import paper
from gzpaper.files import read_yaml

BY_COMMAND = "03_vgg7"  # the README's example


@pytest.mark.parametrize("name", [name for name in paper.read_chain()["notebooks"] if name != BY_COMMAND])
def test_a_notebook_runs_by_plain_papermill(smoke, tmp_path, name):
    parameters = read_yaml(smoke / "paper/profiles/smoke.yaml")
    papermill.execute_notebook(str(paper.notebook_path(name)), str(tmp_path / "out.ipynb"), parameters, cwd=str(smoke / "nbs/paper"),
                               progress_bar=False)


def test_a_notebook_runs_by_papermills_command(smoke, tmp_path):
    profile = smoke / "paper/profiles/smoke.yaml"
    command = [sys.executable, "-m", "papermill", str(paper.notebook_path(BY_COMMAND)), str(tmp_path / "out.ipynb"), "-f", str(profile)]
    done = subprocess.run(command, cwd=smoke / "nbs/paper", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
