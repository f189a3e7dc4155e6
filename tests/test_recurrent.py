"""Recurrent rules against their slow twin, torch's own values, Theorem 1 and conservation."""

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import array
from reference_recurrent import CELLS, Direction, credited
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
)
from torch.utils import checkpoint

import attrain
from attrain import audit, rewards
from attrain.errors import CreditError, CreditWarning, InputError
from attrain.rules import gated, recurrent

LENGTHS = (4, 2, 2, 1)
KINDS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")


@pytest.fixture(autouse=True)
def _no_talk_of_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def build(kind: str, inputs: int = 2, hidden: int = 3, layers: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind.startswith("RNN"):
        options["nonlinearity"] = kind.split("_")[1].lower()
    module = getattr(nn, kind.split("_")[0])(inputs, hidden, layers, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return module


def states(module: Any, samples: int) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, samples, module.proj_size or module.hidden_size, dtype=torch.float64)
    c = torch.randn(rows, samples, module.hidden_size, dtype=torch.float64)
    return h.requires_grad_(), c.requires_grad_()


def twins(module: Any, kind: str, epsilon: float, gate: str) -> list[list[Direction]]:
    made = []
    for layer in range(module.num_layers):
        made.append([])
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            end = f"_l{layer}{suffix}"
            own = {
                name.removesuffix(end): array(p)
                for name, p in module.named_parameters()
                if name.endswith(end)
            }
            made[-1].append(CELLS[kind](own, epsilon, gate))
    return made


def assert_feedback(module: Any, layers: list[list[Direction]]) -> None:
    for layer, directions in enumerate(layers):
        for d, direction in enumerate(directions):
            for name, wanted in direction.feedback.items():
                parameter = getattr(module, f"{name}_l{layer}{'_reverse' if d else ''}")
                found = array(parameter.grad)
                error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)
                assert np.linalg.norm(wanted) > 0 and error < 1e-10, (name, layer, d, error)


def close(found: Tensor, wanted: Any) -> None:
    wanted = torch.as_tensor(wanted)
    assert (found - wanted).norm() <= 1e-10 * wanted.norm(), (found - wanted).norm()


SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False},
    {"layers": 2, "bidirectional": True},
    {"layers": 2},
)


@pytest.mark.parametrize(("epsilon", "gate"), [(1e-6, "half"), (0.1, "none"), (0.0, "half")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "LSTM projected"])
@pytest.mark.parametrize("packed", [False, True], ids=["open", "packed"])
def test_every_layer_equals_its_twin(
    kind: str, shape: dict[str, Any], epsilon: float, gate: str, packed: bool
) -> None:
    kind, *projected = kind.split()
    module = build(kind, **shape, **({"proj_size": 2} if projected else {}))
    samples = len(LENGTHS)
    lengths = LENGTHS if packed else (LENGTHS[0],) * samples
    x = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in lengths]
    h, c = states(module, samples)
    hx = (h, c) if kind == "LSTM" else h
    with attrain.LFP(module, epsilon=epsilon, gate=gate):
        out, ends = module(pack_sequence(x) if packed else torch.stack(x, 1), hx)
    flat = out.data if packed else out
    s_out = torch.randn_like(flat)
    ends = ends if kind == "LSTM" else (ends,)
    s_ends = [torch.randn_like(each) for each in ends]
    loss = (flat * s_out).sum()
    for end, s in zip(ends, s_ends, strict=True):
        loss = loss + (end * s).sum()
    loss.backward()

    made = twins(module, kind, epsilon, gate)
    by_sample, n = s_out, array
    if packed:
        by_sample, _ = pad_packed_sequence(out._replace(data=s_out))
    value = pad_packed_sequence(out)[0] if packed else out
    for b, length in enumerate(lengths):
        c_or_none = c if kind == "LSTM" else torch.zeros_like(c)
        s_c = s_ends[1] if kind == "LSTM" else torch.zeros_like(c)
        seen, r_x, r_h, r_c = credited(
            made, n(x[b]), n(h[:, b]), n(c_or_none[:, b]),
            n(by_sample[:length, b]), n(s_ends[0][:, b]), n(s_c[:, b]),
        )  # fmt: skip
        close(value[:length, b], seen)
        close(x[b].grad * x[b], r_x)
        assert h.grad is not None
        if gate == "half" or kind != "LSTM":
            close(h.grad[:, b] * h[:, b], r_h)
        if kind == "LSTM":
            assert c.grad is not None
            close(c.grad[:, b] * c[:, b], r_c)
    if gate == "half" or kind.startswith("RNN"):
        assert_feedback(module, made)
    else:
        _assert_only_candidates_learn(module, made, kind)


