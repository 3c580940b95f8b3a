"""How fast a folder of images is predicted, against another checkout: views x networks, in alternating turns"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from loader import copies

HERE = Path(__file__).parents[1]
BEFORE = "before: 16 views"
WAYS = {  # what is asked of this checkout: arguments of `Ensemble`
    "16 views": {"flip": True}, "8 views, the default": {}, "4 views": {"rotations": 4}, "2 views, --fast": {"fast": True},
    "1 view": {"rotations": 1, "flip": False},
}
QUICK = ("2 views, --fast", "1 view")
WORKER = """
import json, sys, time
from gzpaper.images import Images
from gzpaper.predict import READABLE, Ensemble, image_parts, predict_parts
from gzpaper.weights import released

images = Images(sys.argv[1], READABLE)
for line in sys.stdin:
    networks, options, n = json.loads(line)
    ensemble, start = Ensemble([released()[i] for i in networks], **options), time.perf_counter()
    for _ in predict_parts(ensemble, images, image_parts(len(images))[: -(-n // 64)]):
        pass
    print(min(len(images), -(-n // 64) * 64) / (time.perf_counter() - start), flush=True)
"""


class Checkout:
    "A process that predicts with the code of a checkout; it imports once."

    def __init__(self, path: Path, images: Path):
        environment = os.environ | {"PYTHONPATH": str(path)}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, images], cwd=path, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def rate(self, networks: list[int], options: dict, n: int) -> float:
        "How many galaxies are predicted in a second."
        print(json.dumps([networks, options, n]), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def commit_of(path: Path) -> str:
    return subprocess.run(["git", "-C", path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def cpu() -> str:
    "What the processor calls itself."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def measured(other: Path, images: Path, slow: int, quick: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    "Galaxies per second by networks and by ways, one of each in every turn; one turn before, to warm up."
    before, now = Checkout(other, images), Checkout(HERE, images)
    rates: dict[str, dict[str, list[float]]] = {}
    for turn in range(1 + repeats):
        for name, networks in {"both": [0, 1], "first": [0], "second": [1]}.items():
            row = {BEFORE: before.rate(networks, {}, slow)}
            row |= {way: now.rate(networks, options, quick if way in QUICK else slow) for way, options in WAYS.items()}
            print(f"turn {turn}, {name}: " + ", ".join(f"{way} {rate:.1f}" for way, rate in row.items()), file=sys.stderr)
            for way, rate in row.items() if turn else ():
                rates.setdefault(name, {}).setdefault(way, []).append(rate)
    return rates


def show(rates: dict[str, dict[str, list[float]]]):
    "Print the medians, and the medians of the turns' ratios, as a Markdown table."
    print("| networks | " + " | ".join([BEFORE, *WAYS]) + " |\n|" + " --- |" * (2 + len(WAYS)))
    for name, ways in rates.items():
        ratios = {way: median(a / b for a, b in zip(ways[way], ways[BEFORE])) for way in ways}
        print(f"| {name} | " + " | ".join(f"{median(ways[way]):.0f} ({ratios[way]:.1f})" for way in ways) + " |")


def main(
    other: Annotated[Path, typer.Argument(help="another checkout, to compare with")],
    data: Annotated[Path | None, typer.Option(envvar="GZPAPER_DATA", help="a folder in Kaggle's layout")] = None,
    originals: Annotated[Path | None, typer.Option(help="a folder of 424 px originals (default: DATA/original_424)")] = None,
    images: Annotated[int, typer.Option(help="images that the quick ways predict; the originals are repeated")] = 1000,
    slow_images: Annotated[int, typer.Option(help="images that the others predict")] = 1000,
    repeats: Annotated[int, typer.Option(help="turns")] = 3,
    out: Annotated[Path | None, typer.Option(help="a JSON file to write")] = None,
):
    "How many galaxies per second `gzpaper predict` does with the released networks, here and in another checkout."
    if not (originals or data):
        raise typer.BadParameter("name a folder with --data or --originals")
    with tempfile.TemporaryDirectory() as scratch:
        folder = copies(originals or data / "original_424", Path(scratch) / "images", images)
        rates = measured(other.resolve(), folder, slow_images, images, repeats)
    told = {"cpu": cpu(), "cores": os.cpu_count(), "date": f"{date.today()}", "before": commit_of(other), "now": commit_of(HERE)}
    print(", ".join(f"{name} {value}" for name, value in told.items()) + "\n\ngalaxies/s (times as many as before)\n")
    show(rates)
    if out:
        out.write_text(json.dumps(told | {"rates": rates}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
