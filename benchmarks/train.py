"""How fast each network learns, what a step spends outside of it, how much memory it takes, and how much of a GPU it uses"""

from __future__ import annotations

import gc
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from loader import MB, SPEC, OneBatch, about, finish, in_fresh_process, in_turns, interleaved, our_loader, steps_per_second, synthetic_store
from torch.utils.flop_counter import FlopCounterMode

from gzpaper.images import PixelStore
from gzpaper.loader import Batches, DeviceStore, store_side
from gzpaper.models import MODELS, Network, add_adapters, build_model
from gzpaper.spec import Spec
from gzpaper.train import Training, autocast, can_compile, pick_device, pick_precision
from gzpaper.tree import InputError

STAMPS = 4000  # different galaxies in a store; more are these again
CHALLENGE = 61578  # galaxies with labels
STATUS = Path("/proc/self/status")


# A training on noise


@dataclass(frozen=True)
class Way:
    "A way to train a network."
    model: str  # one of gzpaper.models.MODELS
    size: int  # px of its input
    batch_size: int
    precision: str = "fp32"  # auto, or one of gzpaper.train.PRECISIONS
    compiled: bool = False


def stamps(
    scratch: str,
    size: int,  # px of the network's input
    device: torch.device,
) -> PixelStore | DeviceStore:
    "A store of noise, on the GPU if there is one."
    store = synthetic_store(Path(scratch) / f"{size}", STAMPS, store_side(size, SPEC.field))
    return DeviceStore(store, device) if device.type == "cuda" else store


def loaded(
    way: Way,
    store: PixelStore | DeviceStore,
    galaxies: int,  # of an epoch
    device: torch.device,
) -> Batches:
    "Augmented batches, as a training gets them."
    return our_loader(store, way.size, device, np.arange(galaxies) % len(store), way.batch_size)


def network(
    model: str,  # one of gzpaper.models.MODELS
    size: int,  # px of its input
) -> Network:
    "A network with its adapters, if it has any."
    built = build_model(model, size)
    if built.rank:
        add_adapters(built)
    return built


def begin(
    way: Way,
    store: PixelStore | DeviceStore,
    device: torch.device,
) -> Training:
    "A training after its first two steps, of more than will ever be measured."
    spec = Spec(way.model, size=way.size, epochs=100_000, batch_size=way.batch_size, precision=way.precision, pretrained="random")
    batches = loaded(way, store, 2 * way.batch_size, device)
    training = Training(spec, network(way.model, way.size), batches, device, compile=way.compiled)
    training.epoch()
    return training


# Memory


def high_water(device: torch.device) -> float:  # MB; not a number where there is no /proc
    "The most memory that torch has ever had of a GPU, or this process of a machine."
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    if not STATUS.exists():
        return math.nan
    peak = STATUS.read_text().split("VmHWM:")[1]  # getrusage's includes the process that has started this one
    return int(peak.split()[0]) * 1024 / MB


def begin_and_watch(
    way: Way,
    store: PixelStore | DeviceStore,
    device: torch.device,
) -> tuple[Training, float]:  # and the most memory that it took, in MB
    "A training after its first two steps."
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = high_water(device)
    training = begin(way, store, device)
    return training, high_water(device) - before


def peak_memory(
    way: Way,
    store: PixelStore,
    device: torch.device,
) -> float:  # MB
    "The most memory that a training takes, in a process that has done nothing else."
    return begin_and_watch(way, store, device)[1]


def memory_after_epochs(
    way: Way,
    store: DeviceStore,
    steps: int,  # of an epoch
    epochs: int,
    device: torch.device,  # a GPU
) -> list[float]:  # [epochs] MB
    "What is allocated of a GPU after each epoch of a training."
    training, after = begin(way, store, device), []
    training.batches = loaded(way, store, steps * way.batch_size, device)
    for _ in range(epochs):
        training.epoch()
        after.append(torch.cuda.memory_allocated(device) / MB)
    return after


# Speed


def network_per_second(
    training: Training,
    batches: OneBatch,
) -> float:
    "How many batches go through the network alone in a second, forward and back."
    training.model.train()
    start = time.perf_counter()
    for images, labels in batches.epoch():
        with autocast(training.device, training.dtype):
            loss = F.mse_loss(training.network(images), labels)
        training.scaler.scale(loss).backward()
        training.optimiser.zero_grad(set_to_none=True)
    finish(training.device)
    return len(batches) / (time.perf_counter() - start)


