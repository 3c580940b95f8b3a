"""The verdicts on the brief's claims follow what the notebooks have found."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

from gzpaper.files import read_yaml
from gzpaper.paper import notebook_path, read_quoted


@pytest.fixture(scope="module")
def found(smoke) -> dict:
    "Numbers as a profile with enough seeds on two rungs has them, by notebook."
    return {name: json.loads((smoke / f"runs/smoke/numbers/{name}.json").read_text()) for name in READ}


READ = ("02_benchmarks", "03_vgg7", "04_architectures", "05_heads", "07_tuning", "09_final")


def verdicts(smoke: Path, tmp_path: Path, found: dict) -> dict[str, str]:
    "The verdict on each claim after other findings."
    for name, numbers in found.items():
        (smoke / f"runs/smoke/numbers/{name}.json").write_text(json.dumps(numbers))
    parameters = read_yaml(smoke / "paper/profiles/smoke.yaml")
    papermill.execute_notebook(str(notebook_path("12_claims")), str(tmp_path / "out.ipynb"), parameters, cwd=str(smoke / "nbs/paper"),
                               progress_bar=False)
    table = pd.read_csv(smoke / "runs/smoke/tables/claims.csv").set_index("claim")
    assert list(table.columns[:7]) == ["source", "evidence", "difference", "low", "high", "verdict", "reason"]
    return {name: table.verdict[claim["words"]] for name, claim in read_quoted()["brief"]["claims"].items()}


def as_found(found: dict, seeds: int, word: str) -> dict:
    "Findings where each network has so many seeds and every rival's RMSE is `word` than VGG7's, or not resolved."
    networks = json.loads(json.dumps(found["04_architectures"]))
    for row in networks["ladder"]:
        row |= {"seeds": seeds, "is": word if row["network"] != "VGG7" else ""}
    for row in networks["pace"]:
        sign = {"higher": 1, "lower": -1}.get(word, 0) * (row["network"] != "VGG7")
        mean = 0.1 + 0.01 * sign
        row |= {"seeds": seeds, "while_learning": mean, "fastest": mean - 0.001, "slowest": mean + 0.001, "over_vgg7s": 1, "low": 0.5,
                "high": 2}
    for row in networks["steps"]:
        row["is"] = word
    heads = found["05_heads"] | {"answer": {"higher": "confirmed", "lower": "refuted"}.get(word, word)}
    tuning = found["07_tuning"] | {"outcome": {"higher": "better", "lower": "worse"}.get(word, word)}
    return found | {"04_architectures": networks, "05_heads": heads, "07_tuning": tuning}


@pytest.mark.parametrize("seeds, word, verdict", [
    (3, "higher", "confirmed"), (3, "lower", "refuted"), (3, "not resolved", "not resolved"), (2, "higher", "not resolved"),
])
def test_verdicts_follow_the_findings(seeds, word, verdict, smoke, reproduced, found, tmp_path):
    told = verdicts(smoke, tmp_path, as_found(found, seeds, word))
    compared = {told[name] for name in ("outperforms", "simplicity", "constrained", "convergence")}
    assert compared == {verdict}
    progress = {"confirmed": "refuted", "refuted": "confirmed"}.get(verdict, verdict)  # that more complex ones do better
    assert seeds < 3 or (told["progress"], told["heads"], told["tuning"]) == (progress, verdict, verdict)
    assert told["stability"] == "not resolved" and told["score"] == "not decided here"


def change(rows: list[dict], network: str, rungs: list[float] | None = None, **values):
    "Other findings on a network, on some rungs or all."
    for row in rows:
        if row["network"] == network and (rungs is None or row["rung"] in rungs):
            row |= values


def test_one_rival_that_does_better_refutes(smoke, reproduced, found, tmp_path):
    other = as_found(found, 3, "higher")
    change(other["04_architectures"]["ladder"], "VGG11", **{"is": "lower"})
    told = verdicts(smoke, tmp_path, other)
    assert (told["simplicity"], told["outperforms"]) == ("refuted", "confirmed")


def test_rungs_that_disagree_resolve_nothing(smoke, reproduced, found, tmp_path):
    other = as_found(found, 3, "higher")
    networks = other["04_architectures"]
    assert len(networks["rungs"]) > 1
    change(networks["ladder"], "VGG11", networks["rungs"][:1], **{"is": "lower"})
    assert verdicts(smoke, tmp_path, other)["simplicity"] == "not resolved"


@pytest.mark.parametrize("low, high, verdict", [(1.1, 3, "confirmed"), (0.2, 0.9, "refuted"), (0.5, 2, "not resolved")])
def test_steadiness_is_a_ratio_above_one(low, high, verdict, smoke, reproduced, found, tmp_path):
    other = as_found(found, 3, "higher")
    for name in other["04_architectures"]["rivals"]:
        change(other["04_architectures"]["pace"], name, low=low, high=high)
    assert verdicts(smoke, tmp_path, other)["stability"] == verdict


@pytest.mark.parametrize("ours, theirs, verdict", [(0, 0.01, "confirmed"), (0.01, 0, "refuted"), (0, 0, "not resolved")])
def test_overfitting_is_a_rise_above_the_spread_of_seeds(ours, theirs, verdict, smoke, reproduced, found, tmp_path):
    other = as_found(found, 3, "higher")
    networks = other["04_architectures"]
    change(networks["ladder"], "VGG7", rise=ours, best_seed=0.1, worst_seed=0.101)
    for name in networks["rivals"]:
        change(networks["ladder"], name, rise=theirs)
    assert verdicts(smoke, tmp_path, other)["overfitting"] == verdict


def test_a_network_without_a_training_on_the_lowest_rung_is_judged_on_another(smoke, reproduced, found, tmp_path):
    other = as_found(found, 3, "lower")
    networks, lora = other["04_architectures"], "ResNet-50 LoRA, from mocks"
    row = next(row for row in networks["ladder"] if row["network"] == lora)
    networks["ladder"] = [r for r in networks["ladder"] if r["network"] != lora] + [row | {"rung": networks["rungs"][-1]}]
    assert verdicts(smoke, tmp_path, other)["lora"] == "refuted"
