"""Weights files without zeros: the same bits come back, and the file is as small as it says."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_runs import small_model
from torch import nn

from attrain import pruning, sparse
from attrain.errors import AttrainError, InputError
from attrain.runs import save_weights

KINDS = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def same_bits(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    kind = KINDS.get(one.dtype, torch.int16)
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def pruned_state(amount=0.95):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 40)
    )
    return pruning.prune(model, amount).state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_same_bits_come_back(tmp_path, dtype):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in pruned_state().items()
    }
    size = sparse.save_sparse(tmp_path / "w.safetensors", state)
    found = sparse.load_sparse(tmp_path / "w.safetensors")
    assert found.keys() == state.keys()
    assert all(same_bits(found[name], value) for name, value in state.items())
    assert size.file == (tmp_path / "w.safetensors").stat().st_size
    assert size.dense == sum(v.numel() * v.element_size() for v in state.values())
    assert size.ratio == size.dense / size.file


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.5, -3.0, float("inf"), float("nan"), 1e-45]),
        min_size=0,
        max_size=600,
    ),
    st.integers(1, 9),
)
def test_any_values_come_back(tmp_path_factory, values, rows):
    width = len(values) // rows
    weight = torch.tensor(values[: rows * width]).view(rows, width)
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    sparse.save_sparse(path, {"w": weight, "b": torch.zeros(3)})
    found = sparse.load_sparse(path)
    assert same_bits(found["w"], weight) and same_bits(found["b"], torch.zeros(3))


def test_wide_matrices_need_wider_columns(tmp_path):
    for width, kind in ((256, torch.uint8), (257, torch.int16), (40_000, torch.int32)):
        weight = torch.zeros(2, width)
        weight[1, width - 1] = 2.0
        sparse.save_sparse(tmp_path / "w.safetensors", {"w": weight})
        stored = load_file(tmp_path / "w.safetensors")
        assert stored["w.columns"].dtype == kind and stored["w.columns"].tolist() == [width - 1]
        assert stored["w.rows"].tolist() == [0, 0, 1] and stored["w.values"].tolist() == [2.0]
        assert torch.equal(sparse.load_sparse(tmp_path / "w.safetensors")["w"], weight)


def test_what_would_not_shrink_is_written_whole(tmp_path):
    state = small_model().state_dict()
    size = sparse.save_sparse(tmp_path / "w.safetensors", state)
    assert load_file(tmp_path / "w.safetensors").keys() == state.keys()
    assert size.file < size.dense + 2000


def test_the_file_shrinks_with_the_share_of_zeros(tmp_path):
    sizes = []
    for amount in (0.5, 0.9, 0.98):
        path = tmp_path / f"{amount}.safetensors"
        sizes.append(sparse.save_sparse(path, {"w": pruned_state(amount)["4.weight"]}).ratio)
    assert sizes[0] > 1.4 and sizes[1] > 6 and sizes[2] > 20 and sizes == sorted(sizes)


def test_csr_layout_multiplies_as_the_dense_one(tmp_path):
    state = pruned_state()
    sparse.save_sparse(tmp_path / "w.safetensors", state)
    found = sparse.load_sparse(tmp_path / "w.safetensors", layout="csr")
    assert found["4.weight"].layout == torch.sparse_csr
    assert found["0.weight"].layout == torch.strided
    x = torch.randn(128, 3)
    torch.testing.assert_close(found["4.weight"] @ x, state["4.weight"] @ x)


def test_a_plain_weights_file_is_read_too(tmp_path):
    state = small_model().state_dict()
    save_weights(tmp_path / "plain.safetensors", state)
    assert not sparse.is_sparse(tmp_path / "plain.safetensors")
    found = sparse.load_sparse(tmp_path / "plain.safetensors")
    assert all(same_bits(found[name], value) for name, value in state.items())
    sparse.save_sparse(tmp_path / "w.safetensors", state)
    assert sparse.is_sparse(tmp_path / "w.safetensors")
    assert not sparse.is_sparse(tmp_path / "nowhere") and not sparse.is_sparse(__file__)


def test_tied_tensors_are_written_under_each_name(tmp_path):
    weight = torch.eye(40)
    sparse.save_sparse(tmp_path / "w.safetensors", {"a": weight, "b": weight, "c": weight[0]})
    found = sparse.load_sparse(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], weight) for name in "ab")
    assert torch.equal(found["c"], weight[0])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    sparse.save_sparse(path, {"w": torch.eye(30)})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AttrainError, match="the disk is full"):
        sparse.save_sparse(path, {"w": 2 * torch.eye(30)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"w\.safetensors does not exist: give a file of weights"):
        sparse.load_sparse(path)
    sparse.save_sparse(path, {"w": torch.eye(30)})
    with pytest.raises(InputError, match="unknown layout 'cs'. Did you mean 'csr'"):
        sparse.load_sparse(path, layout="cs")
    whole, parts = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="may have been cut short"):
        sparse.load_sparse(path)
    marks = {"sparse": sparse.FORMAT, "shapes": '{"w": [30, 30]}'}
    save_file({name: value for name, value in parts.items() if "rows" not in name}, path, marks)
    with pytest.raises(InputError, match=r"inconsistent: w cannot be put together \('w.rows'\)"):
        sparse.load_sparse(path)
    save_file(parts | {"w.columns": parts["w.columns"] + 9}, path, marks)
    with pytest.raises(InputError, match="inconsistent: w cannot be put together"):
        sparse.load_sparse(path)
    save_file(parts, path, marks | {"sparse": "csr-9"})
    with pytest.raises(InputError, match="sparse format 'csr-9'; this version of attrain reads"):
        sparse.load_sparse(path)
    with pytest.raises(InputError, match="entry 'n' is a int: a weights file holds tensors only"):
        sparse.save_sparse(path, {"n": 3})
