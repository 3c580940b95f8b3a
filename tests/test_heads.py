"""The heads, whatever the logits: labels between 0 and 1, finite gradients, and no violation from those that know the tree."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gzpaper.models import HEADS, Network, build_model
from gzpaper.tree import QUESTIONS, check_labels, predictions_table

N = 200  # rows of logits of each kind
TREE = [name for name in HEADS if name.startswith("tree")]
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# how large a logit is: 0, the smallest denormal, another, the smallest normal number, and so on until it overflows
SIZES = [0.0, 1e-45, 1e-40, torch.finfo(torch.float32).tiny, 1e-10, 1e-3, 1.0, 1e4, torch.finfo(torch.float16).max, 1e19, 1e38,
         torch.finfo(torch.bfloat16).max, torch.finfo(torch.float32).max, math.inf]
VALUES = torch.tensor([*SIZES, *(-size for size in SIZES)])


def some(*shape: int) -> torch.Tensor:
    "Any of the values."
    return VALUES[torch.randint(len(VALUES), shape)]


def one_apart() -> torch.Tensor:
    "Rows of equal logits in which one has another value."
    rows = some(N, 1).repeat(1, 37)
    rows[torch.arange(N), torch.randint(37, (N,))] = some(N)
    return rows


def sizes(largest: float) -> torch.Tensor:
    "Sizes from 0 to the largest, of all orders of magnitude."
    return torch.rand(N, 37) * torch.logspace(-44, math.log10(largest), N)[:, None]


LOGITS = {  # of [rows, 37]
    "ordinary": lambda: 3 * torch.randn(N, 37),
    "all orders": lambda: sizes(1e38) * torch.randn(N, 37).sign(),
    "all negative": lambda: -sizes(1e38),
    "all equal": lambda: VALUES[:, None].repeat(1, 37),
    "one apart": one_apart,
    "denormal": lambda: sizes(1e-38) * torch.randn(N, 37).sign(),
    **{f"{size:.2g} or its negative": lambda size=size: torch.randn(N, 37).sign() * size for size in SIZES},
    "any with any": lambda: some(N, 37),
}


def assert_obeys(labels: torch.Tensor, head: str):
    "Assert labels in [0, 1] and, of a head that knows the tree, each question's sum."
    values = labels.detach().double().numpy()
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    if head in TREE:
        violations = check_labels(predictions_table(range(len(values)), values), tolerance=1e-6)
        assert not len(violations), violations.head()
        np.testing.assert_allclose(values[:, QUESTIONS[5].slice].sum(1), 1, atol=1e-6)  # question 6 has no parent


def assert_finite_gradients(labels: torch.Tensor, *given: torch.Tensor):
    "Assert that a mean squared error against labels of 0 and 1 has finite gradients."
    F.mse_loss(labels, torch.rand_like(labels).round()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("head", HEADS)
def test_any_logits(head, kind, dtype):
    "Logits of any precision; those in half precision go to the head in float32."
    torch.manual_seed(0)
    tail = nn.Identity()
    tail.weight = tail.bias = torch.zeros(1, dtype=DTYPES[dtype])  # of the precision that a network asks its tail for
    logits = LOGITS[kind]().to(DTYPES[dtype]).requires_grad_()
    labels = Network(nn.Identity(), nn.Sequential(tail), head)(logits)
    assert labels.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert_obeys(labels, head)
    assert_finite_gradients(labels, logits)


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("head", HEADS)
def test_a_network_in_half_precision(head, dtype, how):
    "Half the precision everywhere but in the head, be it the weights' own or by autocast; the images are in half precision too."
    torch.manual_seed(0)
    network, half = build_model("vgg7", size=32, width=4, hidden=16, head=head), DTYPES[dtype]
    network.to(half if how == "weights" else torch.float32)
    with torch.autocast("cpu", half, enabled=how == "autocast"):
        labels = network(torch.randn(16, 3, 32, 32, dtype=half))
    assert labels.dtype == torch.float32
    assert_obeys(labels, head)
    assert_finite_gradients(labels, *network.parameters())
