"""A training that is killed and taken up again ends with the same weights, bit for bit, as one left alone"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import toy_galaxies

import gzpaper.train
from gzpaper.files import atomic
from gzpaper.spec import Spec
from gzpaper.train import fit

EPOCHS = 40
pytestmark = pytest.mark.usefixtures("threads")
SPEC = Spec(model_parameters={"width": 4, "depth": 1, "hidden": 16}, size=16, field=185.6, epochs=EPOCHS, batch_size=16)
DONE = {"history.csv", "weights.safetensors"}


def train(run: Path, seed: int = 0) -> Path:
    "Train the tiny network, or finish its training."
    torch.set_num_threads(1)
    galaxies = toy_galaxies(run.with_name(f"{run.name}-store"))
    spec = Spec.from_dict(SPEC.to_dict() | {"seed": seed})
    return fit(spec, galaxies, run, progress=False)


def train_until(run: Path, name: str, times: int):
    "Train, and be killed when the file `name` is half written for the n-th time."
    written = []

    @contextmanager
    def deadly(path: Path):
        with atomic(path) as partial:
            yield partial
            written.append(path.name)
            if written.count(name) == times:
                os.truncate(partial, partial.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    gzpaper.train.atomic = gzpaper.weights.atomic = deadly
    train(run)


def start(code: str) -> subprocess.Popen:
    "Run code of this module in a process of its own."
    code = f"from pathlib import Path; from test_resume import train, train_until; {code}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)


def epochs_done(run: Path) -> int:
    "How many epochs a run's history has."
    history = run / "history.csv"
    return len(history.read_text().splitlines()) - 1 if history.exists() else 0


def kill_after(run: Path, epochs: int, delay: float):
    "Start or continue a training in a process, and kill it some seconds after it has done some more epochs."
    before, process = epochs_done(run), start(f"train(Path({str(run)!r}))")
    while epochs_done(run) < before + epochs and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the training was over before it was killed"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_digest(path: Path) -> str:
    "A digest of the weights alone: the header names the seed."
    model = gzpaper.weights.load_weights(path)[0]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def check_run(run: Path):
    "A finished run has its two files, with every epoch in its history once."
    assert {f.name for f in run.iterdir()} == DONE
    assert list(pd.read_csv(run / "history.csv").epoch) == list(range(1, EPOCHS + 1))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    "The weights of a run left alone."
    return train(tmp_path_factory.mktemp("resume") / "alone")


def test_killed_three_times(alone, tmp_path):
    run, draw = tmp_path / "killed", random.Random(0)
    for _ in range(3):
        kill_after(run, epochs=draw.randint(1, 4), delay=draw.uniform(0, 0.05))
        assert not (run / "weights.safetensors").exists()
        assert 0 < epochs_done(run) < EPOCHS
    assert digest(train(run)) == digest(alone)
    check_run(run)


@pytest.mark.parametrize("name, times", [("checkpoint.pt", 2), ("history.csv", EPOCHS), ("weights.safetensors", 1)])
def test_killed_while_writing(alone, tmp_path, name, times):
    run = tmp_path / "killed"
    assert start(f"train_until(Path({str(run)!r}), {name!r}, {times})").wait() == -signal.SIGKILL
    assert list(run.glob(f".{name}.*.partial"))
    assert digest(train(run)) == digest(alone)
    check_run(run)


def test_the_seed_decides(alone, tmp_path):
    assert digest(train(tmp_path / "same")) == digest(alone)
    other = train(tmp_path / "other", seed=1)
    assert weights_digest(other) != weights_digest(alone)
