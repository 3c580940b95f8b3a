"""Data for the tests, the command line in two ways, and what a refusal looks like."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from gzpaper import chain, paper
from gzpaper.cli import main
from gzpaper.data import Galaxies, KaggleFolder
from gzpaper.images import PixelStore
from gzpaper.loader import store_side
from gzpaper.models import build_model
from gzpaper.paper import root
from gzpaper.spec import Spec
from gzpaper.weights import Input, save_weights

signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, all processes of the tests would ignore Ctrl-C

_QUIET = {"database": None, "deadline": 20_000, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("full", max_examples=2000, **_QUIET)  # `make fuzz`: others each time, and a failure prints its seed
settings.register_profile("short", max_examples=20, derandomize=True, **_QUIET)
settings.load_profile("short")

DEEP = ("--validation", 8, "--test", 8, "--size", 32, "--epochs", 1, "--batch-size", 12, "--device", "cpu")
TINY = (*DEEP, "--width", 2)  # of vgg7


@dataclass(frozen=True)
class Result:
    "What a command left behind."
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        "The lines of stderr; a progress bar may share one."
        return [line for line in re.split(r"[\r\n]+", self.err) if line.strip()]

    def refused(self, *words: str):
        "Assert a refusal in one line that says all these words; `data check` may say them above it, on stdout."
        assert self.code == 1, self
        assert "Traceback" not in self.err + self.out, self.err
        assert self.lines[-1].startswith("gzpaper: ") and self.err.count("gzpaper: ") == 1, self.err
        assert_says(self.out + self.lines[-1], *words)


def assert_says(message: str, *words: str):
    "Assert that a message holds all these words, in whatever case."
    missing = [str(word) for word in words if str(word).lower() not in message.lower()]
    assert not missing, f"{missing} not in: {message}"


def edit(path: Path, old: str, new: str):
    "Replace some text of a file, which has to be there."
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def assert_whole(folder: Path):
    "Assert that no half-written file or folder is left."
    assert not list(Path(folder).rglob("*.partial*"))


@contextmanager
def limited(size: float) -> Iterator[None]:
    "So many bytes of memory more than are in use: who asks for more gets a `MemoryError`."
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(size), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def cli(monkeypatch, capsys):
    "The command line in this process: `cli(*arguments)` gives a `Result`."
    def run(*arguments) -> Result:
        monkeypatch.setattr(sys, "argv", ["gzpaper", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Result(stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def gzpaper():
    "The command line in a process of its own, with the options of `subprocess.run`."
    def run(*arguments, **options) -> Result:
        command = [sys.executable, "-c", "from gzpaper.cli import main; main()", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def threads():
    "Leave torch as it was."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mock_folder(tmp_path_factory) -> Path:
    "40 labelled mock galaxies and 2 without labels; copy the folder before you change it."
    pytest.importorskip("galsim", reason="mock galaxies need GalSim: install gzpaper[paper]")
    from gzpaper.mock import write_mock

    return write_mock(tmp_path_factory.mktemp("mock") / "galaxies", galaxies=40, test_galaxies=2, progress=False)


@pytest.fixture
def damaged(mock_folder, tmp_path) -> Path:
    "A copy of the mock galaxies to damage."
    return Path(shutil.copytree(mock_folder, tmp_path / "galaxies"))


@pytest.fixture(scope="session")
def real_folder() -> Path:
    "The real sample, if there is one."
    named, usual = os.environ.get("GZPAPER_DATA"), root() / "data/sample"
    if not named and not usual.is_dir():
        pytest.skip("no real galaxies: set GZPAPER_DATA to a folder with them or put it in data/sample, as data/README.md says")
    return KaggleFolder(named or usual).path.resolve()


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory, worker_id) -> Path:
    "A copy of the repository's sources where smoke has been reproduced, once for all workers; copy it before you change it."
    base = tmp_path_factory.getbasetemp()
    copy = (base if worker_id == "master" else base.parent) / "reproduced"
    with FileLock(f"{copy}.lock"):
        if not copy.exists():
            partial = tmp_path_factory.mktemp("repository")
            for name in ("nbs", "gzpaper", "paper"):
                shutil.copytree(root() / name, partial / name, ignore=shutil.ignore_patterns("__pycache__", "runs", "notebooks"))
            (partial / "data").mkdir()
            with chdir(partial):
                assert chain.reproduce("smoke") == paper.read_chain()["notebooks"]
            partial.rename(copy)
    return copy


@pytest.fixture(scope="module")
def smoke(reproduced, tmp_path_factory):
    "A module's own copy of what was reproduced; the working directory is inside it."
    copy = shutil.copytree(reproduced, tmp_path_factory.mktemp("copy") / "repository")
    with chdir(copy):
        yield Path(copy)


def toy_galaxies(folder: Path, train: int = 80, validation: int = 16, test: int = 0, side: int = 20) -> Galaxies:
    "Galaxies of noise with labels of noise."
    folder.mkdir(parents=True, exist_ok=True)
    rng, n = np.random.default_rng(0), train + validation + test
    pixels, labels = rng.integers(0, 256, (n, side, side, 3), np.uint8), rng.uniform(size=(n, 37)).astype(np.float32)
    np.save(folder / "pixels.npy", pixels)
    store = PixelStore(folder, np.arange(n), np.zeros(n, "U12"), np.zeros((n, 3)), side)
    return Galaxies(store, labels, np.repeat(["train", "validation", "test"], [train, validation, test]), is_mock=True)


def write_untrained(path: Path, spread: float = 1.0, size: int = 32) -> Path:
    "Weights of a tiny network that has learnt nothing; the larger the spread, the more its answers differ from galaxy to galaxy."
    torch.manual_seed(0)
    spec = Spec(model_parameters={"width": 2, "hidden": 16, "dropout": 0.0}, size=size)
    model = build_model(spec.model, size=spec.size, **spec.model_parameters)
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        model.tail[-1].weight *= spread
        model(torch.randn(256, 3, size, size))  # so that batch norm knows the scale of what it sees
    save_weights(path, model, spec, Input(size, store_side(size, spec.field), [0.04] * 3, [0.08] * 3), trained_on=0, of=0)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    "Weights of a tiny untrained network."
    return write_untrained(tmp_path_factory.mktemp("weights") / "weights.safetensors")
