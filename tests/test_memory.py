"""The loader's memory does not depend on how many galaxies there are, nor on how often it has gone through them"""

import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from gzpaper.images import PixelStore

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from loader import SMAPS, in_fresh_process, memory_of_epochs, synthetic_store

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="private memory is read from /proc, which is not here")
N, SIDE, SIZE = 400, 140, 16  # galaxies of the small store; px of the stored galaxies; px of the output


class KeptOpen(PixelStore):
    "A store whose array stays mapped, so that every page that was read stays in memory."

    @cached_property
    def pixels(self) -> np.ndarray:
        return np.load(self.path / "pixels.npy", mmap_mode="r")

    def read(self, rows) -> np.ndarray:
        return np.asarray(self.pixels[np.asarray(rows)])


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> PixelStore:
    "A store of 235 MB."
    return synthetic_store(tmp_path_factory.mktemp("memory") / "large", 10 * N, SIDE)


@pytest.fixture(scope="module")
def small_epochs(tmp_path_factory) -> list[float]:
    "Private memory in each of eleven epochs over a store of 24 MB."
    store = synthetic_store(tmp_path_factory.mktemp("memory") / "small", N, SIDE)
    return in_fresh_process(memory_of_epochs, store, SIZE, 11)


def test_memory_does_not_grow_with_the_store(large, small_epochs):
    memory = in_fresh_process(memory_of_epochs, large, SIZE, 1)
    assert memory[0] - small_epochs[0] < 20  # MB


def test_memory_does_not_grow_with_epochs(small_epochs):
    assert max(small_epochs[1:]) - small_epochs[0] < 5  # MB


def test_an_array_kept_open_would_be_noticed(large, small_epochs):
    kept = KeptOpen(large.path, large.ids, large.digests, large.centres, large.side)
    memory = in_fresh_process(memory_of_epochs, kept, SIZE, 1)
    assert memory[0] - small_epochs[0] > 150  # MB