def share_outside(
    training: Training,
    batches: Batches,
    repeats: int,
) -> float:
    "The share of a training step that is not spent in the network."
    same = OneBatch(*next(iter(batches.epoch())), len(batches))
    return 1 - interleaved(partial(steps_per_second, training, batches), partial(network_per_second, training, same), repeats)["ratio"]


def matrix_rate(
    device: torch.device,
    side: int = 8192,
    times: int = 10,  # products of a measurement, and measurements
) -> float:  # FLOP/s
    "The best rate at which bf16 matrices are multiplied."
    a, b = torch.randn(2, side, side, dtype=torch.bfloat16, device=device)

    def rate() -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b)
        finish(device)
        return times * 2 * side**3 / (time.perf_counter() - start)

    return in_turns([rate], times).max()


def flops_of_an_image(
    model: str,  # one of gzpaper.models.MODELS
    size: int,  # px of its input
) -> float:
    "What it takes to send an image through a network, forward and back; a multiply-add is two."
    with torch.device("meta"):
        images, built = torch.zeros(2, 3, size, size), network(model, size)
    with FlopCounterMode(display=False) as counter:
        built(images).sum().backward()
    return counter.get_total_flops() / 2


def measure_model(
    ways: list[Way],  # to train the same network; the first is what the others are compared with
    store: PixelStore | DeviceStore,
    steps: int,  # of a measurement
    repeats: int,
    device: torch.device,
) -> list[dict]:  # a row a way
    "Speed and memory of a network's training, VGG7's measured in turns with it."
    first = ways[0]
    vgg7 = Way(SPEC.model, first.size, first.batch_size)
    begun = {way: begin_and_watch(way, store, device) for way in dict.fromkeys([vgg7, *ways])}
    batches = loaded(first, store, steps * first.batch_size, device)
    rates = dict(zip(begun, in_turns([partial(steps_per_second, training, batches) for training, _ in begun.values()], repeats).T))
    rows = []
    for way in ways:
        training, peak = begun[way]
        rows.append(asdict(way) | speed(way, rates[way], rates[first], rates[vgg7]) | memory(way, peak, store, device))
        if way.model == SPEC.model:
            rows[-1]["outside"] = share_outside(training, batches, repeats)
    torch.compiler.reset()  # it takes few networks at a time
    gc.collect()
    return rows


def speed(
    way: Way,
    rates: np.ndarray,  # [repeats] steps/s
    first: np.ndarray,  # [repeats] the same of this network in fp32, not compiled
    vgg7: np.ndarray,  # [repeats] the same of VGG7 in fp32, not compiled
) -> dict:
    "A training's speed, and what it is to others."
    rate = np.median(rates)
    return {"images_per_s": rate * way.batch_size, "step_ms": 1000 / rate,
            "to_fp32": np.median(rates / first), "to_vgg7": np.median(rates / vgg7)}


def memory(
    way: Way,
    peak: float,  # MB, as watched in this process
    store: PixelStore | DeviceStore,
    device: torch.device,
) -> dict:  # empty where it is not measured
    "A training's peak memory: as it was on a GPU, else that of a fresh process."
    if device.type == "cuda":
        return {"peak_mb": peak}
    if way.compiled or not STATUS.exists():  # the compiler takes more than the training
        return {}
    return {"peak_mb": in_fresh_process(peak_memory, way, store, device)}


def measure(
    models: list[str],  # some of gzpaper.models.MODELS
    sizes: list[int],  # px of their input
    batch_size: int,
    compiled: list[bool],  # without and with
    steps: int,  # of a measurement
    repeats: int,
    device: torch.device,
) -> dict:  # rows; on a GPU also its matrix rate and the memory after epochs
    "Every network at every size, in every way."
    gpu = device.type == "cuda"
    precisions = ["fp32", "bf16", *["fp16"] * gpu]
    flops = {(model, size): flops_of_an_image(model, size) for size in sizes for model in models}
    result = {"rows": []} | ({"matrix_rate": matrix_rate(device)} if gpu else {})
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            store = stamps(scratch, size, device)
            for model in models:
                ways = [Way(model, size, batch_size, precision, c) for c, precision in product(compiled, precisions)]
                result["rows"] += measure_model(ways, store, steps, repeats, device)
    for row in result["rows"]:
        row["flops_of_an_image"] = flops[row["model"], row["size"]]
        if gpu:
            row["of_matrix_rate"] = row["images_per_s"] * row["flops_of_an_image"] / result["matrix_rate"]
    if gpu:
        result["memory_after_epochs_mb"] = memory_after_epochs(Way(SPEC.model, sizes[-1], batch_size, "auto"), store, steps, 10, device)
    return result


