import errno
import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attrain import runs
from attrain.errors import AttrainError, InputError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


class Touches:
    """A pickle of it runs code when it is loaded the careless way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def full_disk(monkeypatch):
    """Every file that is synchronised finds no space on the disk."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


WRITERS = {
    "json": lambda path, value: runs.write_json(path, {"value": value}),
    "jsonl": lambda path, value: runs.write_jsonl(path, [{"value": value}]),
    "append": lambda path, value: runs.append_jsonl(path, {"value": value}),
    "weights": lambda path, value: runs.save_weights(path, {"value": torch.tensor([value])}),
    "checkpoint": lambda path, value: runs.save_checkpoint(path, {"value": torch.tensor(value)}),
}


def test_import_needs_no_torch():
    code = "import sys, attrain.runs, attrain.metrics.statistics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(deadline=None, max_examples=40)
@given(PLAIN)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    runs.write_json(path, value)
    assert runs.read_json(path) == value


def test_json_of_arrays_and_of_what_json_lacks(tmp_path):
    path = tmp_path / "new" / "value.json"
    value = {
        1: [math.nan, -math.inf, 0.5],
        "tensor": torch.tensor([[1.0, math.nan]]),
        "numpy": (np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)),
        "path": Path("a/b"),
    }
    runs.write_json(path, value)
    assert runs.read_json(path) == {
        "1": [None, None, 0.5],
        "tensor": [[1.0, None]],
        "numpy": [0.5, 3, True, [0, 1]],
        "path": "a/b",
    }
    runs.write_json(path, {"row": [1, 2]}, indent=None)
    assert path.read_text() == '{"row": [1, 2]}\n'
    with pytest.raises(TypeError, match="JSON cannot hold a set"):
        runs.write_json(path, {1, 2})
    assert runs.read_json(path) == {"row": [1, 2]}


