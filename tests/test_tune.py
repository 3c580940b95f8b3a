"""Tuning: several processes on one study, processes that die, and what is refused."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState

from gzpaper import paper, tree, tune
from gzpaper.files import read_yaml
from gzpaper.space import Space, read_space
from gzpaper.spec import Spec
from gzpaper.study import (
    _Halving,
    _NumberedSampler,
    completed,
    defaults,
    open_storage,
    open_study,
    retry,
    rounds_of,
    storage_errors,
    take_study,
    trial_table,
)

SPACE = """
model: vgg7
size: 32
batch_size: 12
epochs: 3
full_epochs: 2
learning_rate: {low: 0.0005, high: 0.008, log: true}
model_parameters: {width: {low: 2, high: 4}, hidden: 16}
"""

# A process at work on a study. It notes each epoch that it trains; a victim waits for its end after its first.
WORKER = """
import os, sys, time
from pathlib import Path
from gzpaper import tune
from gzpaper.space import read_space
from gzpaper.study import first_number, open_storage, open_study

where, data, folder, trials, victim = sys.argv[1:]
folder, report = Path(folder), tune._report

def noted(trial, value, step, steps):
    try:
        report(trial, value, step, steps)
    finally:  # once it is told, as one that was killed before that is told when it is taken up
        with open(folder / "epochs.log", "a") as log:
            log.write(f"{first_number(tune._frozen(trial))} {step} {os.getpid()}\\n")
    if int(victim):
        time.sleep(600)

tune._report, tune._POLL_S = noted, 1
space = read_space(folder / "space.yaml")
tuning = tune.Tuning(space, tune.galaxies_of(data, folder, 8, 8), folder, progress=False)
study = open_study("many", space, open_storage(where, heartbeat_s=3), tuning.digest)
tune.search(study, tuning, int(trials))
"""

# `gzpaper tune`, which notes the weights that it predicts with after a training in full.
NOTED_ROUND = """
import os
from gzpaper import run
from gzpaper.cli import main

predict = run.predict_held_out

def noted(weights, *others):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{weights}\\n")
    return predict(weights, *others)