def _assert_only_candidates_learn(module: Any, made: list[list[Direction]], kind: str) -> None:
    for layer, directions in enumerate(made):
        for d, direction in enumerate(directions):
            for name, wanted in direction.feedback.items():
                found = getattr(module, f"{name}_l{layer}{'_reverse' if d else ''}").grad
                close(found, wanted)
                if name != "weight_hr":
                    units = module.hidden_size
                    rows = torch.arange(len(found)) // units != 2  # both: the third block
                    assert not found[rows].any() and found[~rows].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_step_of_the_layer(kind: str, bias: bool) -> None:
    module = build(kind, bias=bias)
    options = {"nonlinearity": kind.split("_")[1].lower()} if "_" in kind else {}
    single = getattr(nn, f"{kind.split('_')[0]}Cell")(2, 3, bias=bias, **options).double()
    for parameter, other in zip(single.parameters(), module.parameters(), strict=True):
        parameter.data.copy_(other.data)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    s_out = torch.randn(4, 5, 3, dtype=torch.float64)
    with attrain.LFP(module):
        wanted = module(x)[0]
    (wanted * s_out).sum().backward()
    with attrain.LFP(single):
        state, found = None, []
        for each in x:
            state = single(each, state)
            found.append(state[0] if kind == "LSTM" else state)
        out = torch.stack(found)
    (out * s_out).sum().backward()
    assert torch.allclose(out, wanted, rtol=1e-12)
    for parameter, other in zip(single.parameters(), module.parameters(), strict=True):
        close(parameter.grad, other.grad)
    with attrain.LFP(single):
        state = single(x[0, 0])
    first = state[0] if kind == "LSTM" else state
    assert torch.equal(first, single(x[0, 0])[0] if kind == "LSTM" else single(x[0, 0]))


def variants(kind: str) -> Iterator[dict[str, Any]]:
    for layers, both, batch_first, bias in itertools.product((1, 3), *[(False, True)] * 3):
        for proj_size in (0, 5) if kind == "LSTM" else (0,):
            options = {"proj_size": proj_size} if proj_size else {}
            dropout = 0.4 if layers > 1 else 0.0
            yield options | {"layers": layers, "bidirectional": both, "bias": bias,
                             "batch_first": batch_first, "dropout": dropout}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_torchs_own_to_the_bit_also_with_dropout(kind: str, dtype: Any) -> None:
    for options in variants(kind):
        module = build(kind, 7, 9, **options).to(dtype)
        x = torch.randn(6, 6, 7, dtype=dtype)
        torch.manual_seed(1)
        wanted, ends = module(x)
        for credit in (attrain.LFP(module), attrain.LFP(module, "zero", gate="none")):
            torch.manual_seed(1)
            with credit:
                found, found_ends = module(x)
            assert torch.equal(found, wanted) and found.stride() == wanted.stride(), options
            for a, b in zip(found_ends, ends, strict=True):
                assert torch.equal(a, b), options
            found.square().sum().backward()
            assert all(p.grad.isfinite().all() for p in module.parameters())


def test_values_are_torchs_own_under_autocast() -> None:
    for kind in KINDS:
        module = build(kind, 7, 9, layers=2).float()
        x = torch.randn(5, 6, 7)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = module(x)[0]
            with attrain.LFP(module):
                found = module(x)[0]
        assert torch.equal(found, wanted) and found.dtype == wanted.dtype
        found.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in module.parameters())


def test_single_precision_is_near_double() -> None:
    for kind in KINDS:
        module = build(kind, layers=2, bidirectional=True)
        x = torch.randn(4, 5, 2, dtype=torch.float64)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            other = copy.deepcopy(module).to(dtype)
            for each in (module, other):
                each.zero_grad()
                with attrain.LFP(each):
                    out = each(x.to(each.weight_hh_l0.dtype))[0]
                out.sum().backward()
            for a, b in zip(other.parameters(), module.parameters(), strict=True):
                assert (a.grad - b.grad).norm() <= tolerance * b.grad.norm()


@pytest.mark.parametrize("packed", [False, True], ids=["open", "packed"])
def test_theorem_1_holds_for_a_recurrent_relu(packed: bool) -> None:
    module = build("RNN_RELU", layers=3, bidirectional=True, dropout=0.3)
    x = torch.randn(4, 4, 2, dtype=torch.float64)
    given: Any = pack_padded_sequence(x, torch.tensor([1, 4, 2, 3]), enforce_sorted=False)
    given = given if packed else x
    y = torch.tensor([0, 1, 2, 1])

    def logits() -> Tensor:
        torch.manual_seed(3)
        return module(given)[1][-1]

    nn.functional.cross_entropy(logits(), y).backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    with attrain.LFP(module, rule="zero"):
        out = logits()
    rewards.softmax(out, y).backward()
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(
            parameter.grad, parameter.abs() * gradient, atol=1e-14, rtol=1e-9
        )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 6), both=st.booleans())