def test_unreadable_json_is_one_sentence(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(AttrainError, match=r"cannot read .*config.json: it does not exist"):
        runs.read_json(path)
    for content in (b'{"schema": 1, "data": {"na', b"", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="config.json is not readable JSON .* cut short"):
            runs.read_json(path)


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_is_one_sentence_and_loses_nothing(tmp_path, writer, request):
    path = tmp_path / "file"
    WRITERS[writer](path, 1.0)
    before = path.read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(AttrainError, match=r"cannot write .*file: the disk is full: free some"):
        WRITERS[writer](path, 2.0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


class SmallDisk(io.FileIO):
    """A file on a disk that has room for 1,000 bytes."""

    def write(self, content):
        if self.tell() + len(content) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_disk_that_fills_while_torch_writes(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(AttrainError, match="the disk is full"):
        patch.setattr(Path, "open", lambda self, mode: SmallDisk(self, mode))
        runs.save_checkpoint(path, {"weights": torch.zeros(10_000)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.parametrize("writer", WRITERS)
def test_no_permission_is_one_sentence(tmp_path, writer, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AttrainError, match=r"cannot write .*: permission denied: choose a place"):
        WRITERS[writer](tmp_path / "file", 1.0)


def test_file_in_the_place_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(AttrainError, match="is in the way|is a file, not a folder"):
        runs.write_json(tmp_path / "runs" / "config.json", {})
    with pytest.raises(AttrainError, match="is a file, not a folder"):
        runs.RunFolder(tmp_path / "runs" / "first").create()
    with pytest.raises(AttrainError, match="a file of that name is in the way"):
        runs.RunFolder(tmp_path / "runs").create()


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), runs.replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.dictionaries(st.text(), PLAIN), max_size=4), st.integers(0, 200))
def test_cut_lines_are_dropped_and_mended(tmp_path_factory, records, cut):
    path = tmp_path_factory.mktemp("jsonl") / "metrics.jsonl"
    path.touch()
    for record in records:
        runs.append_jsonl(path, record)
    assert runs.read_jsonl(path) == records
    content = path.read_bytes()
    kept = content[: max(0, len(content) - cut)]
    path.write_bytes(kept)
    whole = records[: kept.count(b"\n")]
    assert runs.read_jsonl(path) == whole
    runs.append_jsonl(path, {"epoch": 9})
    assert runs.read_jsonl(path) == [*whole, {"epoch": 9}]


def test_long_lines_are_mended_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    runs.append_jsonl(path, {"epoch": 1})
    with path.open("ab") as file:
        file.write(b'{"torn": "' + b"x" * 10_000)
    assert runs.read_jsonl(path) == [{"epoch": 1}]
    runs.append_jsonl(path, {"epoch": 2, "loss": math.nan})
    assert runs.read_jsonl(path) == [{"epoch": 1}, {"epoch": 2, "loss": None}]


def test_damaged_line_in_the_middle_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(InputError, match="metrics.jsonl, line 2, is not readable JSON"):
        runs.read_jsonl(path)
    runs.write_jsonl(path, [{"epoch": 1}, {"epoch": 2}])
    assert runs.read_jsonl(path) == [{"epoch": 1}, {"epoch": 2}]
    with pytest.raises(AttrainError, match="cannot read .* it does not exist"):
        runs.read_jsonl(tmp_path / "none.jsonl")


def test_run_folder_paths(tmp_path):
    folder = runs.RunFolder(tmp_path / "first")
    seed = folder.seed("sgd", 2)
    found = [
        folder.config,
        folder.results,
        folder.samples,
        folder.boundary,
        folder.report,
        seed.metrics,
        seed.analysis,
        seed.weights,
        seed.checkpoint,
    ]
    assert [str(path.relative_to(folder.path)) for path in found] == [
        "config.json",
        "results.json",
        "samples.json",
        "boundary.json",
        "report.html",
        "sgd/seed-2/metrics.jsonl",
        "sgd/seed-2/analysis.json",
        "sgd/seed-2/model.safetensors",
        "sgd/seed-2/checkpoint.pt",
    ]
    assert not folder.path.exists() and "first" in repr(folder)


@pytest.mark.parametrize("left", ["config.json", "results.json", "lfp/seed-0/metrics.jsonl"])
def test_a_folder_with_results_is_refused_and_kept(tmp_path, left):
    folder = runs.RunFolder(tmp_path / "run").create()
    folder.create()  # an empty one is no obstacle
    file = folder.path / left
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("kept")
    with pytest.raises(
        InputError, match="already holds the results of a run: give another --out, or --resume"
    ):
        folder.create()
    assert file.read_text() == "kept"


def test_resume_needs_a_run_and_clears_what_a_kill_left(tmp_path):
    folder = runs.RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds no config.json, so there is no run to resume"):
        folder.resume()
    runs.write_json(folder.config, {})
    checkpoint = folder.seed("sgd", 0).checkpoint
    runs.save_checkpoint(checkpoint, {"epoch": 1})
    left = checkpoint.with_name(".checkpoint.pt.123.tmp")
    left.write_bytes(b"half")
    assert folder.resume() is folder
    assert os.listdir(checkpoint.parent) == ["checkpoint.pt"]


def test_environment_is_the_head_of_the_configuration(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/attrain", "compare", "--out", "two words"])
    found = runs.environment()
    assert found["schema"] == 1
    assert found["command"] == "attrain compare --out 'two words'"
    assert found["started"].endswith("+00:00")
    assert list(found["versions"]) == ["attrain", "torch", "numpy", "python", "platform"]
    assert found["versions"]["numpy"] == np.__version__
    monkeypatch.setattr(runs.metadata, "version", _absent)
    assert runs.versions()["torch"] == "not installed"
    json.dumps(found)


def _absent(name):
    raise runs.metadata.PackageNotFoundError(name)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("view", torch.arange(6.0).view(2, 3).t())


def test_weights_come_back_with_tied_and_transposed_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    model, other = Tied(), Tied()
    other.view.zero_()
    runs.save_weights(path, model.state_dict())
    runs.load_weights(path, other)
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    assert other.out.weight is other.embedding.weight
    assert torch.equal(other.view, model.view)


def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    runs.save_weights(path, nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)]).state_dict())
    model = nn.ModuleDict({"0": nn.Linear(3, 2), "fc": nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        runs.load_weights(path, model)
    text = str(caught.value)
    assert "holds the weights of another model" in text
    assert "missing: fc.weight, fc.bias;" in text
    assert "unexpected: 1.bias, 1.weight, 2.bias and 1 more" in text
    assert "of another shape: 0.weight ([2, 2] in the file, [2, 3] in the model)" in text
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_must_be_tensors(tmp_path):
    with pytest.raises(InputError, match="state dict entry '_extra_state' is a dict"):
        runs.save_weights(tmp_path / "model.safetensors", {"_extra_state": {}})


@pytest.mark.parametrize("size", [0, 7, 100, -4])
def test_truncated_weights_are_one_sentence(tmp_path, size):
    path = tmp_path / "model.safetensors"
    runs.save_weights(path, nn.Linear(20, 20).state_dict())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="is not a readable safetensors file .* cut short"):
        runs.load_weights(path, nn.Linear(20, 20))
    path.unlink()
    with pytest.raises(AttrainError, match="cannot read .* it does not exist"):
        runs.load_weights(path, nn.Linear(20, 20))


def test_checkpoint_comes_back(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "epoch": 3,
        "best": None,
    }
    runs.save_checkpoint(path, state)
    found = runs.load_checkpoint(path)
    assert found["epoch"] == 3 and torch.equal(found["random"], state["random"])
    assert torch.equal(found["model"]["weight"], model.weight)
    optimizer.load_state_dict(found["optimizer"])


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_checkpoint_that_would_run_code_is_refused(tmp_path, form):
    path, made = tmp_path / "checkpoint.pt", tmp_path / "made"
    if form == "torch":
        torch.save({"model": Touches(made)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Touches(made)}))
    with pytest.raises(
        InputError, match="could run code, or none at all: it was not loaded, and nothing"
    ):
        runs.load_checkpoint(path)
    assert not made.exists()


@pytest.mark.parametrize("size", [0, 10, 200, 1000, -10])
def test_truncated_checkpoint_is_one_sentence(tmp_path, size):
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="is not a readable checkpoint .* cut short") as caught:
        runs.load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(AttrainError, match="cannot read .* it does not exist"):
        runs.load_checkpoint(path)
    path.write_text("hello world")
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        runs.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds a list, not a checkpoint of attrain"):
        runs.load_checkpoint(path)