def measure_challenge(
    way: Way,
    epochs: int,
    device: torch.device,  # a GPU
) -> dict:
    "The time of a whole training on as many galaxies as the challenge has labels for; compiling is a part of it."
    with tempfile.TemporaryDirectory() as scratch:
        store = stamps(scratch, way.size, device)
    start = time.perf_counter()
    training = begin(way, store, device)
    training.batches = loaded(way, store, CHALLENGE, device)
    for _ in range(epochs):
        training.epoch()
        training.history.append({})  # an epoch's number decides its order and augmentation
    finish(device)
    return asdict(way) | {"precision": str(training.dtype)[6:], "epochs": epochs, "seconds": time.perf_counter() - start}


# The report


TABLE = {"images/s": ("images_per_s", ".0f"), "ms": ("step_ms", ".1f"), "to fp32": ("to_fp32", ".2f"), "to vgg7": ("to_vgg7", ".2f"),
         "outside": ("outside", ".1%"), "peak MB": ("peak_mb", ".0f"), "of matrix": ("of_matrix_rate", ".1%")}


def show(result: dict):
    "Print the results as tables."
    print("{device}, {cores} cores, {threads} threads, torch {torch}, precision auto is {auto}".format(**result["about"]))
    if "challenge" in result:
        row = result["challenge"]
        print(f"\n{CHALLENGE:,} galaxies at {row['size']} px, {row['epochs']} epochs of {row['model']}, {row['precision']}"
              f"{', compiled' * row['compiled']}, batches of {row['batch_size']}: {row['seconds'] / 60:.1f} minutes")
        return
    for size in dict.fromkeys(row["size"] for row in result["rows"]):
        show_size([row for row in result["rows"] if row["size"] == size])
    if "matrix_rate" not in result:
        print("\nno GPU is measured: fp16, a card's matrix rate, its memory over epochs and the whole challenge are left out")
        return
    after = result["memory_after_epochs_mb"]
    print(f"\nmatrix rate: {result['matrix_rate'] / 1e12:.0f} TFLOP/s in bf16")
    print(f"allocated after {len(after)} epochs: {after[-1]:.1f} MB, {max(after[1:]) - after[0]:+.1f} MB since the first")


def show_size(
    rows: list[dict],  # of one size
):
    "Print a table of what was measured at a size."
    heading = f"{rows[0]['size']} px, batches of {rows[0]['batch_size']}"
    print(f"\n{heading:<28}" + "".join(f"{name:>10}" for name in TABLE))
    for row in rows:
        cells = [f"{row[key]:{form}}" if key in row else "-" for key, form in TABLE.values()]
        print(f"{row['model'] + ' ' + row['precision'] + ' compiled' * row['compiled']:<28}" + "".join(f"{cell:>10}" for cell in cells))


def main(
    models: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(MODELS)}; may be repeated (default: all)")] = None,
    sizes: Annotated[list[int] | None, typer.Option(help="px; may be repeated (default: 64 on a CPU, else 64 and 128)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="(default: 64 on a CPU, else 512)")] = None,
    compile: Annotated[bool | None, typer.Option(help="networks compiled, too (default: not on a CPU, where it takes minutes)")] = None,
    steps: Annotated[int | None, typer.Option(help="of each measurement (default: 1 on a CPU, else 50)")] = None,
    repeats: Annotated[int, typer.Option(help="of each measurement")] = 7,
    whole_challenge: Annotated[bool, typer.Option("--whole-challenge", help="time a whole training on a GPU instead")] = False,
    epochs: Annotated[int, typer.Option(help="of the whole training")] = 60,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="a JSON file to write")] = None,
):
    "How fast each network learns, what a step spends outside of it, how much memory it takes, and how much of a GPU it uses."
    on = pick_device(device)
    gpu = on.type == "cuda"
    if whole_challenge and not gpu:
        raise InputError("the whole challenge takes a GPU: leave --whole-challenge out, or name one with --device")
    batch_size = batch_size or (512 if gpu else 64)
    compiled = [False, True] if (gpu if compile is None else compile) and can_compile(on) else [False]
    result = {"about": about(on) | {"auto": str(pick_precision("auto", on))[6:]}}
    if whole_challenge:
        result["challenge"] = measure_challenge(Way(SPEC.model, 128, batch_size, "auto", compiled[-1]), epochs, on)
    else:
        steps = steps or (50 if gpu else 1)
        result["about"] |= {"steps": steps, "repeats": repeats}
        result |= measure(models or list(MODELS), sizes or ([64, 128] if gpu else [64]), batch_size, compiled, steps, repeats, on)
    show(result)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(str(error))