def test_without_biases_and_credit_for_gates_reward_is_conserved(
    kind: str, seed: int, steps: int, both: bool
) -> None:
    module = build(kind, bias=False, layers=2, bidirectional=both)
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(steps, 3, 2, dtype=torch.float64, requires_grad=True)
    h, c = states(module, 3)
    with attrain.LFP(module, rule="zero", gate="none"):
        out, ends = module(x, (h, c) if kind == "LSTM" else h)
    s = torch.randn_like(out)
    given = (out * s).sum() + sum(each.sum() for each in (ends if kind == "LSTM" else (ends,)))
    given.backward()
    arrived = (x * x.grad).sum() + sum((v * v.grad).sum() for v in (h, c) if v.grad is not None)
    assert torch.isclose(arrived, given, rtol=1e-8, atol=1e-9)


def test_padding_and_packing_hand_credit_on() -> None:
    """Packing what has credit, running it, and padding again equals running each on its own."""
    lengths = (4, 1, 3)

    def run(alone: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 2), nn.GRU(2, 3, 2, bidirectional=True)]).double()
        x = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
        first, gru = model
        with attrain.LFP(model):
            if alone:
                out = torch.cat([gru(first(each))[0] for each in x])
            else:
                rows = pad_sequence([first(each) for each in x], batch_first=True)
                packed = pack_padded_sequence(rows, lengths, True, enforce_sorted=False)
                padded, _ = pad_packed_sequence(gru(packed)[0], batch_first=True)
                out = torch.cat([padded[i, :n] for i, n in enumerate(lengths)])
        rewards.raise_outputs(out, 1.0).backward()
        return [out, *(p.grad for p in model.parameters())]

    for found, wanted in zip(run(False), run(True), strict=True):
        close(found, wanted)


def test_a_learned_initial_state_gets_feedback() -> None:
    model = build("GRU")
    model.start = nn.Parameter(torch.randn(1, 1, 3, dtype=torch.float64))
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    given = model.start.detach().expand(1, 5, 3).clone().requires_grad_()
    found = []
    for h in (model.start.expand(1, 5, 3), given):
        model.zero_grad()
        with attrain.LFP(model):
            out = model(x, model.start.expand(1, 5, 3) if h is not given else given)[0]
        out.sum().backward()
        found.append([p.grad.clone() for name, p in model.named_parameters() if name != "start"])
        if h is not given:
            feedback = model.start.grad.clone()
    assert given.grad is not None
    close(feedback, given.grad.sum(1, keepdim=True) * model.start.abs().detach())
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"scale": "relative"}, {"scale": "hypentropy", "beta": 0.1}], ids=str
)
def test_scales(kind: str, options: dict[str, Any]) -> None:
    module = build(kind)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    found = []
    for each in ({}, options):
        module.zero_grad()
        with attrain.LFP(module, **each):
            out = module(x)[0]
        out.sum().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for parameter, plain, scaled in zip(module.parameters(), *found, strict=True):
        w = parameter.detach()
        factor = w.abs() / w.abs().mean() if "beta" not in options else (w**2 + 0.01).sqrt()
        close(scaled, plain / w.abs() * factor)


