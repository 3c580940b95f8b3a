"""How fast galaxies are loaded, what loading costs a training, and how much memory it takes"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torchvision
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gzpaper.images import Images, PixelStore, pixel_store
from gzpaper.loader import Augment, Batches, DeviceStore, store_side
from gzpaper.models import build_model
from gzpaper.spec import Spec
from gzpaper.train import Training, pick_device

SPEC = Spec()
SIZES = (64, 128)  # px
MB = 1e6


# Two ways to load


def copies(
    originals: Path,  # a folder of JPEG files
    folder: Path,  # to be made
    n: int,
) -> Path:
    "A folder of `n` images: links to the originals, over and over."
    files = sorted(originals.glob("*.jpg"))
    if not files:
        raise typer.BadParameter(f"{originals} holds no JPEG image: name the 424 px originals with --originals")
    folder.mkdir()
    for i in range(n):
        (folder / f"{i}.jpg").symlink_to(files[i % len(files)].resolve())
    return folder


class UsualImages(Dataset):
    "One JPEG opened, rotated, cut, scaled and flipped for every sample."

    def __init__(
        self,
        folder: Path,
        size: int,  # px of the output
    ):
        self.files = sorted(folder.glob("*.jpg"))
        self.labels = torch.zeros(len(self.files), 37)
        self.transform = transforms.Compose([
            transforms.RandomRotation((0, 360)), transforms.CenterCrop(round(SPEC.field)), transforms.Resize(size),
            transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.ToTensor(),
        ])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.files[i]) as image:
            return self.transform(image.convert("RGB")), self.labels[i]


def usual_loader(
    folder: Path,
    size: int,  # px
    workers: int,  # processes
    device: torch.device,
) -> DataLoader:
    "The loader of a student's first project; its workers stay alive between epochs."
    return DataLoader(UsualImages(folder, size), SPEC.batch_size, shuffle=True, num_workers=workers,
                      persistent_workers=workers > 0, pin_memory=device.type == "cuda")


def our_loader(
    store: PixelStore | DeviceStore,
    size: int,  # px
    device: torch.device | str,
    rows: np.ndarray | None = None,  # positions in the store; None: all of it
    batch_size: int = SPEC.batch_size,
) -> Batches:
    "The package's loader with its default augmentation."
    rows = np.arange(len(store)) if rows is None else rows
    labels = np.full((len(rows), 37), 0.5, np.float32)
    return Batches(store, rows, labels, size, [0.5] * 3, [0.25] * 3, batch_size, Augment(), device=device)


def decode_once(
    folder: Path,  # of JPEG images
    path: Path,  # the store to be made
    size: int,  # px of the output
) -> tuple[PixelStore, float]:  # and how many images were decoded in a second
    "The store of a folder of images, as our loader needs it."
    start = time.perf_counter()
    store = pixel_store(Images(folder), path, store_side(size, SPEC.field))
    return store, len(store) / (time.perf_counter() - start)


# Speed


def in_turns(
    rates: list[Callable[[], float]],
    repeats: int,
) -> np.ndarray:  # [repeats, rates]
    "Rates measured in turns, so that whatever else the machine does disturbs all of them; each once before, to warm up."
    return np.array([[rate() for rate in rates] for _ in range(1 + repeats)])[1:]


def interleaved(
    first: Callable[[], float],
    second: Callable[[], float],
    repeats: int,
) -> dict:  # the medians of both, of their ratio, and all ratios
    "Two rates measured in turns."
    rates = in_turns([first, second], repeats)
    ratios = rates[:, 0] / rates[:, 1]
    return {"ours": float(np.median(rates[:, 0])), "other": float(np.median(rates[:, 1])),
            "ratio": float(np.median(ratios)), "ratios": ratios.round(3).tolist()}


def finish(device: torch.device):
    "Wait until a GPU has done what it was given."
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_per_second(
    epoch: Callable[[], Iterable],  # gives the batches of an epoch
    device: torch.device,
    seconds: float,  # at least so long, in whole epochs
) -> float:
    "How many images arrive on the device in a second."
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for images, labels in epoch():
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            count += len(images)
        finish(device)
    return count / (time.perf_counter() - start)


def measure_loading(
    folder: Path,  # of JPEG images
    store: PixelStore,  # of the same
    size: int,  # px
    workers: int,  # of the usual loader
    device: torch.device,
    repeats: int,
) -> dict:
    "Images per second of our loader and of the usual one."
    ours, usual = our_loader(store, size, device), usual_loader(folder, size, workers, device)
    return interleaved(lambda: images_per_second(ours.epoch, device, 1.0),
                       lambda: images_per_second(lambda: usual, device, 1.0), repeats)


@dataclass
class OneBatch:
    "The same batch from memory time after time, in place of a loader."
    images: torch.Tensor  # [B, 3, size, size]
    labels: torch.Tensor  # [B, 37]
    times: int

    def __len__(self) -> int:
        return self.times

    @property
    def sizes(self) -> list[int]:
        return [len(self.images)] * self.times

    @property
    def rows(self) -> range:
        return range(len(self.images) * self.times)

    def epoch(self, epoch: int = 0) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.images, self.labels)] * self.times


def steps_per_second(
    training: Training,
    batches: Batches | OneBatch,
) -> float:
    "How many steps of a training are done in a second."
    training.batches = batches
    start = time.perf_counter()
    training.epoch()
    finish(training.device)
    return len(batches) / (time.perf_counter() - start)


def measure_steps(
    store: PixelStore,
    device: torch.device,
    steps: int,  # of a measurement
    repeats: int,
) -> dict:
    "Training steps per second with loading and augmentation, and with a batch in memory."
    ours = our_loader(store, SPEC.size, device, np.arange(steps * SPEC.batch_size) % len(store))
    same = OneBatch(*next(iter(ours.epoch())), steps)
    spec = Spec(epochs=2 * repeats + 2)
    training = Training(spec, build_model(spec.model, size=spec.size), ours, device)
    rates = interleaved(lambda: steps_per_second(training, ours), lambda: steps_per_second(training, same), repeats)
    return rates | {"precision": str(training.dtype)[6:]}


# Memory


SMAPS = Path("/proc/self/smaps")


def private_memory() -> float:  # MB
    """The memory that this process alone holds.

    Pages of libraries are left out, as other processes that share them come and go, and so is what the allocator keeps for later."""
    gc.collect()
    with suppress(AttributeError):  # only in glibc
        ctypes.CDLL(None).malloc_trim(0)
    total, library = 0, False
    for line in SMAPS.read_text().splitlines():
        field, *values = line.split()
        if not field.endswith(":"):  # the addresses of the next mapping, and its file
            library = ".so" in line
        elif field.startswith("Private_") and not library:
            total += int(values[0]) * 1024
    return total / MB


def synthetic_store(
    path: Path,  # a folder to be made
    n: int,  # galaxies
    side: int,  # px
) -> PixelStore:
    "A store of noise."
    path.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (100, side, side, 3), np.uint8).tobytes()
    with open(path / "pixels.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, side, side, 3)})
        for start in range(0, n, 100):
            file.write(pixels[: (n - start) * side * side * 3])
    np.save(path / "ids.npy", np.arange(n))
    np.save(path / "digests.npy", np.zeros(n, "U12"))
    np.save(path / "centres.npy", np.zeros((n, 3)))
    (path / "store.json").write_text(json.dumps({"side": side}))
    return PixelStore.open(path)


def memory_of_epochs(
    store: PixelStore,
    size: int,  # px of the output
    epochs: int,
    device: str = "cpu",
) -> list[float]:  # [epochs] MB, each with the epoch's last batch in hand
    "Go through a store and watch the private memory."
    batches = our_loader(store, size, device)
    last = len(batches) - 1
    return [private_memory() for epoch in range(epochs) for i, _ in enumerate(batches.epoch(epoch)) if i == last]


def in_fresh_process(function: Callable, *arguments):
    "What a function returns in a process that has done nothing else."
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_memory(
    scratch: Path,
    n: int,  # galaxies of the small store
    device: torch.device,
) -> dict:  # empty where there is no /proc
    "Private memory over a store and one of ten times the size, and over ten epochs."
    if not SMAPS.exists():
        return {}
    result = {"galaxies": n}
    for name, galaxies, epochs in (("small", n, 10), ("large", 10 * n, 1)):
        store = synthetic_store(scratch / name, galaxies, store_side(SPEC.size, SPEC.field))
        result[f"{name}_store_mb"] = (store.path / "pixels.npy").stat().st_size / MB
        result[f"{name}_mb"] = in_fresh_process(memory_of_epochs, store, SPEC.size, epochs, str(device))
    result["growth_with_size_mb"] = result["large_mb"][0] - result["small_mb"][0]
    result["growth_with_epochs_mb"] = max(result["small_mb"][1:]) - result["small_mb"][0]
    return result


# The report


def about(device: torch.device) -> dict:
    "What was measured on."
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "torchvision": torchvision.__version__}


def show(result: dict):
    "Print the results as tables."
    print("{device}, {cores} cores, {threads} threads, torch {torch}\n".format(**result["about"]))
    print(f"{'images/s':<28}{'ours':>10}{'usual':>10}{'ratio':>8}{'decoding':>10}")
    for size, row in result["loading"].items():
        print(f"{size + ' px':<28}{row['ours']:>10.0f}{row['other']:>10.0f}{row['ratio']:>8.2f}{row['decoded_once']:>10.0f}")
    row = result["training"]
    print(f"\n{'steps/s':<28}{'loading':>10}{'in memory':>10}{'ratio':>8}")
    name = f"{SPEC.model} at {SPEC.size} px, {row['precision']}"
    print(f"{name:<28}{row['ours']:>10.2f}{row['other']:>10.2f}{row['ratio']:>8.2f}")
    if not result["memory"]:
        return
    row = result["memory"]
    print(f"\n{'private memory, MB':<28}{'on disk':>10}{'epoch 1':>10}{'epoch 10':>10}")
    print(f"{row['galaxies']:<28,}{row['small_store_mb']:>10.0f}{row['small_mb'][0]:>10.1f}{row['small_mb'][-1]:>10.1f}")
    print(f"{10 * row['galaxies']:<28,}{row['large_store_mb']:>10.0f}{row['large_mb'][0]:>10.1f}")


def main(
    data: Annotated[Path | None, typer.Option(envvar="GZPAPER_DATA", help="a folder in Kaggle's layout")] = None,
    originals: Annotated[Path | None, typer.Option(help="a folder of 424 px originals (default: DATA/original_424)")] = None,
    images: Annotated[int, typer.Option(help="how many images to load; the originals are repeated")] = 960,
    galaxies: Annotated[int, typer.Option(help="galaxies in the smaller store of the memory measurement")] = 2000,
    workers: Annotated[int, typer.Option(help="processes of the usual loader")] = 2,
    steps: Annotated[int | None, typer.Option(help="of each measurement of a training (default: 4 on a CPU, else 200)")] = None,
    repeats: Annotated[int, typer.Option(help="of each pair of measurements")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="a JSON file to write")] = None,
):
    "How fast galaxies are loaded, what loading costs a training, and how much memory it takes."
    if not (originals or data):
        raise typer.BadParameter("name a folder with --data or --originals")
    on, result = pick_device(device), {"loading": {}}
    result["about"] = about(on) | {"images": images, "workers": workers, "repeats": repeats}
    with tempfile.TemporaryDirectory() as scratch:
        folder = copies(originals or data / "original_424", Path(scratch) / "images", images)
        for size in SIZES:
            store, rate = decode_once(folder, Path(scratch) / f"{size}", size)
            result["loading"][str(size)] = measure_loading(folder, store, size, workers, on, repeats) | {"decoded_once": rate}
        store, _ = decode_once(folder, Path(scratch) / f"{SPEC.size}", SPEC.size)
        result["training"] = measure_steps(store, on, steps or (4 if on.type == "cpu" else 200), repeats)
        result["memory"] = measure_memory(Path(scratch), galaxies, on)
    show(result)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
