"""Kill commands at many points, run pairs of them at once, and compare what they leave, run again, with an undisturbed run's."""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
GZPAPER = [sys.executable, "-c", "from gzpaper.cli import main; main()"]
ENDED = "the command has ended"
TELLING = [sys.executable, "-c", f"from gzpaper.cli import main\ntry:\n    main()\nfinally:\n    print('{ENDED}', flush=True)"]
PARTS = ["--validation", "12", "--test", "4", "--device", "cpu"]
SPACE = ("model: vgg7\nsize: 32\nbatch_size: 12\nepochs: 3\nfull_epochs: 2\nlearning_rate: {low: 0.0005, high: 0.008, log: true}\n"
         "model_parameters: {width: {low: 2, high: 4}, hidden: 16}\n")
TUNE = ["tune", "--space", "../space.yaml", "--data", "../mock", "--out", "out", "--trials", "4", "--seeds", "1", *PARTS]
# what is run, in a folder of its own beside `mock`
COMMANDS = {
    "predict": ["predict", "../images", "--weights", "../weights.safetensors", "--out", "p.csv", "--catalogue", "c.fits", "--rotations",
                "2", "--skip-bad", "--device", "cpu"],
    "train": ["train", "../mock", "--out", "run", "--width", "2", "--size", "32", "--epochs", "6", "--batch-size", "12", *PARTS],
    "tune": TUNE,
    "publish": ["publish", "--profile", "tiny"],
    "reproduce": ["reproduce", "--profile", "tiny"],
    "data mock": ["data", "mock", "galaxies", "--galaxies", "6", "--test-galaxies", "2"],
}
KILLS = {"predict": 60, "train": 46, "tune": 46, "publish": 36, "reproduce": 12}
PAIRS = {"predict": 20, "train": 20, "data mock": 20, "tune": 20, "reproduce": 20}
SIGNALS = {"predict": 8, "train": 8, "tune": 8, "data mock": 8, "reproduce": 6}  # of each, Ctrl-C and SIGTERM
MET = re.compile(r"waiting for .*process|process .* is at work on")  # what the second of two says
LEFT = re.compile(r"\.(partial|old|removed)$|\.parts$|^checkpoint\.pt$")  # names that a finished command leaves nowhere

NOTEBOOK = '''
from gzpaper.paper import Section
from gzpaper.plots import label_histogram, use_style
from gzpaper.spec import Spec
import numpy as np
use_style()
section = Section("NAME", profile=profile, data=data, mock_galaxies=mock_galaxies, seed=seed, validation=validation, test=test)
spec = Spec(model_parameters={"width": 2, "hidden": 16}, size=32, epochs=2, batch_size=12, seed=seed + len("NAME"))
section.galaxies(32, 212.0)
run = section.run(spec)
section.table("NAME_history", run.history[["epoch", "validation_rmse"]], "An RMSE.")
section.figure("NAME_figure", label_histogram(np.stack([np.arange(20)] * 37)), "A figure.")
section.numbers(rmse=float(run.history.validation_rmse.iloc[-1]))
'''


def prepare(base: Path):
    "Mock galaxies, the same images and one that is none for `predict`, weights, and a space to search."
    sys.path.append(str(ROOT / "tests"))
    from conftest import write_untrained

    from gzpaper.mock import write_mock

    write_mock(base / "mock", 36, 4, progress=False)
    shutil.copytree(base / "mock/images_training_rev1", base / "images")
    for image in sorted((base / "images").iterdir()):  # 140 images: three parts
        for copy in range(1, 4):
            shutil.copy(image, image.with_name(f"{image.stem}-{copy}.jpg"))
    (base / "images/broken.jpg").write_bytes(b"no JPEG")
    write_untrained(base / "weights.safetensors", spread=20)
    (base / "space.yaml").write_text(SPACE)