def test_frozen_weights_stay_without_feedback() -> None:
    module = build("LSTM")
    module.weight_ih_l0.requires_grad_(False)
    module.bias_hh_l0.requires_grad_(False)
    whole = build("LSTM")
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    for each in (module, whole):
        with attrain.LFP(each):
            out = each(x)[0]
        out.sum().backward()
    assert module.weight_ih_l0.grad is None and module.bias_hh_l0.grad is None
    close(module.weight_hh_l0.grad, whole.weight_hh_l0.grad)
    close(module.bias_ih_l0.grad, whole.bias_ih_l0.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_a_batch(kind: str) -> None:
    module = build(kind, layers=2, bidirectional=True)
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    h, c = states(module, 1)
    found = []
    for drop in (lambda each: each, lambda each: each.squeeze(1)):
        module.zero_grad()
        with attrain.LFP(module):
            hx = (drop(h.detach()), drop(c.detach())) if kind == "LSTM" else drop(h.detach())
            out, ends = module(drop(x), hx)
            assert torch.equal(out, module(drop(x), hx)[0])
        last = ends[-1] if kind == "LSTM" else ends
        (out.sum() + last.sum()).backward()
        found.append([out.flatten(), *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        close(a, b)


def test_only_the_last_memory_may_be_used() -> None:
    module = build("LSTM", layers=2)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    with attrain.LFP(module):
        _, (_, c) = module(x)
    rewards.softmax(c[-1], torch.tensor([0, 1, 2, 0, 1])).backward()
    assert all(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(kind: str, reentrant: bool) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), build(kind), nn.Linear(3, 3)]).double()
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    found = []
    for wrapped in (False, True):
        model.zero_grad()
        with attrain.LFP(model):
            h = model[0](x)

            def last(h: Tensor) -> Tensor:
                return model[1](h)[0]

            h = checkpoint.checkpoint(last, h, use_reentrant=reentrant) if wrapped else last(h)
            out = model[2](h)
        rewards.raise_outputs(out, 1.0).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_where_layers_in_one_call_may_have_other_bits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that CUDA takes: the values of one call for all layers, the same credit."""
    module = build(kind, layers=3, bidirectional=True)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    found = []
    for as_one in (False, True):
        monkeypatch.setattr(recurrent, "_runs_as_one", lambda x, as_one=as_one: as_one)
        module.zero_grad()
        with attrain.LFP(module):
            out, ends = module(x)
        (out.sum() + ends[0].sum()).backward()
        found.append([out, *ends, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused() -> None:
    module = build("GRU")
    x = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    with attrain.LFP(module):
        out = module(x)[0]
    with pytest.raises(CreditError, match="create_graph=True, and it has no derivative"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


def test_an_empty_batch() -> None:
    for kind in KINDS:
        module = build(kind)
        with attrain.LFP(module):
            out = module(torch.zeros(3, 0, 2, dtype=torch.float64))[0]
        out.sum().backward()
        assert out.shape == (3, 0, 3) and not module.weight_hh_l0.grad.any()


# Cells that are written by hand.


class HandWritten(nn.Module):
    """An LSTM out of its parts; `let(value, z)` is the product with a gate."""

    def __init__(self, module: nn.LSTM, let: Any) -> None:
        super().__init__()
        self.module, self.let = module, let

    def forward(self, x: Tensor) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = self.module.all_weights[0]
        h = c = x.new_zeros(x.shape[1], self.module.hidden_size)
        out = []
        for each in x:
            z = nn.functional.linear(each, w_ih, b_ih) + nn.functional.linear(h, w_hh, b_hh)
            i, f, g, o = z.chunk(4, -1)
            c = self.let(c, f) + self.let(torch.tanh(g), i)
            h = self.let(torch.tanh(c), o)
            out.append(h)
        return torch.stack(out)


def feedback(model: nn.Module, x: Tensor, s: Tensor, **options: Any) -> list[Tensor]:
    model.zero_grad()
    with attrain.LFP(model, **options):
        out = model(x)
    out = out[0] if isinstance(out, tuple) else out
    (out * s).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("gate", ["half", "none"])
def test_a_cell_written_with_gated_has_the_credit_of_the_layer(gate: str) -> None:
    module = build("LSTM")
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    s = torch.randn(4, 5, 3, dtype=torch.float64)
    wanted = feedback(module, x, s, rule="zero", gate=gate)
    for a, b in zip(feedback(HandWritten(module, gated), x, s, rule="zero", gate=gate), wanted,
                    strict=True):  # fmt: skip
        close(a, b)
    # With an epsilon the sum of two maps is stabilised once more than one map.
    wanted = feedback(module, x, s, gate=gate)
    for a, b in zip(feedback(HandWritten(module, gated), x, s, gate=gate), wanted, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()


def test_a_cell_written_with_a_plain_sigmoid_differs_in_the_gates_alone_and_warns() -> None:
    module = build("LSTM")
    x = torch.randn(1, 5, 2, dtype=torch.float64)
    s = torch.randn(1, 5, 3, dtype=torch.float64)
    wanted = feedback(module, x, s, rule="zero")
    by_hand = HandWritten(module, lambda value, z: value * torch.sigmoid(z))
    with pytest.warns(CreditWarning, match="torch.sigmoid .* attrain.rules.gated for a gate"):
        found = feedback(by_hand, x, s, rule="zero")
    candidate = slice(6, 9)
    close(found[0][candidate], wanted[0][candidate])
    assert (found[0] - wanted[0]).norm() > 0.1 * wanted[0].norm()


def test_gated_where_one_factor_carries_credit() -> None:
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    for function, plain in (
        (lambda z: gated(z, x), lambda z: z * torch.sigmoid(x)),
        (lambda z: gated(x, z), lambda z: x * torch.sigmoid(z)),
    ):
        layer.zero_grad()
        plain(layer(x)).sum().backward()
        wanted = [p.grad * p.abs() for p in layer.parameters()]
        layer.zero_grad()
        with attrain.LFP(layer, rule="zero"):
            out = function(layer(x))
        assert torch.equal(out, plain(layer(x)))
        out.sum().backward()
        for parameter, each in zip(layer.parameters(), wanted, strict=True):
            close(parameter.grad, each)
    assert torch.equal(gated(x, x), x * torch.sigmoid(x))


# What is asked wrongly.


def packed_like(rows: int, sizes: list[int]) -> PackedSequence:
    return PackedSequence(torch.randn(rows, 2, dtype=torch.float64), torch.tensor(sizes))


@pytest.mark.parametrize(
    ("sequence", "text"),
    [
        (packed_like(6, [2, 3, 1]), r"batch sizes \(2, 3, 1\), which must be above 0 and may not"),
        (packed_like(4, [2, 2, 0]), "must be above 0"),
        (packed_like(7, [3, 2, 1]), r"7 rows and the states 3 samples.* add up to 6 rows of 3"),
    ],
    ids=["growing", "zero", "short"],
)
def test_packed_sequences_that_are_none(sequence: PackedSequence, text: str) -> None:
    for kind in KINDS:
        module = build(kind)
        name = kind.split("_")[0].lower()
        with pytest.raises(CreditError, match=rf"torch\.{name}.*test_recurrent.*{text}"):
            with attrain.LFP(module):
                module(sequence)


def test_wrong_weights_are_refused() -> None:
    x, h = torch.randn(3, 4, 2), torch.zeros(1, 4, 3)
    weights = [nn.Parameter(torch.randn(9, 2)), nn.Parameter(torch.randn(9, 3))]
    with attrain.LFP(weights):
        out, _ = torch.gru(x, h, weights, False, 1, 0.0, True, False, False)
        assert out.shape == (3, 4, 3)
        with pytest.raises(CreditError, match="given 2 weights, and 1 layers in 1 dir.*have 4"):
            torch.gru(x, h, weights, True, 1, 0.0, True, False, False)
        other = torch.randn(9, 2, requires_grad=True)
        with pytest.raises(CreditError, match=r"weight of shape \(9, 2\) is no parameter"):
            torch.gru(x, h, [other, weights[1]], False, 1, 0.0, True, False, False)
        z = (x @ weights[0].t()).to(torch.complex64)
        with pytest.raises(CreditError, match="is complex, and the rules need signs"):
            torch.gru(z, h, weights, False, 1, 0.0, True, False, False)


def test_an_unknown_share_of_gates_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown gate 'hlaf'. Did you mean 'half'\? Known: half"):
        attrain.LFP(build("GRU"), gate="hlaf")  # type: ignore[arg-type]


def test_the_share_of_gates_is_kept() -> None:
    credit = copy.deepcopy(attrain.LFP(build("GRU"), gate="none"))
    assert credit.gate == "none" and "gate='none'" in repr(credit)


def test_every_parameter_is_scaled_once() -> None:
    module = build("LSTM", layers=2, bidirectional=True, proj_size=2)
    with attrain.LFP(module):
        out, _ = module(torch.randn(4, 5, 2, dtype=torch.float64))
    audit.check(out)


# Learning.


class Classifier(nn.Module):
    """Reads an image row by row and decides at the last."""

    def __init__(self, kind: str, units: int = 48) -> None:
        super().__init__()
        self.rows = getattr(nn, kind)(8, units, batch_first=True)
        self.out = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rows(x)[0][:, -1])
        return out


def accuracy_of(kind: str, method: str, lr: float, seed: int, epochs: int = 12) -> float:
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    torch.manual_seed(seed)
    train, test = torch.randperm(len(x)).split((1438, 359))
    model = Classifier(kind)
    credit = attrain.LFP(model, scale="relative")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    steps = epochs * math.ceil(len(train) / 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            if method == "lfp":
                with credit:
                    out = model(x[batch])
                rewards.softmax(out, y[batch]).backward()
            else:
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (model(x[test]).argmax(1) == y[test]).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_digits_are_learned_row_by_row(kind: str) -> None:
    assert accuracy_of(kind, "lfp", 0.6, seed=0) > 0.9
