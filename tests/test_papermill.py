"""Every paper notebook by plain papermill, as in JupyterLab: without the chain, from its own folder, on other labels of the test part.

What a notebook finds does not depend on these labels, unless it is the one that opens the part."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest

from gzpaper.data import read_labels, split
from gzpaper.files import read_yaml
from gzpaper.paper import OPENS_TEST, notebook_path, read_chain
from gzpaper.tree import COLUMNS

BY_COMMAND = "03_vgg7"  # the README's example


@pytest.fixture(scope="module")
def parameters(smoke) -> dict:
    "The profile smoke, on its mock galaxies with the labels of the test part dealt out anew."
    values = read_yaml(smoke / "paper/profiles/smoke.yaml")
    folder = Path(shutil.copytree(smoke / "runs/smoke/mock", smoke / "data/dealt"))
    labels = read_labels(folder / "training_solutions_rev1.csv")
    test = np.flatnonzero(split(labels.GalaxyID, values["validation"], values["test"]) == "test")
    labels.loc[test, COLUMNS] = labels.loc[np.roll(test, 1), COLUMNS].to_numpy()
    labels.to_csv(folder / "training_solutions_rev1.csv", index=False)
    return values | {"data": "data/dealt"}


SPEED = ("seconds", "minutes", "hours", "per_s", "took")  # what depends on the machine's


def plain(value):
    "Numbers without those of speed."
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items() if not any(word in name for word in SPEED)}
    return value


def shown(folder: Path, name: str) -> dict:
    "The numbers and tables of a section."
    notes = {path: json.loads(path.read_text()) for path in (folder / "tables").glob("*.json")}
    tables = {path.stem: pd.read_csv(path.with_suffix(".csv")) for path, note in notes.items() if note["notebook"] == name}
    kept = {stem: table[[c for c in table if not any(word in c for word in SPEED)]].to_csv() for stem, table in tables.items()}
    return {"numbers": plain(json.loads((folder / f"numbers/{name}.json").read_text())), **kept}


@pytest.mark.parametrize("name", read_chain()["notebooks"])
def test_what_is_shown_does_not_depend_on_the_test_part(name, smoke, reproduced, parameters, tmp_path):
    numbers = smoke / f"runs/smoke/numbers/{name}.json"
    numbers.unlink(missing_ok=True)
    papermill.execute_notebook(str(notebook_path(name)), str(tmp_path / "out.ipynb"), parameters, cwd=str(smoke / "nbs/paper"),
                               progress_bar=False)
    before, after = (shown(folder / "runs/smoke", name) for folder in (reproduced, smoke))
    opened = name == OPENS_TEST or f'found(section, "{OPENS_TEST}")' in notebook_path(name).read_text().replace("\\", "")
    assert (before == after) == (not opened)


def test_a_notebook_runs_by_papermills_command(smoke, tmp_path):
    profile = smoke / "paper/profiles/smoke.yaml"
    command = [sys.executable, "-m", "papermill", str(notebook_path(BY_COMMAND)), str(tmp_path / "out.ipynb"), "-f", str(profile)]
    done = subprocess.run(command, cwd=smoke / "nbs/paper", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