def make_repository(base: Path):
    "A small repository with a chain of two notebooks, its galaxies not marked as mock so that they can be published; and it reproduced."
    copy = base / "repository"
    for name in ("gzpaper", "paper", "settings.ini"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "runs", "notebooks", "studies", "*.pdf"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for name in ("figures", "paper/tables", "paper/numbers"):
        shutil.rmtree(copy / name, ignore_errors=True)
    shutil.copytree(base / "mock", copy / "data/galaxies")
    (copy / "data/galaxies/truth.csv").unlink()
    (copy / "paper/profiles/tiny.yaml").write_text("data: data/galaxies\nmock_galaxies: 36\nseed: 0\nvalidation: 12\ntest: 4\n")
    (copy / "paper/chain.yaml").write_text("notebooks: [01_first, 02_second]\nminutes: {}\ncell_timeout_s: 600\n")
    (copy / "paper/report.typ").write_text("A report.\n")
    (copy / "nbs/paper").mkdir(parents=True)
    template = json.loads((ROOT / "nbs/paper/01_dataset.ipynb").read_text())
    parameters = 'profile: str = "tiny"\ndata: str = ""\nmock_galaxies: int = 36\nseed: int = 0\nvalidation: int = 12\ntest: int = 4'
    for name in ("01_first", "02_second"):
        common = {"cell_type": "code", "execution_count": None, "outputs": []}
        texts = ((parameters, ["parameters"]), (NOTEBOOK.replace("NAME", name), []))
        cells = [common | {"id": f"cell-{i}", "metadata": {"tags": tags}, "source": text} for i, (text, tags) in enumerate(texts)]
        (copy / f"nbs/paper/{name}.ipynb").write_text(json.dumps(template | {"cells": cells}))
    shutil.copytree(copy, base / "reproduced")
    assert wait(start(COMMANDS["reproduce"], base / "reproduced"))[0] == 0, (base / "reproduced.log").read_text()


def set_up(what: str, base: Path) -> Path:
    "A new folder to run a command in."
    folder = Path(tempfile.mkdtemp(prefix=f"{what.replace(' ', '-')}-", dir=base))
    if what in ("reproduce", "publish"):
        shutil.copytree(base / ("repository" if what == "reproduce" else "reproduced"), folder, dirs_exist_ok=True)
    if what == "publish":
        for name in published():  # of an older version
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "old.txt").write_text("old")
    return folder


def published() -> list[str]:
    return ["figures", "paper/tables", "paper/numbers", "paper/notebooks", "paper/runs"]


def deadly(folder: Path, number: int | None, counter, sign: int = signal.SIGKILL):
    "Count the changes to files below a folder, and die, or stop, before the one of a number."
    pid, place = os.getpid(), f"{folder}{os.sep}"

    def changed(event: str, arguments: tuple):
        if os.getpid() != pid or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        path = arguments[0]
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(place):
            counter.value += 1
            if counter.value == number:
                os.kill(pid, sign)

    sys.addaudithook(changed)


def start(arguments: list[str], folder: Path, before=lambda: None) -> int:  # the process
    "A command in a fork of this process, which has imported what takes long."
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        before()
        from gzpaper.cli import main

        sys.argv = ["gzpaper", *arguments]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def wait(pid: int) -> tuple[int, float]:  # the exit code, as subprocess has it, and the seconds
    began = time.time()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, time.time() - began


