"""Several processes train one network together: the weights are those of one process, and what kills a process loses an epoch at most."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, assert_says, toy_galaxies
from torch import distributed

from gzpaper.run import cross_validate
from gzpaper.spec import Spec
from gzpaper.train import ALONE, World, fit, join, pick_device
from gzpaper.weights import load_weights

pytestmark = [pytest.mark.usefixtures("threads"),
              pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")]

# No batch norm, whose statistics are of a process's own share; two processes share 9 galaxies as 5 and 4, and 3 parts of 4 are 2, 1 and 1.
SPEC = Spec(model_parameters={"width": 4, "hidden": 16, "batch_norm": False, "dropout": 0.0}, size=16, field=185.6, epochs=3, batch_size=9,
            optimiser="sgd", learning_rate=0.1, precision="fp32")
ACCUMULATE = (1, 3)


def spec(**changes) -> Spec:
    return Spec.from_dict(SPEC.to_dict() | changes)


def train_all(folder: Path, world: World = ALONE, epochs: int = SPEC.epochs):
    "Train with each number of parts, and a cross-validation; or finish doing so."
    torch.set_num_threads(1)
    galaxies = toy_galaxies(folder / f"store-{world.rank}", train=79, validation=16, test=9).sealed()
    options = {"progress": False, "world": world}
    for accumulate in ACCUMULATE:
        own = spec(accumulate=accumulate, epochs=epochs)
        fit(own, galaxies, folder / f"parts-{accumulate}", **options)
    cross_validate(spec(folds=2, epochs=1), galaxies, folder / "folds", **options)


def in_process(folder: Path, epochs: int):
    "What each process of torchrun does."
    with join(pick_device("cpu")) as world:
        train_all(folder, world, epochs)


@contextmanager
def torchrun(*arguments):
    "Two processes of Python with these arguments, and a third that watches over them."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
    process = subprocess.Popen([*command, *map(str, arguments)], cwd=Path(__file__).parent, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def together(folder: Path, epochs: int = SPEC.epochs):
    "Train in two processes."
    return torchrun("-c", f"from pathlib import Path; from test_distributed import in_process; in_process(Path({str(folder)!r}), {epochs})")


def finish(process: subprocess.Popen) -> str:
    "Wait for a process that has to succeed, and give what it said."
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out + err


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.safetensors")[0].state_dict()


def assert_same(folder: Path, alone: Path):
    "Assert that two folders of `train_all` have the same weights and predictions."
    for name in [f"parts-{n}" for n in ACCUMULATE] + ["folds/fold-1", "folds/fold-2"]:
        for key, value in state(alone / name).items():
            torch.testing.assert_close(state(folder / name)[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
        columns = ["epoch", "learning_rate", "validation_rmse"]
        one, other = (pd.read_csv(place / name / "history.csv")[columns] for place in (folder, alone))
        pd.testing.assert_frame_equal(one, other, atol=1e-6)
        assert not (folder / name / "checkpoint.pt").exists()
    one, other = (pd.read_csv(place / "folds/out_of_fold.csv") for place in (folder, alone))
    pd.testing.assert_frame_equal(one, other, atol=2e-6)


def test_as_one_process(tmp_path):
    "Batches that do not divide evenly, learned from at once and in parts."
    train_all(tmp_path / "alone")
    with together(tmp_path / "together") as process:
        finish(process)
    assert_same(tmp_path / "together", tmp_path / "alone")


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_batches_of_any_size(parts, tmp_path):
    "With batch norm, which cannot learn from a part of a single galaxy."
    for size in range(2 * parts, 3 * parts + 2):
        galaxies = toy_galaxies(tmp_path / f"store-{size}", train=size + parts, validation=2)  # two batches, smaller than they might be
        own = Spec(model_parameters={"width": 2, "hidden": 4}, size=16, field=185.6, epochs=1, batch_size=size, accumulate=parts)
        fit(own, galaxies, tmp_path / f"run-{size}", progress=False)


def rank_process(parent: int, rank: int) -> int:
    "The process of a rank that torchrun has started."
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(child) for child in children if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process by /proc")
def test_a_killed_process(tmp_path):
    "torchrun fails and says which one; a checkpoint is left, and the same command goes on from it."
    folder, epochs = tmp_path / "together", 10
    checkpoint = folder / "parts-1/checkpoint.pt"
    with together(folder, epochs) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        err = process.communicate(timeout=200)[1]
    assert process.returncode != 0 and re.search(r"rank +: 1 ", err), err
    assert_says(err, "exitcode  : -9", "SIGKILL")
    assert checkpoint.exists() and not (folder / "parts-1/weights.safetensors").exists()
    done = torch.load(checkpoint, weights_only=True)["history"]
    assert 0 < len(done) < epochs
    with together(folder, epochs) as process:
        finish(process)
    assert pd.read_csv(folder / "parts-1/history.csv").seconds[: len(done)].tolist() == pytest.approx([row["seconds"] for row in done])
    train_all(tmp_path / "alone", epochs=epochs)
    assert_same(folder, tmp_path / "alone")


def test_batches_too_small_for_the_processes(mock_folder, tmp_path):
    "One line of each process that gets to say it; torchrun's own summary follows."
    command = ["-c", "from gzpaper.cli import main; main()", "train", mock_folder, "--out", tmp_path / "run", *TINY, "--batch-size", 3]
    with torchrun(*command) as process:
        err = process.communicate(timeout=200)[1]
    said = {line[line.index("gzpaper: ") :] for line in re.split(r"[\r\n]+", err) if "gzpaper: " in line}
    assert process.returncode == 1 and len(said) == 1, err
    assert_says(said.pop(), "batches of 3", "2 processes", "raise batch_size")
    assert "InputError" not in err and not list(tmp_path.rglob("*.pt"))


def test_without_torchrun():
    with join(pick_device("cpu")) as world:
        assert world is ALONE and world.told({"a": 1}) == {"a": 1}


def test_each_process_has_its_own_gpu(monkeypatch):
    "NCCL exchanges Python objects by the current GPU, which is the first unless a process says otherwise."
    done = []
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    with join(torch.device("cuda:1")) as world:
        assert world == World(1, 2)
    assert done == [torch.device("cuda:1"), "nccl"]
