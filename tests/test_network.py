"""A network that is added to the library and to paper/networks.yaml appears wherever networks are compared."""

import re
import zlib
from pathlib import Path

import pandas as pd
from conftest import edit

from gzpaper import chain

NETWORK = '''

@network
def toy(
    size: int = 64,  # px of the input
    hidden: int = 16,  # units of the tail's hidden layer
    dropout: float = 0.25,  # probability
    head: str = "sigmoid",  # one of HEADS
) -> Network:
    "A single block."
    return Network(conv_block(3, 2, 1, pool=True), dense_tail(2 * (size // 2) ** 2, hidden, dropout), head)
'''


def text_of(pdf: Path) -> str:
    "The letters that a figure shows, in the order of its file."
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf.read_bytes(), re.DOTALL)
    shown = b"".join(zlib.decompress(s) for s in streams if s[:1] == b"x")
    parts = re.findall(rb"\(((?:[^()\\]|\\.)*)\)", shown)
    return "".join(part.decode("latin1") for part in parts).replace("\x00", "")  # two bytes a letter


def test_a_new_network_is_in_every_table_and_figure_of_the_comparison(smoke, monkeypatch):
    models, listed = smoke / "gzpaper/models.py", smoke / "paper/networks.yaml"
    models.write_text(models.read_text() + NETWORK)
    edit(listed, "  - name: VGG16\n", "  - {name: Toy, model: toy, tried: [{dropout: 0.5}]}\n  - name: VGG16\n")
    edit(listed, "images_per_s:\n", "images_per_s:\n  toy: {smoke: 1}\n")
    due = [step.name for step in chain.plan(chain.read_profile("smoke")) if not step.fresh]
    assert due == ["04_architectures", "12_claims"]
    monkeypatch.setenv("PYTHONPATH", str(smoke))  # the copy with the new network
    chain.reproduce("smoke", only="04_architectures")
    out = smoke / "runs/smoke"
    assert "toy" in set(pd.read_csv(out / "tables/04_costs.csv").model)
    for table in ("04_trials", "04_ladder", "04_pace", "04_steps"):
        assert "Toy" in set(pd.read_csv(out / f"tables/{table}.csv").network), table
    for figure in ("04_differences", "04_compute"):
        assert "Toy" in text_of(out / f"figures/{figure}.pdf"), figure