def what_is_left(what: str, folder: Path) -> dict[str, str]:
    "The final files of a command by name: a digest, or what of them does not depend on the clock. Files of locks stay, and do not count."
    left = {}
    wanted = {"publish": published() + ["data/sample.csv"], "reproduce": ["runs/tiny"]}.get(what, ["."])
    for path in sorted(p for name in wanted for p in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))):
        name = str(path.relative_to(folder))
        if LEFT.search(path.name):
            left[name] = "LEFT"
        elif not path.is_file() or path.name.endswith(".lock") or "/state/" in name:
            continue
        elif path.suffix in (".pdf", ".ipynb"):
            left[name] = "there"
        elif path.name == "history.csv":
            rows = csv.DictReader(path.read_text().splitlines())
            left[name] = str([[row["epoch"], row["train_rmse"], row["validation_rmse"]] for row in rows])
        elif path.suffix == ".json" or path.name == "spec.json":
            told = json.loads(path.read_text())
            left[name] = str({k: v for k, v in told.items() if k not in ("seconds", "wall_time_s")}) \
                if isinstance(told, dict) else str(told)
        elif path.suffix == ".db":
            left[name] = str(trials_of(path))
        else:
            left[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return left


def trials_of(storage: Path | str) -> list:
    "What a study has tried, in order, and what its rounds have found."
    from gzpaper.study import open_storage, replaced, rounds_of, take_study

    study = take_study(open_storage(str(storage)))
    trials = [t for t in study.trials if t.number not in replaced(study.trials)]
    return [[t.state.name, t.params, t.value, t.intermediate_values] for t in trials] + rounds_of(study)


def kill_point(task: tuple) -> dict:
    "Kill a command before a change to its files, or after a while; run it again and compare."
    what, base, number, delay, wanted = task
    folder = set_up(what, base)
    pid = start(COMMANDS[what], folder, lambda: deadly(folder, number, shared()) if number else None)
    if delay:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    first = wait(pid)[0]
    halves = [] if what != "publish" else half_published(folder, wanted)
    code = wait(start(COMMANDS[what], folder))[0]
    done_before = first == 0 and code == 1 and "already" in Path(f"{folder}.log").read_text()  # the delay was too long
    right, where = first in (0, -9) and (code == 0 or done_before), f"change {number}" if number else f"after {delay:.2f} s"
    return judged(what, folder, wanted, {"where": where, "codes": [first, code], "right": right, "halves": halves})


def shared():
    return get_context("fork").Value("l", 0)


def half_published(folder: Path, wanted: dict) -> list[str]:
    "Published folders whose files are neither those of the old one nor those of the new one."
    def of(name: str, files: dict) -> dict:
        return {path: told for path, told in files.items() if path.startswith(f"{name}/")}

    now, old = what_is_left("publish", folder), hashlib.sha256(b"old").hexdigest()
    return [name for name in published() if of(name, now) not in ({f"{name}/old.txt": old}, of(name, wanted))]


def judged(what: str, folder: Path, wanted: dict, told: dict) -> dict:
    "What is lost or differs in a folder, which is then removed."
    left = what_is_left(what, folder)
    lost = sorted({*wanted} - {*left}) + told.pop("halves", [])
    differing = sorted(name for name in left if left[name] != wanted.get(name))
    log = Path(f"{folder}.log").read_text()
    told |= {"what": what, "lost": lost, "differing": differing, "traceback": "Traceback" in log}
    if lost or differing or not told["right"] or told["traceback"]:
        told["log"] = [line for line in re.split(r"[\r\n]+", log) if line and "%|" not in line][-12:]
    shutil.rmtree(folder)
    return told


def pair_point(task: tuple) -> dict:
    "Two of a command on one output: one does it, the other waits or says who does, and both leave what one alone leaves."
    what, base, number, delay, wanted = task
    folder = set_up(what, base)
    log = Path(f"{folder}.log")
    first = start(COMMANDS[what], folder, lambda: deadly(folder, number, shared(), signal.SIGSTOP) if number else None)
    if number:  # it stops there until the second has come to where it waits, or to its end
        has_ended = not os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    else:
        time.sleep(delay)
    second = start(COMMANDS[what], folder)
    if number and not has_ended:
        until = time.time() + 120
        while time.time() < until and not MET.search(log.read_text()) and psutil.Process(second).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        os.kill(first, signal.SIGCONT)
    codes = [0 if number and has_ended else wait(first)[0], wait(second)[0]]
    met = bool(MET.search(said := log.read_text()))
    right = 0 in codes and {*codes} <= {0, 1} and (not any(codes) or met or "already" in said or "exists" in said)
    told = judged(what, folder, wanted, {"where": f"stopped at change {number}" if number else f"{delay:.2f} s apart", "codes": codes,
                                         "right": right and "ree some space" not in said, "met": met})
    if what == "tune":  # two draw other trials than one, so only what is left behind counts
        told |= {"lost": [name for name in told["lost"] if "/round-" not in name],
                 "differing": [name for name in told["differing"] if LEFT.search(name)]}
    return told


def signal_point(task: tuple) -> dict:
    "Ctrl-C or SIGTERM to a process, after a while or once a file is there: a line, its exit code, no child; the same command goes on."
    what, base, number, delay, wanted = task
    folder = set_up(what, base)
    with open(f"{folder}.log", "w") as log:
        process = subprocess.Popen([*TELLING, *COMMANDS[what]], cwd=folder, stdout=log, stderr=log, start_new_session=True)
        while isinstance(delay, str) and process.poll() is None and not list(folder.glob(delay)):
            time.sleep(0.01)
        time.sleep(0 if isinstance(delay, str) else delay)
        if ENDED in Path(f"{folder}.log").read_text():  # it was too late: once more, earlier
            process.wait(120)
            shutil.rmtree(folder)
            assert not isinstance(delay, str), f"{what} has ended before the signal"
            return signal_point((what, base, number, 0.7 * delay, wanted))
        os.kill(process.pid, number)
        code = process.wait(120)
    said = re.findall("gzpaper: .*", Path(f"{folder}.log").read_text())
    time.sleep(0.3)
    children = subprocess.run(["ps", "-o", "pid=,args=", "-g", str(process.pid)], capture_output=True, text=True).stdout.strip()
    right = code == 128 + number and len(said) == 1 and not children
    again = wait(start(COMMANDS[what], folder))[0]
    return judged(what, folder, wanted, {"where": f"signal {number} after {delay}", "codes": [code, again],
                                         "right": right and again == 0, "children": children})


def workers_point(task: tuple) -> dict:
    "Two processes of `tune` on PostgreSQL, one of which is killed; the same command again."
    base, url, number, delay, wanted = task
    folder = set_up("tune", base)
    command = [*TUNE, "--storage", url, "--name", f"study-{number}"]
    first, second = start(command, folder), start(command, folder)
    time.sleep(delay)
    os.kill(first, signal.SIGKILL)
    codes = [wait(first)[0], wait(second)[0], wait(start(command, folder))[0]]
    from gzpaper.study import open_storage, take_study

    states = [t.state.name for t in take_study(open_storage(url), f"study-{number}").trials]
    lost = [] if sum(s in ("COMPLETE", "PRUNED") for s in states) >= 4 and (folder / "out/params.yaml").exists() else states
    told = judged("tune", folder, {}, {"where": f"after {delay:.2f} s", "codes": codes, "right": codes[1:] == [0, 0]})
    told.pop("log", None)  # the names of its trials differ
    return told | {"what": "tune, two on PostgreSQL, one killed", "lost": lost,
                   "differing": [name for name in told["differing"] if LEFT.search(name)]}


def torchrun_point(task: tuple) -> dict:
    "torchrun with two processes, one of which is killed; the same command again."
    base, delay, wanted = task
    folder = set_up("train", base)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", *GZPAPER,
               *COMMANDS["train"]]
    with open(f"{folder}.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        time.sleep(delay)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            os.kill(int(children[-1]), signal.SIGKILL)
        codes = [process.wait(200), subprocess.run(command, cwd=folder, stdout=log, stderr=log).returncode]
    told = judged("train", folder, {}, {"where": f"after {delay:.2f} s", "codes": codes, "right": codes[1] == 0})
    told.pop("log", None)
    close = {name for name in wanted if name not in told["differing"]}  # whether it is there; numbers differ in their last digits
    return told | {"what": "train, two of torchrun, one killed", "lost": sorted(close), "traceback": False,
                   "differing": [name for name in told["differing"] if LEFT.search(name)]}


@contextmanager
def postgres(base: Path):
    "The address of a PostgreSQL server that lives as long as this does; None where there is none."
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if not found:
        yield None
        return
    folder, user = Path(tempfile.mkdtemp()), "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user:
        shutil.chown(folder, user)
    port = 20_000 + os.getpid() % 10_000
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
    subprocess.run([found, "-D", folder / "data", "-U", "gz", "-A", "trust", "--no-sync"], check=True, **quiet)
    server = subprocess.Popen([Path(found).with_name("postgres"), "-D", folder / "data", "-p", str(port), "-k", folder, "-F"], **quiet)
    time.sleep(3)
    try:
        yield f"postgresql://gz@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def undisturbed(what: str, base: Path) -> tuple[dict, int, float]:  # its final files, how many changes it makes, and its seconds
    folder, counter = set_up(what, base), shared()
    code, seconds = wait(start(COMMANDS[what], folder, lambda: deadly(folder, None, counter)))
    assert code == 0, Path(f"{folder}.log").read_text()
    left = what_is_left(what, folder)
    shutil.rmtree(folder)
    return left, counter.value, seconds


def tasks(base: Path, share: float, alone: dict, url: str | None, draw: random.Random):
    "What is tried: the function that tries it, and its task."
    def some(number: int) -> int:
        return max(1, round(number * share)) if number else 0

    for what, number in KILLS.items():
        left, changes, seconds = alone[what]
        for i in range(n := some(number) // 2):
            yield "killed at a change", kill_point, (what, base, 1 + (i * changes) // n + draw.randrange(max(1, changes // n)), 0, left)
        for _ in range(some(number) - n):
            yield "killed after a while", kill_point, (what, base, None, draw.uniform(0.01, seconds), left)
    for what, number in PAIRS.items():
        left, changes, seconds = alone[what]
        for i in range(some(number)):
            at = (draw.randint(1, changes), 0) if i % 2 == 0 else (None, draw.choice([0, draw.uniform(0, seconds)]))
            yield "two at once", pair_point, (what, base, *at, left)
    for what, number in SIGNALS.items():
        for i in range(some(number)):
            sign = (signal.SIGINT, signal.SIGTERM)[i % 2]
            yield sign.name, signal_point, (what, base, sign, draw.uniform(0.05, 3 + alone[what][2]), alone[what][0])
    for i in range(some(4) if url else 0):
        yield "one of two killed", workers_point, (base, url, i, draw.uniform(0.2, alone["tune"][2]), alone["tune"][0])
    for _ in range(some(4)):
        yield "one of two killed", torchrun_point, (base, draw.uniform(3, 8), alone["train"][0])


def table(results: list[tuple[str, dict]]) -> str:
    "What was tried, how often, and how often something was wrong, in Markdown."
    rows = defaultdict(list)
    for how, told in sorted(results, key=lambda result: (result[0], result[1]["what"])):
        rows[told["what"], how].append(told)
    lines = ["| command | how | points | lost | differing | exit codes right |", "| --- | --- | --- | --- | --- | --- |"]
    for (what, how), each in rows.items():
        lines.append(f"| {what} | {how} | {len(each)} | {sum(bool(t['lost']) for t in each)} | {sum(bool(t['differing']) for t in each)} | "
                     f"{sum(t['right'] and not t['traceback'] for t in each)} |")
    pairs = [told["met"] for _, told in results if "met" in told]
    met = f"{sum(pairs)} of {len(pairs)} pairs met: one said that it waits for the other, or that the other is at work."
    return "\n".join([*lines, "", met])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the points: 0.02 is a try of each kind")
    parser.add_argument("--only", nargs="*", help="these commands alone")
    parser.add_argument("--at-once", type=int, default=2, help="points tried at once")
    parser.add_argument("--minutes", type=float, default=600, help="after which no other point is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file for all points, as JSON lines")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    sys.path.insert(0, str(ROOT))  # this checkout's gzpaper
    import torch

    import gzpaper.catalogue  # noqa: E401, F401

    torch.set_num_threads(1)
    for kinds in (KILLS, PAIRS, SIGNALS):
        for what in {*kinds} - {*(options.only or kinds)}:
            del kinds[what]
    results, draw = [], random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as url:
        base = Path(folder).resolve()
        prepare(base)
        make_repository(base)
        alone = {what: undisturbed(what, base) for what in COMMANDS}
        with ProcessPoolExecutor(options.at_once, get_context("fork")) as pool:
            todo = list(tasks(base, options.share, alone, url, draw))
            draw.shuffle(todo)
            each = {pool.submit(function, task): how for how, function, task in todo}
            try:
                for i, future in enumerate(as_completed(each, timeout=60 * options.minutes), 1):
                    results.append((each[future], told := future.result()))
                    print(f"{i} of {len(each)}: {each[future]} {told['what']}, {told['where']}", file=sys.stderr, flush=True)
                    if "log" in told:
                        print(json.dumps(told, indent=1), file=sys.stderr, flush=True)
            except TimeoutError:
                print(f"stopped after {len(results)} of {len(each)} points", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
    if options.out:
        options.out.write_text("".join(json.dumps({"how": how} | told) + "\n" for how, told in results))
    print(table(results))


if __name__ == "__main__":
    main()
