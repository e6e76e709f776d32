"""The user's own module on the command line: importing it, its weights, and every mistake on the way."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import overfeat
from overfeat.cli.module_source import ModuleSource, load_module, parse_module
from overfeat.cli.state_dict import load_state_dict
from overfeat.errors import InputError

NET = """
from dataclasses import dataclass
import torch
from torch import nn
from parts import block

@dataclass
class Size:
    channels: int = 4

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.features = nn.Sequential(*block(Size().channels))
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.features(x).amax((2, 3)))

def make_net():
    torch.manual_seed(0)
    return Net()

def needs(width, depth=3, *more, height):
    return Net()

def nothing():
    Net()

def a_class():
    return Net

def a_list():
    return [Net()]

def fails():
    size = 0
    return Net(1 // size)

net = Net()
number = 3
"""
PARTS = "from torch import nn\ndef block(c):\n    return nn.Conv2d(3, c, 3), nn.BatchNorm2d(c), nn.ReLU()\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: net.py and a file that it imports."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith(("torch", "overfeat", "numpy")):
            del sys.modules[name]


def make(name="make_net", file="net.py"):
    return load_module(ModuleSource(file, name))


@pytest.mark.parametrize("text", ["net.py", "net.py:", ":make", "net.py:make()", "net.py:1", ""])
def test_module_without_a_name(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"FILE\.py:NAME"):
        parse_module(text)


def test_files_and_names_are_parsed():
    assert parse_module("C:/my nets/net.py:make") == ModuleSource("C:/my nets/net.py", "make")


@pytest.mark.parametrize("source", [("net.py", "make_net"), ("net.py", "Net"), ("net.py", "net"), ("net", "make_net")])
def test_functions_classes_and_modules_make_nets(source):
    file, name = source
    assert make(name, file)(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_package_in_the_current_folder(folder):
    (folder / "nets").mkdir()
    (folder / "nets" / "__init__.py").write_text("from .small import make_net\n")
    (folder / "nets" / "small.py").write_text(NET)
    assert isinstance(make(file="nets"), nn.Module) and isinstance(make(file="nets.small"), nn.Module)


def test_a_file_in_another_folder(folder, monkeypatch):
    (folder / "deeper").mkdir()
    monkeypatch.chdir(folder / "deeper")
    assert isinstance(make(file="../net.py"), nn.Module)


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("missing.py", "make_net", "missing.py: no such file"),
        (".", "make_net", r"\.: neither a Python file"),
        ("./deeper", "make_net", "deeper: neither a Python file"),
        ("helped.py", "make_net", r"helped.py: .*syntax.py: line 2: SyntaxError: invalid syntax"),
        ("net.txt", "make_net", "net.txt: not a Python file"),
        ("missing", "make_net", "No module named 'missing'; install missing where"),
        ("not-a-name", "make_net", "neither a Python file"),
        ("net.py", "make", r"net.py: has no make; it defines Size, Net, make_net, needs, nothing and 4 more"),
        ("net.py", "needs", r"net.py:needs: needs the arguments width, height; name a function without any"),
        ("net.py", "nothing", "net.py:nothing: returned nothing, not a torch.nn.Module; return the net"),
        ("net.py", "a_class", "returned the class Net, not"),
        ("net.py", "a_list", "returned a list, not"),
        ("net.py", "number", "net.py:number: is a int, not a function"),
        ("net.py", "fails", r"net.py: line 38: ZeroDivisionError: integer"),
        ("syntax.py", "make_net", r"syntax.py: line 2: SyntaxError: invalid syntax"),
        ("lacks.py", "make_net", r"lacks.py: line 2: No module named 'left_pad'; install left_pad where"),
        ("script.py", "make_net", "script.py: ends the program"),
        ("relative.py", "make_net", "imports from its own package; start in the folder that holds its package"),
        ("empty.py", "make_net", "has no make_net; it defines no function or class"),
    ],
)
def test_modules_that_cannot_be_made(folder, file, name, message):
    files = {
        "net.txt": NET,
        "syntax.py": "import torch\nnet = = 3\n",
        "lacks.py": "import torch\nimport left_pad\n",
        "script.py": "import sys\nsys.exit(3)\n",
        "relative.py": "from .parts import block\n",
        "empty.py": "",
        "helped.py": "import syntax\n",
    }
    (folder / "deeper").mkdir()
    for written, text in files.items():
        (folder / written).write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        make(name, file)
    assert "\n" not in str(raised.value)


def trained():
    """A net whose weights are not those of make_net."""
    net = make("Net")
    with torch.no_grad():
        for value in (*net.parameters(), net.features[1].running_mean):
            value.add_(1)
    return net


def saved(state, kind, path="weights.pt"):
    """Write a state dict in one of the forms that readers have; returns the path."""
    forms = {
        "checkpoint": {"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "compiled": {"state_dict": {f"_orig_mod.model.{name}": value for name, value in state.items()}},
        "half": {name: value.half() for name, value in state.items()},
        "without counter": {name: value for name, value in state.items() if "num_batches" not in name},
    }
    torch.save(forms.get(kind, state), path, _use_new_zipfile_serialization=kind != "old format")
    return path


@pytest.mark.parametrize(
    "kind", ["plain", "old format", "checkpoint", "parallel", "compiled", "half", "without counter", "safetensors"]
)
def test_state_dicts_of_every_form(folder, kind):
    state = trained().state_dict()
    if kind == "safetensors":
        save_file(state, path := "weights.safetensors")
    else:
        path = saved(state, kind)
    loaded = make()
    load_state_dict(loaded, Path(path))
    for name, value in loaded.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-3)


def test_a_wrapped_module_takes_the_weights_of_the_module_in_it(folder):
    state = trained().state_dict()
    loaded = nn.DataParallel(make())
    load_state_dict(loaded, Path(saved(state, "plain")))
    assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())


def test_tied_weights_are_stored_once():
    def tied():
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    net, other = tied(), tied()
    save_model(net, "tied.safetensors")
    load_state_dict(other, Path("tied.safetensors"))
    assert torch.equal(other[1].weight, net[1].weight) and torch.equal(other[1].bias, net[1].bias)


def script(path):
    torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))).save(path)


def edited(change):
    def write(path):
        state = trained().state_dict()
        change(state)
        torch.save(state, path)

    return write


def cut(path):
    path.write_bytes(Path(saved(trained().state_dict(), "")).read_bytes()[:900])


BROKEN = {
    "a whole module": (
        lambda path: torch.save(trained(), path),
        r"pickled objects \(.*Net\), which are not loaded; save",
    ),
    "a namespace": (
        lambda path: torch.save({"model": trained().state_dict(), "args": argparse.Namespace(lr=1)}, path),
        r"pickled objects \(argparse.Namespace\)",
    ),
    "a script": (script, "a saved program, not a state dict; save the state dict alone"),
    "an empty file": (lambda path: path.write_bytes(b""), "damaged or cut short"),
    "text": (lambda path: path.write_text("hello world"), "not a file of torch.save"),
    "half a file": (
        lambda path: path.write_bytes(Path(saved(trained().state_dict(), "")).read_bytes()[:900]),
        "cut short",
    ),
    "a folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "nothing": (lambda path: None, "no such file"),
    "a list": (lambda path: torch.save(list(trained().parameters()), path), "holds a list, not a state dict"),
    "a dict without": (lambda path: torch.save({"epoch": 3, "loss": 0.5}, path), "a dict of epoch, loss, not a state"),
    "an empty dict": (lambda path: torch.save({}, path), "not a state dict"),
    "two state dicts": (
        lambda path: torch.save({"net": trained().state_dict(), "ema": trained().state_dict()}, path),
        r"the state dicts net, ema; save the right one alone: torch.save\(checkpoint\['net'\], ...\)",
    ),
    "other weights": (
        lambda path: torch.save(nn.Conv2d(3, 4, 3).state_dict(), path),
        r"does not fit Net: 8 keys missing \(features.0.weight, .* and 3 more\), "
        r"2 keys that the module does not have \(weight, bias\); make the module",
    ),
    "other classes": (
        edited(lambda state: state.update({"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)})),
        r"does not fit Net: fc.weight is \[10, 4\], in the module \[3, 4\], fc.bias is \[10\]",
    ),
    "whole numbers": (
        edited(lambda state: state.update({"fc.bias": torch.zeros(3, dtype=torch.int8)})),
        "fc.bias is torch.int8, in the module torch.float32",
    ),
    "one more": (
        edited(lambda state: state.update(extra=torch.zeros(1))),
        r"does not fit Net: 1 key that the module does not have \(extra\); make",
    ),
    "NaN": (edited(lambda state: state["fc.bias"].fill_(float("nan"))), "fc.bias holds NaN"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_are_refused(folder, kind):
    write, message = BROKEN[kind]
    write(folder / "state.pt")
    with pytest.raises(InputError, match=message) as raised:
        load_state_dict(make(), folder / "state.pt")
    assert "\n" not in str(raised.value) and str(folder / "state.pt") in str(raised.value)


def test_safetensors_of_overfeat_and_broken_ones(folder):
    overfeat.save(overfeat.build("small", 3), folder / "net.safetensors")
    with pytest.raises(InputError, match="a net of overfeat's own; leave --module out"):
        load_state_dict(make(), folder / "net.safetensors")
    (folder / "net.safetensors").write_text("hello world")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_state_dict(make(), folder / "net.safetensors")
