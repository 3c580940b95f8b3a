"""What stopping trials early saves, and whether the best of what is left is as good: searches with and without it, on mock galaxies"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from optuna.pruners import NopPruner
from optuna.study import Study

from gzpaper.files import atomic
from gzpaper.mock import mock_folder
from gzpaper.paper import root
from gzpaper.scores import rmse
from gzpaper.space import Space, read_space
from gzpaper.study import completed, open_storage, open_study
from gzpaper.train import pick_device
from gzpaper.tune import Tuning, galaxies_of, search, train_in_full

SPACE, FOLDER = root() / "paper/search/small.yaml", root() / "runs/pruning"
FULL_SEED = 1_000_000  # of the first training in full; those of the trials are smaller


def searched(
    tuning: Tuning,
    trials: int,
    prune: bool,
) -> Study:
    "A study with all its trials, begun or taken up."
    study = open_study(tuning.folder.name, tuning.space, open_storage(str(tuning.folder / "study.journal")), tuning.digest, tuning.seed)
    if not prune:
        study.pruner = NopPruner()
    search(study, tuning, trials, say=lambda line: print(f"{tuning.folder.name}, {line}", flush=True))
    return study


def scores_in_full(
    tuning: Tuning,
    study: Study,
    seeds: int,
) -> list[float]:  # the validation RMSE of each seed, 16 views
    "A study's best trial, trained in full."
    best, epochs = completed(study)[0].params, tuning.space.full_epochs
    jobs = {tuning.folder / f"full-{i}": tuning.space.spec(best, seed=FULL_SEED + i, epochs=epochs) for i in range(seeds)}
    galaxies = tuning.galaxies_at(tuning.space.spec())
    true = galaxies.labels[galaxies.rows("validation")]
    return [rmse(predictions, true) for predictions in train_in_full(tuning, jobs).values()]


def of_one_seed(
    space: Space,
    folder: Path,
    galaxies: int,
    trials: int,
    seeds: int,
    seed: int,  # of the searches
) -> dict:
    "Both searches and what they found."
    found = {}
    at = galaxies_of(mock_folder(folder / "mock", galaxies, 0), folder, galaxies // 4, 0)
    for name in ("pruned", "whole"):
        tuning = Tuning(space, at, folder / f"{name}-{seed}", pick_device("auto"), seed, progress=False)
        study = searched(tuning, trials, name == "pruned")
        ended = [trial for trial in study.get_trials(deepcopy=False) if "epochs" in trial.user_attrs]
        found[name] = {"trials": trials, "complete": len(completed(study)), "epochs": sum(t.user_attrs["epochs"] for t in ended),
                       "best": completed(study)[0].params, "rmse": scores_in_full(tuning, study, seeds)}
    whole, pruned = found["whole"], found["pruned"]
    return found | {"seed": seed, "saved": 1 - pruned["epochs"] / whole["epochs"], "spread": max(whole["rmse"]) - min(whole["rmse"]),
                    "as_good": bool(np.mean(pruned["rmse"]) <= max(whole["rmse"]))}


def show(rows: list[dict]):
    "The results as a table."
    table = pd.DataFrame([{"seed": row["seed"], "complete": row["pruned"]["complete"], "epochs": row["pruned"]["epochs"],
                           "of": row["whole"]["epochs"], "saved": f"{row['saved']:.0%}", "RMSE": f"{np.mean(row['pruned']['rmse']):.4f}",
                           "without": f"{np.mean(row['whole']['rmse']):.4f}", "its spread": f"{row['spread']:.4f}",
                           "as good": "yes" if row["as_good"] else "no"} for row in rows])
    print("\n" + table.to_string(index=False))


def main(
    space: Annotated[Path, typer.Option(help="a search space")] = SPACE,
    folder: Annotated[Path, typer.Option(help="where studies and trainings go; what is there goes on")] = FOLDER,
    galaxies: Annotated[int, typer.Option(help="mock galaxies, a quarter of them for validation")] = 1000,
    epochs: Annotated[int, typer.Option(help="of a trial, and of a training in full")] = 15,
    trials: Annotated[int, typer.Option(help="of a search")] = 40,
    searches: Annotated[int, typer.Option(help="how many searches of either kind, each of its own seed")] = 3,
    seeds: Annotated[int, typer.Option(help="trainings in full of what each has found")] = 5,
    out: Annotated[Path | None, typer.Option(help="a JSON file to write")] = None,
):
    "What stopping trials early saves, and whether the best of what is left is as good."
    read = read_space(space)
    shorter = replace(read, fixed=read.fixed | {"epochs": epochs}, full_epochs=epochs)
    rows = [of_one_seed(shorter, folder, galaxies, trials, seeds, seed) for seed in range(searches)]
    show(rows)
    if out:
        with atomic(out) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
