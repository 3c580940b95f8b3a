"""Every paper notebook by plain papermill, as in JupyterLab: without the chain."""

import subprocess
import sys

import pytest

from gzpaper import chain


@pytest.mark.parametrize("name", chain.read_chain()["notebooks"])
def test_a_notebook_runs_by_plain_papermill(smoke, tmp_path, name):
    """From its own folder; what a run of the chain, which works in the repository's, has trained is used again."""
    profile = smoke / "paper/profiles/smoke.yaml"
    command = [sys.executable, "-m", "papermill", str(chain.notebook_path(name)), str(tmp_path / "out.ipynb"), "-f", str(profile)]
    done = subprocess.run(command, cwd=smoke / "nbs/paper", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
