"""The batch scripts for a cluster, with stubs of Slurm's commands, on CPU processes"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gzpaper.paper import root
from gzpaper.study import open_storage, retry, take_study
from gzpaper.weights import read_header

TRAIN, FOLDS = root() / "cluster/train.slurm", root() / "cluster/folds.slurm"
STUBS = {
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [[ $1 == show ]]; then printf "localhost\\nelsewhere\\n"; else echo "$@" >> scontrol.log; fi',
}
SLURM = {"SLURM_JOB_ID": 7, "SLURM_JOB_NUM_NODES": 1, "SLURM_GPUS_ON_NODE": 2, "SLURM_JOB_NODELIST": "node-[1-2]"}
TINY = {"DEVICE": "cpu", "SIZE": 32, "EPOCHS": 1, "BATCH": 12, "EXTRA": "--validation 8 --test 8 --width 4 --precision fp32"}

pytestmark = pytest.mark.skipif(not shutil.which("flock"), reason="the cluster's scripts need Linux")


@pytest.fixture
def start(tmp_path):
    "A job in a clone: `start(script, stubs, **variables)` begins it; what it says goes to job.log."
    (tmp_path / "cluster").symlink_to(root() / "cluster")
    (tmp_path / "bin").mkdir()
    own = {"VENV": sys.prefix, "PYTHONPATH": root(), "OMP_NUM_THREADS": 1, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    jobs = []

    def begin(script: Path, stubs: dict[str, str] | None = None, **variables) -> subprocess.Popen:
        for name, code in (STUBS | (stubs or {})).items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{code}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        environment = os.environ | {k: str(v) for k, v in (own | SLURM | TINY | variables).items()}
        with open(tmp_path / "job.log", "w") as log:
            jobs.append(subprocess.Popen(["bash", script], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True))
        return jobs[-1]

    yield begin
    for job in jobs:
        try:
            os.killpg(job.pid, signal.SIGTERM)  # so that torchrun can end its processes
        except ProcessLookupError:
            pass
        job.wait()


def free_port() -> int:
    "A port that nobody listens to."
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("script", [TRAIN, FOLDS], ids=lambda p: p.name)
def test_a_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_without_data_it_says_so_in_a_line(start, tmp_path):
    assert start(TRAIN, DATA="").wait(300) == 1
    log = (tmp_path / "job.log").read_text()
    assert log.startswith("gzpaper: DATA is not set") and log.count("\n") == 1, log


def test_two_processes_train_one_network(start, mock_folder, tmp_path):
    code, log, run = start(TRAIN, DATA=mock_folder, PORT=free_port()).wait(900), (tmp_path / "job.log").read_text(), tmp_path / "runs/vgg7"
    assert code == 0, log
    assert log.count("the weights are in") == 1, log
    assert read_header(run / "weights.safetensors")["trained_on"] == 24
    assert len(pd.read_csv(run / "history.csv")) == 1


def test_a_fold_on_two_nodes(start, tmp_path):
    job = start(FOLDS, {"flock": "", "srun": 'echo "$@"'}, DATA="galaxies", SLURM_JOB_NUM_NODES=2, SLURM_ARRAY_TASK_ID=3)
    code, log = job.wait(300), (tmp_path / "job.log").read_text()
    assert code == 0, log
    assert "--nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:20007" in log
    assert "gzpaper train galaxies --out runs/vgg7-folds" in log and log.endswith("--precision fp32 --folds 5 --fold 3\n")


@pytest.mark.parametrize("epochs, code, asked", [(1, 0, "requeue 5_3\n"), (0, 1, "")])
def test_out_of_time_it_goes_on_later_if_it_got_anywhere(start, tmp_path, epochs, code, asked):
    train = f"for i in $(seq {epochs}); do echo $i >> runs/vgg7/history.csv; done; touch training; sleep 60"
    job = start(TRAIN, {"flock": "", "srun": train}, DATA="galaxies", SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=3)
    while job.poll() is None and not (tmp_path / "training").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(300) == code, (tmp_path / "job.log").read_text()
    assert (tmp_path / "scontrol.log").exists() == bool(asked)
    assert not asked or (tmp_path / "scontrol.log").read_text() == asked


def test_a_tuning_stopped_by_slurm_goes_on(start, mock_folder, tmp_path):
    "Shortly before its time is up a job puts its trial back into the study's queue, and itself into Slurm's."
    (tmp_path / "space.yaml").write_text("{model: vgg7, size: 32, batch_size: 12, epochs: 200, full_epochs: 1, "
                                         "learning_rate: {low: 0.001, high: 0.002}, model_parameters: {width: 2}}")
    job = {"DATA": mock_folder, "SPACE": "space.yaml", "OUT": "out", "TRIALS": 1, "ROUNDS": 0, "SLURM_ARRAY_JOB_ID": 7,
           "SLURM_ARRAY_TASK_ID": 2, "EXTRA": "--validation 8 --test 8"}
    first = start(root() / "cluster/tune.slurm", **job)
    while first.poll() is None and not list(tmp_path.glob("out/space/trial-0/*/history.csv")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGUSR1)
    assert first.wait(60) == 0, (tmp_path / "job.log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7_2\n"
    assert start(root() / "cluster/tune.slurm", **job).wait(120) == 0, (tmp_path / "job.log").read_text()
    again = take_study(open_storage(str(tmp_path / "out/study.journal"))).trials[1]
    assert retry.retry_history(again) == [0] and again.last_step == 200
