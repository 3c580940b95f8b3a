"""What is copied to figures/, data/ and paper/, and checked there."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import edit
from PIL import Image

from gzpaper import chain, press
from gzpaper.data import KaggleFolder
from gzpaper.files import read_yaml
from gzpaper.paper import root
from gzpaper.spec import Spec
from gzpaper.tree import InputError


@pytest.mark.parametrize("path", sorted((root() / "figures").glob("*.png")), ids=lambda path: path.stem)
def test_no_figure_is_cut_off(path):
    "Nothing dark on a figure's rim: a label would go on beyond it."
    grey = np.asarray(Image.open(path).convert("L"))
    assert min(edge.min() for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1])) > 200


def test_publish_refuses_mock_galaxies(smoke):
    with pytest.raises(InputError, match="mock galaxies"):
        press.publish("smoke")
    assert not (smoke / "figures").exists()


def test_publish_and_check(smoke):
    """The mock galaxies, without the truth that marks them as such, go all the way to a check of what was published."""
    folder = smoke / "data/unmarked"
    shutil.copytree(smoke / "runs/smoke/mock", folder)
    (folder / "truth.csv").unlink()
    assert not KaggleFolder(folder).is_mock
    chain.reproduce("smoke", folder)
    press.publish("smoke", folder)
    assert list(smoke.glob("paper/runs/*/test-16.parquet"))
    assert (smoke / "paper/report.pdf").read_bytes() == (smoke / "runs/smoke/report.pdf").read_bytes()
    assert press.check("smoke", folder) == []
    assert len(pd.read_csv(smoke / "data/sample.csv")) == chain.read_profile("smoke")["mock_galaxies"]
    assert (smoke / "paper/studies/small.journal").stat().st_size < 2**20
    assert Spec.from_dict(read_yaml(smoke / "paper/params/small.yaml")).epochs == 2
    edit(next(smoke.glob("paper/tables/03_scores.csv")), "VGG7,0.", "VGG7,0.1")
    assert press._differences(smoke / "paper/tables", smoke / "runs/smoke/tables") == ["tables/03_scores.csv differs"]
    run = next((smoke / "paper/runs").iterdir())
    run.rename(run.with_name("0" * 16))
    broken, unreported = press.check("smoke", smoke / "nowhere")
    assert broken == f"runs/{'0' * 16} is not the run that its spec.json describes"
    assert run.name in unreported, "the report quotes what each run was trained on"