run.predict_held_out = noted
main()
"""


@pytest.fixture
def space_file(tmp_path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def postgres():
    "The address of a PostgreSQL server that lives as long as these tests do."
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if not found:
        pytest.skip("there is no PostgreSQL server here: install postgresql")
    pytest.importorskip("psycopg", reason="there is no psycopg here")
    folder, user = Path(mkdtemp()), None
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
    subprocess.run([found, "-D", folder / "data", "-U", "gz", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": folder, "fsync": "off"}
    server = subprocess.Popen([Path(found).with_name("postgres"), "-D", folder / "data", "-p", str(port),
                               *(f"--{name}={value}" for name, value in options.items())], **quiet)
    url = f"postgresql://gz@127.0.0.1:{port}/postgres"
    for left in range(100, -1, -1):
        try:
            open_storage(url)
            break
        except tree.InputError:
            assert left, "the server does not answer"
            time.sleep(0.2)
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(30)
    shutil.rmtree(folder)


def start(where: str, data: Path, folder: Path, trials: int, victim: bool = False) -> subprocess.Popen:
    "A process at work on a study."
    command = [sys.executable, "-c", WORKER, where, str(data), str(folder), str(trials), str(int(victim))]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def finish(*workers: subprocess.Popen):
    for worker in workers:
        _, said = worker.communicate(timeout=300)
        assert worker.returncode == 0, said[-2000:]


def epochs_of(folder: Path) -> list[tuple[int, int, int]]:
    "Each epoch that was trained: of which trial, which epoch, by which process."
    return [tuple(map(int, line.split())) for line in (folder / "epochs.log").read_text().splitlines()]


def test_four_processes_on_postgres_and_one_is_killed(postgres, space_file, mock_folder, tmp_path):
    victim = start(postgres, mock_folder, tmp_path, 8, victim=True)
    while victim.poll() is None and not (tmp_path / "epochs.log").exists():
        time.sleep(0.2)
    others = [start(postgres, mock_folder, tmp_path, 8) for _ in range(3)]
    victim.kill()
    finish(*others)
    trials = take_study(open_storage(postgres), "many").trials
    assert [t.number for t in trials] == list(range(len(trials)))
    lost, = (t for t in trials if t.state == TrialState.FAIL)
    again, = (t for t in trials if retry.retry_history(t))
    assert retry.retry_history(again) == [lost.number] and again.params == lost.params
    assert {t.state for t in trials if t != lost} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert 8 <= len(trials) - 1 <= 8 + 2  # each of three may have begun the last
    trained = [(trial, step) for trial, step, _ in epochs_of(tmp_path)]
    assert len(trained) == len(set(trained)), "an epoch was trained twice: the checkpoint was not taken up"
    assert victim.pid in {pid for *_, pid in epochs_of(tmp_path)} and again.last_step > 1


def test_four_processes_on_a_journal(space_file, mock_folder, tmp_path):
    finish(*[start(str(tmp_path / "study.journal"), mock_folder, tmp_path, 8) for _ in range(4)])
    trials = take_study(open_storage(str(tmp_path / "study.journal"))).trials
    assert [t.number for t in trials] == list(range(len(trials))) and 8 <= len(trials) <= 11
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    trained = [(trial, step) for trial, step, _ in epochs_of(tmp_path)]
    assert len(trained) == len(set(trained)) and {trial for trial, _ in trained} == set(range(len(trials)))


def arguments(space: Path, data: Path, out: Path, *more) -> list:
    return ["tune", "--space", space, "--data", data, "--out", out, "--validation", 8, "--test", 8, "--device", "cpu", *more]


def test_stopped_and_taken_up(space_file, mock_folder, tmp_path, cli):
    "Ctrl-C in mid-trial; the same command resumes; what is found is written and can be trained with."
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from gzpaper.cli import main; main()",
               *map(str, arguments(space_file, mock_folder, out, "--trials", 3, "--seeds", 1))]
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while stopped.poll() is None and not list(out.rglob("checkpoint.pt")):
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=60)[1]
    assert "the same command resumes" in said and stopped.returncode == 130, (stopped.returncode, said)
    done = cli(*arguments(space_file, mock_folder, out, "--trials", 3, "--seeds", 1))
    assert done.code == 0, done
    study = take_study(open_storage(str(out / "study.db")))
    again, = (t for t in study.trials if retry.retry_history(t))
    assert again.state == TrialState.COMPLETE and len(study.trials) == 4 and "round 1" in study.user_attrs
    best = Spec.from_dict(read_yaml(out / "params.yaml"))
    assert (best.epochs, best.size, best.batch_size) == (2, 32, 12)
    shown = cli("tune", "status", "--out", out)
    assert str(study.best_value)[:7] in shown.out and "round 1: " in shown.out and shown.out.count("fail") == 0, shown
    trained = cli("train", mock_folder, "--out", tmp_path / "run", "--params", out / "params.yaml", "--epochs", 1, "--validation", 8,
                  "--test", 8, "--device", "cpu")
    assert trained.code == 0 and len((tmp_path / "run/history.csv").read_text().splitlines()) == 2, trained


def test_a_transaction_is_not_broken_off(space_file, mock_folder, tmp_path, monkeypatch):
    "It could keep its lock, and the heartbeat would wait for that."
    report = optuna.Trial.report

    def report_and_stop(*told):
        signal.raise_signal(signal.SIGINT)
        report(*told)

    monkeypatch.setattr(optuna.Trial, "report", report_and_stop)
    space = read_space(space_file)
    tuning = tune.Tuning(space, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path / "out", progress=False)
    study = open_study("a", space, open_storage(str(tmp_path / "study.db")), tuning.digest)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        tune.search(study, tuning, 1, say=lambda line: None)
    stopped, waiting = study.trials
    assert stopped.state == TrialState.FAIL and list(stopped.intermediate_values) == [1] and waiting.state == TrialState.WAITING
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_same_seed_same_trials(space_file, mock_folder, tmp_path):
    space, found = read_space(space_file), []
    for name in ("a", "b"):
        tuning = tune.Tuning(space, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path / name, seed=3, progress=False)
        study = open_study(name, space, open_storage(str(tmp_path / f"{name}.journal")), tuning.digest, seed=3)
        tune.search(study, tuning, 4, say=lambda line: None)
        found.append([(t.params, t.intermediate_values, t.state) for t in study.trials])
    assert found[0] == found[1]


def test_folds(space_file, mock_folder, tmp_path):
    "With folds a trial's value is their mean, and a fold is a step."
    space = read_space(space_file)
    tuning = tune.Tuning(space, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path, folds=2, progress=False)
    study = open_study("folds", space, open_storage(str(tmp_path / "study.db")), tuning.digest, folds=2)
    tune.search(study, tuning, 1, say=lambda line: None)
    assert sorted(study.trials[0].intermediate_values) == [1, 2] and study.trials[0].value == study.trials[0].intermediate_values[2]
    assert study.trials[0].user_attrs["epochs"] == 6


def test_whole_number_ends_of_a_real_parameter(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE + "weight_decay: {low: 0, high: 1}")
    assert isinstance(read_space(tmp_path / "space.yaml").searched["weight_decay"], optuna.distributions.FloatDistribution)


def test_two_processes_share_a_round(space_file, mock_folder, tmp_path):
    "Each training in full is done once, and both come to the same parameters."
    run = arguments(space_file, mock_folder, tmp_path / "out", "--trials", 3, "--seeds", 1, "--storage", tmp_path / "s.journal")
    command = [sys.executable, "-c", NOTED_ROUND, *map(str, run)]
    told = os.environ | {"OMP_NUM_THREADS": "1", "LOG": str(tmp_path / "predicted.log")}
    finish(*[subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=told) for _ in range(2)])
    assert read_yaml(tmp_path / "out/params.yaml")["model"] == "vgg7"
    study = take_study(open_storage(str(tmp_path / "s.journal")))
    held, = rounds_of(study)
    weights = [str(path) for path in (tmp_path / "out/space").glob("round-1-*/weights.safetensors")]
    assert len(weights) == len(held["rmse"]) and not list((tmp_path / "out/space").rglob("checkpoint.pt"))
    assert sorted((tmp_path / "predicted.log").read_text().splitlines()) == sorted(weights)


def test_rounds_that_would_no_longer_be_held_are_forgotten(space_file, monkeypatch):
    "If an earlier round, held again with more trials, gains nothing, later ones of before do not outlive it."
    lows = [0.1, 0.1]

    def held(study, tuning, number, in_use, seeds):
        best = f"trial-{number}"
        return {"round": number, "seeds": seeds, "in_use": in_use.name, "candidates": {in_use.name: {}, best: {}}, "best": best,
                "rmse": {in_use.name: [0.2], best: [0.1]}, "gain": 0.1, "low": lows[number - 1], "high": 0.2}

    monkeypatch.setattr(tune, "search", lambda *_: None)
    monkeypatch.setattr(tune, "hold_round", held)
    study, tuning = optuna.create_study(), tune.Tuning(read_space(space_file), None, Path("none"))
    assert tune.tune(study, tuning, 3, rounds=2).name == "trial-2" and len(rounds_of(study)) == 2
    lows[0] = -0.1
    assert tune.tune(study, tuning, 4, rounds=2).name == "trial-1" and [h["best"] for h in rounds_of(study)] == ["trial-1"]
    assert tune.is_finished(study, 4, 2, 2)


def test_killed_on_a_journal(space_file, mock_folder, tmp_path, cli, monkeypatch):
    "The others say what is left behind and how to go on, instead of waiting for ever; the path may be relative."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    victim = start("out/study.journal", mock_folder, tmp_path, 1, victim=True)
    while victim.poll() is None and not (tmp_path / "epochs.log").exists():
        time.sleep(0.2)
    victim.kill()
    victim.wait()
    space, storage = read_space(space_file), open_storage("out/study.journal")
    tuning = tune.Tuning(space, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path, progress=False)
    study = open_study("many", space, storage, tuning.digest)
    with pytest.raises(tree.InputError, match="trials 0 were left behind.*--enqueue-stale"):
        tune.search(study, tuning, 1)
    tune.enqueue(study, tune.stale(study, tmp_path), tmp_path)
    assert "worker" not in study.trials[1].user_attrs
    tune.search(study, tuning, 1, say=lambda line: None)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [(trial, step) for trial, step, _ in epochs_of(tmp_path)] == [(0, 1)] and study.trials[1].last_step == 3


def test_a_trial_is_put_back_once_though_another_process_starts_then(space_file, tmp_path, monkeypatch):
    "It starts after the trial has ended and before it is back in the queue."
    space = read_space(space_file)
    tuning = tune.Tuning(space, None, tmp_path / "out")
    study, put_back, others = open_study("one", space, open_storage(str(tmp_path / "study.journal"))), type(retry).__call__, []

    def start_another():
        tune.put_back_here(take_study(open_storage(str(tmp_path / "study.journal"))), tuning.folder)

    def slowly(self, *told):
        if not others:
            others.append(threading.Thread(target=start_another))
            others[0].start()
            others[0].join(2)
        put_back(self, *told)

    def stopped(_, trial):
        trial.set_user_attr("worker", tune._me())
        raise KeyboardInterrupt

    monkeypatch.setattr(type(retry), "__call__", slowly)
    monkeypatch.setattr(tune, "_objective", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune.search(study, tuning, 1)
    others[0].join()
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_trials_of_another_machine_that_have_ended_are_left_to_it(space_file, tmp_path):
    study = open_study("one", read_space(space_file), open_storage(str(tmp_path / "study.journal")))
    for host in (socket.gethostname(), "elsewhere"):
        trial = study.ask()
        trial.set_user_attr("worker", f"{host}:1")
        study.tell(trial, state=TrialState.FAIL)
    tune.put_back_here(study, tmp_path)
    assert [retry.retry_history(t) for t in study.trials] == [[], [], [0]]


def test_whose_process_has_died(space_file, tmp_path):
    "On a journal: not one that is older than the trial, unless it is this one, which is at none while it looks."
    study = open_study("one", read_space(space_file), open_storage(str(tmp_path / "study.journal")))
    trial = study.ask()
    time.sleep(1.1)  # Linux tells when it was started in whole seconds
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as younger:
        for process, dead in ((os.getppid(), False), (os.getpid(), True), (younger.pid, True)):
            trial.set_user_attr("worker", f"{socket.gethostname()}:{process}")
            assert bool(tune.stale(study, tmp_path)) == dead
        younger.communicate(b"\n")


def test_a_silent_trial_in_a_database_is_shown_as_stale(space_file, tmp_path):
    space = read_space(space_file)
    study = open_study("one", space, open_storage(str(tmp_path / "study.db"), heartbeat_s=1))
    trial = study.ask()
    trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
    study._storage.record_heartbeat(trial._trial_id)
    assert tune.status(study, tmp_path).state.tolist() == ["running"]
    time.sleep(5)  # longer than three heartbeats
    assert tune.status(study, tmp_path).state.tolist() == ["stale"]


def test_two_studies_in_one_folder(space_file, mock_folder, tmp_path, cli):
    "The second does not take the trainings of the first for its own."
    run = arguments(space_file, mock_folder, tmp_path / "out", "--trials", 1, "--seeds", 1)
    assert cli(*run).code == 0
    space_file.write_text(SPACE.replace("hidden: 16", "hidden: 32"))
    assert cli(*run, "--name", "second").code == 0
    a, b = (take_study(open_storage(str(tmp_path / "out/study.db")), name) for name in ("space", "second"))
    assert rounds_of(a)[0]["rmse"]["default"] != rounds_of(b)[0]["rmse"]["default"]
    (tmp_path / "out/study.db").unlink()
    cli(*run, "--name", "space").refused("other parameters", "name another folder")


def test_a_journal_that_a_full_disk_has_cut_off(space_file, tmp_path):
    space, path = read_space(space_file), tmp_path / "study.journal"
    open_study("cut", space, open_storage(str(path)))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker')
    assert take_study(open_storage(str(path))).study_name == "cut" and path.read_bytes() == whole


def test_a_journal_in_which_another_process_went_on_behind_a_cut(space_file, tmp_path):
    "Nothing that was written whole is lost, and a process that reads the cut says so in a line."
    space, path = read_space(space_file), tmp_path / "study.journal"
    other = open_study("cut", space, open_storage(str(path)))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker')
    with pytest.raises(tree.InputError, match="study 'cut' cannot be read or written"), storage_errors("cut"):
        for value in range(3):
            other.set_user_attr("value", value)
    written = path.read_bytes()[len(whole):].removeprefix(b'{"op_code":4,"worker')
    assert take_study(open_storage(str(path))).user_attrs["value"] == written.count(b"value") - 1 >= 0
    assert path.read_bytes() == whole + written


def test_the_pruner_saves_epochs_and_keeps_the_best():
    "Learning curves that cross: 40 trials pruned and not, with the same parameters in the same order."
    def learn(trial: optuna.trial.Trial) -> float:
        rate = trial.suggest_float("rate", 0.1, 10, log=True)
        end = 0.09 + 0.02 * np.log(rate) ** 2
        for step in range(1, 28):
            value = end + 0.2 * np.exp(-step * rate / 4)
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    found = {}
    for name, pruner in (("pruned", _Halving(27)), ("whole", optuna.pruners.NopPruner())):
        study = optuna.create_study(sampler=_NumberedSampler(0, {"rate": 5.0}), pruner=pruner)
        study.optimize(learn, n_trials=40)
        found[name] = sum(t.last_step for t in study.trials), study.best_value
    assert found["pruned"][0] < 0.6 * found["whole"][0]
    assert found["pruned"][1] < found["whole"][1] + 0.001


def test_a_training_that_fails_counts_as_pruned(space_file, mock_folder, tmp_path):
    space = read_space(space_file)
    searched = {"weight_decay": optuna.distributions.FloatDistribution(0.0, 0.1)}
    wild = Space(space.fixed | {"learning_rate": 1e30, "clip": 1e30, "optimiser": "sgd"}, searched, 2)
    tuning = tune.Tuning(wild, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path, progress=False)
    study = open_study("wild", wild, open_storage(str(tmp_path / "study.db")), tuning.digest)
    tune.search(study, tuning, 2, say=lambda line: None)
    assert [t.state for t in study.trials] == [TrialState.PRUNED] * 2


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "paper/search").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_committed_space_can_be_searched(path):
    space = read_space(path)
    assert space.spec(defaults(space)).epochs == space.fixed["epochs"] <= space.full_epochs


def test_committed_parameters_are_those_of_the_committed_studies(tmp_path):
    found = {path.stem for path in (paper.root() / "paper/params").glob("*.yaml")}
    assert found == {path.stem for path in (paper.root() / "paper/studies").glob("*.journal")}
    rounds = read_yaml(paper.root() / f"paper/profiles/{paper.published_profile()}.yaml")["rounds"]
    for name in found:
        study = take_study(open_storage(shutil.copy(paper.root() / f"paper/studies/{name}.journal", tmp_path)))
        held = rounds_of(study)[:rounds][-1]
        space = read_space(paper.root() / f"paper/search/{name}.yaml")
        wanted = space.spec(held["candidates"][held["best"]], epochs=space.full_epochs)
        assert Spec.from_dict(read_yaml(paper.root() / f"paper/params/{name}.yaml")) == wanted


@pytest.mark.parametrize(("change", "said"), [
    ({"lernrate": [1, 2]}, "lernrate"),
    ({"model_parameters": {"wide": [1, 2]}}, "wide"),
    ({"augment": {"spin": [1, 2]}}, "augment.spin"),
    ({"augment": [1, 2]}, "augment"),
    ({"learning_rate": {"low": 0.1, "high": 0.01}}, "low has to be a number below high"),
    ({"learning_rate": {"low": 0.1, "high": 0.1}}, "learning_rate"),
    ({"learning_rate": {"low": 0, "high": 0.1, "log": True}}, "logarithmic"),
    ({"learning_rate": {"low": "1e-3", "high": 0.1}}, "0.001, not 1e-3"),
    ({"learning_rate": {"low": 0.1}}, "a range takes low and high"),
    ({"learning_rate": {"low": 0.1, "high": 1.0, "scale": 3}}, "a range takes low and high"),
    ({"learning_rate": {"low": -0.1, "high": 0.1}}, "learning_rate is -0.1"),
    ({"learning_rate": [0.1]}, "two values or more"),
    ({"learning_rate": [0.1, None]}, "a choice takes"),
    ({"learning_rate": 0.1, "model_parameters": {}}, "nothing is searched"),
    ({"model_parameters": {"head": ["sigmoid", "crown"]}}, "crown"),
    ({"full_epochs": 0}, "full_epochs is 0"),
    ({"epochs": {"low": 2, "high": 4}}, "epochs"),
    ({"seed": [1, 2]}, "seed cannot be given here"),
    ({"pretrained": "imagenet"}, "pretrained"),
    ({"teacher": "0123456789abcdef"}, "teacher"),
    ({"optimiser": ["adamw", "lion"]}, "lion"),
    ({"schedule": ["one_cycle", "steps"]}, "steps"),
    ({"weight_decay": {"low": -0.1, "high": 0.1}}, "weight_decay"),
    ({"ema": [0.9, 1.0]}, "ema"),
    ({"augment": {"zoom_range": {"low": 0.5, "high": 2.0}}}, "augment.zoom_range is 0.5"),
    ({"model_parameters": {"hidden": {"low": 16.0, "high": 32.0}}}, "whole numbers"),
    ({"learning_rate": {"low": 0.1, "high": float("inf")}}, "low has to be a number below high"),
    ({"model": "resnet50", "model_parameters": {}, "size": [16, 64]}, "size"),
    ({"field": {"low": 164.0, "high": 300.0}}, "field 300"),
    ({"precision": ["bf16", "fp8"]}, "fp8"),
])
def test_a_space_that_cannot_be_searched(change, said, mock_folder, tmp_path, cli):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SPACE) | change))
    cli(*arguments(path, mock_folder, tmp_path / "out")).refused("bad.yaml", said)
    assert not (tmp_path / "out").exists()


def test_other_bad_input(space_file, mock_folder, tmp_path, cli):
    run = arguments(space_file, mock_folder, tmp_path / "out")
    cli("tune", "--space", space_file).refused("--data")
    cli(*arguments(tmp_path / "none.yaml", mock_folder, tmp_path / "out")).refused("none.yaml is not there", "--space")
    cli(*run, "--storage", "study.txt").refused("study.txt", ".db or .journal")
    cli(*run, "--params", "best.txt").refused("best.txt", ".yaml")
    cli(*run, "--validation", 0).refused("validation is 0")
    cli("tune", "status", "--out", tmp_path / "out").refused("study.db is not there", "--out")


def test_a_server_that_cannot_be_reached(space_file, mock_folder, tmp_path, cli):
    address = "postgresql://someone:secret@127.0.0.1:1/database"
    result = cli(*arguments(space_file, mock_folder, tmp_path / "out", "--storage", address))
    result.refused("cannot be reached", "someone", "another storage")
    assert "secret" not in result.err + result.out
    for broken in (address.replace("secret", "se@cret"), address.replace(":1/", ":one/")):
        result = cli(*arguments(space_file, mock_folder, tmp_path / "out", "--storage", broken))
        result.refused("someone")
        assert "cret" not in result.err + result.out


def test_a_database_that_cannot_be_written(space_file, mock_folder, tmp_path, cli):
    (tmp_path / "none.db").write_text("no database")
    cli(*arguments(space_file, mock_folder, tmp_path / "out", "--storage", tmp_path / "none.db")).refused("none.db", "another storage")


@pytest.mark.parametrize("made", ["studies (id integer, patient text)", "studies (study_id integer, study_name text, patient text)",
                                  "songs (name text)", "trials (trial_id integer)"])
def test_another_programs_database_stays(made, tmp_path):
    path = tmp_path / "clinic.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"create table {made}")
    before = path.read_bytes()
    with pytest.raises(tree.InputError, match="another program's database"):
        open_storage(str(path))
    assert path.read_bytes() == before


def test_a_database_with_a_table_of_another_program_stays(space_file, tmp_path):
    path = tmp_path / "clinic.db"
    open_study("ours", read_space(space_file), open_storage(str(path)))
    assert take_study(open_storage(str(path))).study_name == "ours"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table patients (name text)")
    with pytest.raises(tree.InputError, match="another program's database.*patients"):
        open_storage(str(path))


@pytest.mark.parametrize("tables", [1, 2, 5])
def test_a_database_whose_tables_another_process_is_making(space_file, tmp_path, tables):
    "Or of which a process has died in doing so."
    path, whole = tmp_path / "study.db", tmp_path / "whole.db"
    open_storage(str(whole))
    with contextlib.closing(sqlite3.connect(whole)) as database:
        made = [sql for sql, in database.execute("select sql from sqlite_master where type = 'table' order by rootpage limit ?", (tables,))]
    with contextlib.closing(sqlite3.connect(path)) as database:
        for sql in made:
            database.execute(sql)
    assert open_study("one", read_space(space_file), open_storage(str(path))).trials == []


def test_values_that_do_not_go_together_count_as_pruned(space_file, mock_folder, tmp_path):
    space_file.write_text(SPACE.replace("batch_size: 12", "batch_size: [4, 12]\naccumulate: [1, 4]"))
    space = read_space(space_file)
    tuning = tune.Tuning(space, tune.galaxies_of(mock_folder, tmp_path, 8, 8), tmp_path, progress=False)
    study = open_study("some", space, open_storage(str(tmp_path / "study.journal")), tuning.digest)
    study.enqueue_trial({"batch_size": 4, "accumulate": 4})
    tune.search(study, tuning, 1, say=lambda line: None)
    assert study.trials[0].state == TrialState.PRUNED and len(trial_table(study)) == 0


def test_a_study_of_another_space(space_file, mock_folder, tmp_path, cli):
    more = ("--trials", 1, "--rounds", 0)
    assert cli(*arguments(space_file, mock_folder, tmp_path / "out", *more)).code == 0
    space_file.write_text(SPACE.replace("0.008", "0.004"))
    cli(*arguments(space_file, mock_folder, tmp_path / "out", *more)).refused("another space", "learning_rate", "0.008", "0.004", "--name")


def test_a_disk_that_fills(space_file, mock_folder, tmp_path, gzpaper):
    "What is there stays; with room again, the same command resumes."
    import resource

    def short_of_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    run = arguments(space_file, mock_folder, tmp_path / "out", "--trials", 2, "--rounds", 0)
    assert gzpaper(*run[:-3], 1, *run[-2:]).code == 0
    gzpaper(*run, preexec_fn=short_of_room).refused("cannot be")
    done = gzpaper(*run)
    assert done.code == 0, done
    assert len(completed(take_study(open_storage(str(tmp_path / "out/study.db"))))) >= 1
