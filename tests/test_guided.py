"""Saliency guided training: against its slow twin, for every form and kind of data."""

import copy
import re
import warnings
from pathlib import Path

import guided_worker
import pytest
import reference_guided as slow
import small_models
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import attrain
from attrain.errors import CreditWarning, InputError
from attrain.guided import FORMS, ORDERS, masks
from attrain.methods import BatchLoss, find

CLASSES = 4


class Reader(nn.Module):
    """Classifies tokens [N, L] by the mean of what a network makes of each word."""

    def __init__(self, padding: int | None = 0, frozen: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 6, padding_idx=padding)
        self.words.weight.requires_grad_(not frozen)
        self.hidden = nn.Linear(6, 8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.from_vectors(self.words(tokens), weights)

    def from_vectors(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        z = torch.tanh(self.hidden(vectors))
        return self.out(z.mean(1) if weights is None else (z * weights[..., None]).sum(1))


def network(shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size = torch.Size(shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 12), nn.Tanh(), nn.Linear(12, CLASSES)
    ).double()


def batch(shape: tuple[int, ...], samples: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def texts(samples: int = 6) -> tuple[Tensor, Tensor]:
    """Return texts of several lengths, padded on either side."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(1, 30, (samples, 9), generator=generator)
    for n in range(samples):
        if n % 3 == 1:
            x[n, n + 1 :] = 0
        elif n % 3 == 2:
            x[n, :n] = 0
    return x, torch.arange(samples) % CLASSES


def blank(x: Tensor, drop: Tensor) -> Tensor:
    """Replace masked pixels by 0, without random numbers."""
    return x.masked_fill(drop.unsqueeze(1) if drop.ndim < x.ndim else drop, 0.0)


def convolutional(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), *more, nn.ReLU(), nn.Flatten(), nn.Linear(100, CLASSES)
    )


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters()}


# Against the twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["signed", "absolute"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("data", "shape", "fraction"),
    [
        ("image", (1, 4, 5), 0.5),
        ("image", (3, 3, 3), 0.3),
        ("image", (11,), 0.7),
        ("series", (5, 4), 0.6),
    ],
)
def test_loss_masks_and_gradients_equal_the_slow_twin(data, shape, fraction, form, order):
    model, (x, y) = network(shape), batch(shape)
    guided = attrain.SaliencyGuided(
        model, F.cross_entropy, fraction, 0.7, data=data, order=order, form=form,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    step = guided.step(x, y)
    step.loss.backward()
    found = grads(model)

    model.zero_grad()
    ascent = slow.gradients(model, x, y, log=form == "fast")
    places = shape[1:] if data == "image" and len(shape) > 1 else shape
    k = slow.count(fraction, torch.Size(places).numel())
    drop = torch.tensor(
        [slow.lowest(slow.scores_of(each, data, order), k) for each in ascent]
    ).view(len(x), *places)
    replace = slow.masked_series if data == "series" else slow.masked_image
    masked = replace(x, drop, torch.Generator().manual_seed(5))
    clean, other = model(x), model(masked)
    apart = slow.divergence(clean.detach() if form == "fast" else clean, other)
    loss = slow.cross_entropy(clean, y) + 0.7 * apart
    loss.backward()

    assert torch.equal(step.drop, drop)
    torch.testing.assert_close(step.masked, masked)
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(step.divergence, apart.detach())
    torch.testing.assert_close(step.outputs, clean, check_stride=False)
    torch.testing.assert_close(step.masked_outputs, other)
    for name, value in grads(model).items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ["signed", "absolute"])
@pytest.mark.parametrize("form", FORMS)
def test_texts_equal_the_slow_twin(form, order, frozen):
    torch.manual_seed(0)
    model, (x, y) = Reader(frozen=frozen).double(), texts()
    guided = attrain.SaliencyGuided(
        model, F.cross_entropy, 0.6, form=form, order=order, embedding="words"
    )
    step = guided.step(x, y)
    step.loss.backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    model.zero_grad()

    drops, masked = [], []
    for n, words in enumerate(x.tolist()):
        vectors = model.words(x[n : n + 1]).detach().requires_grad_()
        out = model.from_vectors(vectors)[0]
        own = out[y[n]] - torch.logsumexp(out, 0) if form == "fast" else out[y[n]]
        scores = slow.scores_of(torch.autograd.grad(own, vectors)[0][0], "text", order)
        real = [place for place, word in enumerate(words) if word != 0]
        low = slow.lowest([scores[place] for place in real], slow.count(0.6, len(real)))
        gone = {place for place, each in zip(real, low, strict=True) if each}
        drops.append([place in gone for place in range(len(words))])
        masked.append(slow.masked_text(words, drops[-1], 0))
    clean, other = model(x), model(torch.tensor(masked))
    loss = slow.cross_entropy(clean, y)
    loss = loss + slow.divergence(clean.detach() if form == "fast" else clean, other)
    loss.backward()
    assert step.drop.tolist() == drops and step.masked.tolist() == masked
    torch.testing.assert_close(step.loss, loss)
    for name, value in found.items():
        torch.testing.assert_close(value, model.get_parameter(name).grad)


def test_a_worked_example_by_hand():
    model = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1.0, 0.5, -2.0], [0.0, 0.0, 0.0, 0.0]]))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    guided = attrain.SaliencyGuided(model, F.cross_entropy, mask=blank)
    # The gradient of output 0 is its row of weights: -2 and -1 are the lowest of four.
    assert guided.step(x, torch.tensor([0])).masked.tolist() == [[1.0, 0.0, 3.0, 0.0]]
    guided = attrain.SaliencyGuided(model, F.cross_entropy, order="absolute", mask=blank)
    assert guided.step(x, torch.tensor([0])).masked.tolist() == [[1.0, 0.0, 0.0, 4.0]]


def test_the_predicted_class_can_take_the_place_of_the_label():
    model, (x, y) = network((6,)), batch((6,), 8)
    predicted = model(x).argmax(1)
    assert not torch.equal(predicted, y)
    for form in ("exact", "shared"):
        guided = attrain.SaliencyGuided(
            model, F.cross_entropy, form=form, target="predicted", mask=blank
        )
        other = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank)
        assert torch.equal(guided.step(x, y).drop, other.step(x, predicted).drop)
        assert not torch.equal(guided.step(x, y).drop, other.step(x, y).drop)


def test_soft_labels_go_with_the_predicted_class():
    model, (x, y) = network((6,)), batch((6,))
    soft = F.one_hot(y, CLASSES).double()
    hard = attrain.SaliencyGuided(model, F.cross_entropy, target="predicted", mask=blank)(x, y)
    assert hard == attrain.SaliencyGuided(model, F.cross_entropy, target="predicted", mask=blank)(
        x, soft
    )


# Properties ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_lowest_is_a_stable_sort_and_does_not_know_the_rest_of_the_batch(data):
    n, size = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 12))
    k = data.draw(st.integers(1, size - 1))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=n * size, max_size=n * size))
    scores = torch.tensor(values, dtype=torch.float32).view(n, size)
    found = masks.lowest(scores, k)
    assert found.tolist() == [slow.lowest(row, k) for row in scores.tolist()]
    assert torch.equal(masks.lowest(scores, torch.full((n,), k)), found)
    for row in range(n):
        assert torch.equal(masks.lowest(scores[row : row + 1], k)[0], found[row])


def test_scores_that_are_no_numbers_come_last():
    scores = torch.tensor([[float("nan"), 1.0, float("inf"), -float("inf"), 0.0]])
    assert masks.lowest(scores, 3).tolist() == [[False, True, False, True, True]]
    real = torch.tensor([[True, True, False, False, True]])
    found = masks.lowest(torch.full((1, 5), float("nan")), torch.tensor([3]), real)
    assert torch.equal(found, real)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_padding_is_never_dropped_and_every_text_loses_k_words(data):
    n, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    flags = st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
    real = torch.tensor([data.draw(flags) for _ in range(n)])
    fraction = data.draw(st.floats(0.01, 0.99))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    x = torch.where(real, torch.randint(1, 50, real.shape), 0)
    k = masks.counts(fraction, real)
    drop = masks.lowest(torch.randn(real.shape), k, real)
    assert not (drop & ~real).any()
    assert drop.sum(1).tolist() == [slow.count(fraction, int(row.sum())) for row in real]
    out = masks.text(x, drop, real)
    expected = [
        slow.masked_text(words, gone, 0)
        for words, gone in zip(x.tolist(), drop.tolist(), strict=True)
    ]
    assert out.tolist() == expected
    assert torch.equal(out[~drop], x[~drop])


@pytest.mark.parametrize("fraction", [0.01, 0.29, 0.3, 0.5, 0.57, 0.7, 0.999])
def test_k_is_the_fraction_rounded_down_and_one_feature_stays(fraction):
    for features in (1, 2, 10, 100, 784):
        k = masks.count(fraction, features)
        assert k == slow.count(fraction, features) < features
        real = torch.ones(1, features, dtype=torch.bool)
        assert masks.counts(fraction, real).tolist() == [k]
    assert masks.count(0.29, 100) == 29


def test_random_numbers_lie_between_the_extremes_of_sample_or_feature():
    x = torch.stack(
        [torch.linspace(-1, 1, 24).view(2, 3, 4), torch.linspace(5, 9, 24).view(2, 3, 4)]
    )
    drop = torch.ones(2, 3, 4, dtype=torch.bool)
    out = masks.image(x, drop)
    assert (out[0].abs() <= 1).all() and (out[1] >= 5).all() and (out[1] <= 9).all()
    assert (out[:, 0] != out[:, 1]).all()
    x = torch.stack([torch.rand(6), 10 + torch.rand(6)], 1)[None]
    out = masks.series(x, torch.ones_like(x, dtype=torch.bool))
    assert (out[..., 0] <= 1).all() and (out[..., 1] >= 10).all()


def test_masks_do_not_depend_on_the_rest_of_the_batch():
    model, (x, y) = convolutional(nn.BatchNorm2d(4), nn.Dropout(0.3)), batch((2, 5, 5), 6)
    x = x.float()
    guided = attrain.SaliencyGuided(model, F.cross_entropy, mask=blank)
    model(x)  # statistics that are not those of a start
    whole = copy.deepcopy(model)
    guided = attrain.SaliencyGuided(whole, F.cross_entropy, mask=blank)
    drop = guided.step(x, y).drop
    for n in range(0, 6, 2):
        part = attrain.SaliencyGuided(copy.deepcopy(model), F.cross_entropy, mask=blank)
        assert torch.equal(part.step(x[n : n + 2], y[n : n + 2]).drop, drop[n : n + 2])


@pytest.mark.parametrize("form", FORMS)
def test_accumulated_parts_equal_the_whole_batch(form):
    model, (x, y) = network((3, 3, 3)), batch((3, 3, 3), 8)
    found = []
    for parts in (1, 4):
        model.zero_grad()
        guided = attrain.SaliencyGuided(
            model, F.cross_entropy, form=form, generator=torch.Generator().manual_seed(0)
        )
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (guided(x_part, y_part) / parts).backward()
        found.append(grads(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


# The model stays as it is -------------------------------------------------------------------------


def hooks(model: nn.Module) -> list[int]:
    return [
        len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks)
        for each in model.modules()
    ]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_untouched_until_backward(form, order):
    torch.manual_seed(0)
    model, (x, y) = Reader(), texts()
    model.hidden.eval()
    modes = [each.training for each in model.modules()]
    before = copy.deepcopy(model.state_dict())
    guided = attrain.SaliencyGuided(
        model, F.cross_entropy, form=form, order=order, embedding=model.words
    )
    loss = guided(x, y)
    assert all(each.grad is None for each in model.parameters())
    assert [each.training for each in model.modules()] == modes
    assert not any(hooks(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    loss.backward()
    assert all(each.grad is not None for each in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_input_is_untouched(form):
    model, (x, y) = network((6,)), batch((6,))
    before = x.clone()
    attrain.SaliencyGuided(model, F.cross_entropy, form=form)(x, y).backward()
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_untouched_after_an_error(form):
    model, (x, y) = Reader().train(), texts()

    def failing(out: Tensor, y: Tensor) -> Tensor:
        raise KeyError("no")

    with pytest.raises(KeyError):
        attrain.SaliencyGuided(model, failing, form=form, embedding="words")(x, y)
    with pytest.raises(IndexError):
        attrain.SaliencyGuided(model, F.cross_entropy, form=form, embedding="words")(x + 50, y)
    assert all(each.training for each in model.modules())
    assert not any(hooks(model)) and all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_sees_two_batches_in_turn(form):
    model, (x, y) = convolutional(nn.BatchNorm2d(4)), batch((2, 5, 5))
    x = x.float()
    twin = copy.deepcopy(model)
    step = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank).step(x, y)
    step.loss.backward()
    clean, other = twin(x), twin(step.masked)
    fixed = clean.detach() if form == "fast" else clean
    (F.cross_entropy(clean, y) + slow.divergence(fixed, other)).backward()
    assert int(model[1].num_batches_tracked) == 2
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    for name, value in grads(twin).items():
        torch.testing.assert_close(grads(model)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "order", "passes"),
    [
        ("exact", "signed", 3),
        ("shared", "signed", 2),
        ("fast", "signed", 2),
        ("exact", "random", 2),
    ],
)
def test_a_form_takes_its_number_of_passes(form, order, passes):
    model, (x, y) = network((6,)), batch((6,))
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    attrain.SaliencyGuided(model, F.cross_entropy, form=form, order=order)(x, y)
    assert seen == [False] * (passes - 2) + [True, True]


def test_random_masks_have_k_features_and_come_from_the_generator():
    model, (x, y) = network((3, 4, 4)), batch((3, 4, 4))
    found = [
        attrain.SaliencyGuided(
            model, F.cross_entropy, 0.25, order="random",
            generator=torch.Generator().manual_seed(seed),
        ).step(x, y)
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert found[0].drop.flatten(1).sum(1).tolist() == [4] * len(x)
    assert torch.equal(found[0].masked, found[1].masked)
    assert not torch.equal(found[0].drop, found[2].drop)


# Composition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_lfp_at_epsilon_zero_is_the_weight_times_the_gradient(form, outer):
    """Theorem 1 of the LFP paper, for the loss and for the agreement."""
    model, (x, y) = convolutional().double(), batch((2, 5, 5), 6)
    step = attrain.SaliencyGuided(model, F.cross_entropy, 0.5, 2.0, form=form, mask=blank).step(
        x, y
    )
    step.loss.backward()
    expected = {name: each.abs() * each.grad for name, each in model.named_parameters()}
    model.zero_grad()
    credit = attrain.LFP(model, epsilon=0.0)
    guided = attrain.SaliencyGuided(
        model, attrain.rewards.softmax, 0.5, 2.0, form=form, mask=blank,
        credit=None if outer else credit,
    )  # fmt: skip
    if outer:
        with credit:
            credited = guided.step(x, y)
    else:
        credited = guided.step(x, y)
    credited.loss.backward()
    assert torch.equal(credited.drop, step.drop)
    torch.testing.assert_close(credited.divergence, step.divergence)
    for name, value in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, value.detach())


def test_the_stabiliser_that_outputs_owe_is_in_the_credit_of_the_agreement():
    model, (x, y) = network((6,)), batch((6,))
    found = []
    for epsilon in (0.0, 0.5):
        model.zero_grad()
        credit = attrain.LFP(model[3], epsilon=epsilon)
        hidden = model[:3](x).detach()
        guided = attrain.SaliencyGuided(
            model[3], attrain.rewards.softmax, 0.5, 1e6, form="exact", mask=blank, credit=credit
        )
        step = guided.step(hidden, y)
        step.loss.backward()
        found.append(model[3].bias.grad / model[3].bias.abs())
    p, q = (out.detach().requires_grad_() for out in (step.outputs, step.masked_outputs))
    slow.divergence(p, q).backward()
    expected = sum((out.grad * out.abs() / (out.abs() + 0.5)).sum(0).detach() for out in (p, q))
    torch.testing.assert_close(found[1] / 1e6, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_may_be_added_to_inside_the_context():
    model, (x, y) = convolutional(), batch((2, 5, 5))
    credit = attrain.LFP(model)
    for form in FORMS:
        with credit:
            loss = attrain.SaliencyGuided(model, attrain.rewards.softmax, form=form)(x.float(), y)
            total = 0.5 * loss + 1.0
        total.backward()


@pytest.mark.parametrize("form", FORMS)
def test_texts_learn_by_credit(form):
    torch.manual_seed(0)
    model, (x, y) = Reader(padding=None), texts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CreditWarning)
        credit = attrain.LFP(model, scale="relative")
        guided = attrain.SaliencyGuided(
            model, attrain.rewards.softmax, form=form, embedding="words", padding=0, credit=credit
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            step = guided.step(x, y)
            step.loss.backward()
            optimizer.step()
            losses.append(float(F.cross_entropy(step.outputs.detach(), y)))
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("form", FORMS)
def test_mixed_precision_is_close_to_full(form):
    model, (x, y) = convolutional(nn.BatchNorm2d(4)), batch((2, 5, 5), 16)
    x = x.float()
    found = []
    for enabled in (False, True):
        model.zero_grad()
        guided = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = guided(x, y)
        loss.backward()
        found.append((loss.item(), grads(model)["0.weight"]))
        assert loss.dtype == torch.float32
    assert found[1][0] == pytest.approx(found[0][0], rel=0.1)
    assert F.cosine_similarity(*(each[1].flatten() for each in found), dim=0) > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_a_scaled_loss_has_scaled_gradients(form):
    model, (x, y) = network((6,)), batch((6,))
    guided = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank)
    guided(x, y).backward()
    before = grads(model)
    model.zero_grad()
    (1024 * guided(x, y)).backward()
    for name, value in grads(model).items():
        torch.testing.assert_close(value, 1024 * before[name])


@pytest.mark.parametrize("form", FORMS)
def test_an_input_that_is_computed_gets_its_gradient(form):
    model, (x, y) = network((6,)), batch((6,))
    stem = nn.Linear(6, 6).double()
    step = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank).step(stem(x), y)
    step.loss.backward()
    found = stem.weight.grad.clone()
    stem.zero_grad()
    clean, other = model(stem(x)), model(step.masked)
    fixed = clean.detach() if form == "fast" else clean
    (F.cross_entropy(clean, y) + slow.divergence(fixed, other)).backward()
    torch.testing.assert_close(found, stem.weight.grad)


def test_what_a_model_takes_and_returns_besides():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = Reader()

        def forward(self, tokens, *, weights):
            return {"logits": self.reader(tokens, weights)}

    torch.manual_seed(0)
    model, (x, y) = Both(), texts()
    weights = torch.softmax(torch.randn(x.shape), 1)
    guided = attrain.SaliencyGuided(model, F.cross_entropy, embedding="reader.words")
    step = guided.step(x, y, weights=weights)
    torch.testing.assert_close(step.outputs, model.reader(x, weights))
    torch.testing.assert_close(step.masked_outputs, model.reader(step.masked, weights))


@pytest.mark.parametrize("outputs", ["log_probabilities", "probabilities"])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_may_be_probabilities(form, outputs):
    body, (x, y) = network((6,)), batch((6,))
    log = outputs == "log_probabilities"
    model = nn.Sequential(body, nn.LogSoftmax(1) if log else nn.Softmax(1))

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(out if log else out.log(), y)

    guided = attrain.SaliencyGuided(model, loss_fn, form=form, outputs=outputs, mask=blank)
    step = guided.step(x, y)
    step.loss.backward()
    found = grads(body)
    body.zero_grad()
    clean, other = body(x), body(step.masked)
    apart = slow.divergence(clean.detach() if form == "fast" else clean, other)
    (F.cross_entropy(clean, y) + apart).backward()
    torch.testing.assert_close(step.divergence, apart.detach())
    for name, value in grads(body).items():
        torch.testing.assert_close(found[name], value)
    if log:
        as_logits = attrain.SaliencyGuided(model, loss_fn, form=form, mask=blank).step(x, y)
        torch.testing.assert_close(as_logits.loss, step.loss)


@pytest.mark.slow
def test_compiled_models_are_guided_in_the_forms_that_go_back_once():
    model, (x, y) = network((6,)), batch((6,))
    compiled = torch.compile(model, backend="aot_eager")
    for form in ("exact", "fast"):
        attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank)(x, y).backward()
        wanted = grads(model)
        model.zero_grad()
        attrain.SaliencyGuided(compiled, F.cross_entropy, form=form, mask=blank)(x, y).backward()
        for name, value in wanted.items():
            torch.testing.assert_close(grads(model)[name], value)
        model.zero_grad()
    with pytest.raises(InputError, match="what torch.compile made can be gone through once: use"):
        attrain.SaliencyGuided(compiled, F.cross_entropy, form="shared", mask=blank)(x, y)


# Masks that are kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["exact", "shared"])
def test_masks_are_made_anew_every_mth_time_a_sample_is_seen(form):
    model, (x, y) = network((2, 3, 3)), batch((2, 3, 3), 6)
    guided = attrain.SaliencyGuided(model, F.cross_entropy, form=form, refresh=3, mask=blank)
    fresh = attrain.SaliencyGuided(model, F.cross_entropy, form=form, mask=blank)
    history: dict[int, list[Tensor]] = {}
    for visit in range(7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for index in torch.randperm(6).split(2):
            new = fresh.step(x[index], y[index]).drop
            drop = guided.step(x[index], y[index], index=index).drop
            for place, n in enumerate(index.tolist()):
                past = history.setdefault(n, [])
                past.append(new[place] if visit % 3 == 0 else past[-1])
                assert torch.equal(drop[place], past[-1])


def test_only_samples_whose_mask_is_due_take_the_saliency_pass():
    model, (x, y) = Reader(), texts()
    sizes = []
    model.register_forward_hook(
        lambda module, args, _: sizes.append((module.training, len(args[0])))
    )
    guided = attrain.SaliencyGuided(model, F.cross_entropy, refresh=2, embedding="words")
    weights = torch.full(x.shape, 0.1)
    guided(x[:4], y[:4], weights[:4], index=torch.arange(4))
    first = guided.step(x, y, weights, index=torch.arange(6))
    assert [n for training, n in sizes if not training] == [4, 2]
    again = guided.step(x[4:], y[4:], weights[4:], index=torch.tensor([4, 5]))
    assert torch.equal(again.drop, first.drop[4:])
    assert [n for training, n in sizes if not training] == [4, 2]


# What is refused ----------------------------------------------------------------------------------

PICTURES, LABELS = batch((1, 3, 3), 4)


def refused(message: str, call=None, **options) -> None:
    model = options.pop("model", None) or network((1, 3, 3))
    loss_fn = options.pop("loss_fn", F.cross_entropy)
    with pytest.raises(InputError, match=re.escape(message)):
        guided = attrain.SaliencyGuided(model, loss_fn, **options)
        (call or (lambda g: g(PICTURES, LABELS)))(guided)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, "half", float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    refused(
        f"fraction={fraction!r} is the share of features that are masked: it lies between 0 and 1, "
        "both excluded.",
        fraction=fraction,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "abs"}, "unknown order 'abs'. Did you mean 'absolute'? Known: absolute, random"),
        ({"form": "exakt"}, "unknown form 'exakt'. Did you mean 'exact'? Known: exact, fast"),
        ({"target": "labels"}, "unknown target 'labels'. Did you mean 'label'?"),
        ({"data": "images"}, "unknown kind of data 'images'. Did you mean 'image'?"),
        ({"outputs": "logit"}, "unknown kind of outputs 'logit'. Did you mean 'logits'?"),
        ({"weight": -1}, "weight must be a finite number >= 0, got -1."),
        ({"weight": float("inf")}, "weight must be a finite number >= 0, got inf."),
        ({"refresh": 0}, "refresh must be an integer >= 1, got 0"),
        ({"mask": 3}, "mask must be a function (x, drop) -> masked x, got int."),
        ({"mask": lambda x, drop: x.mul_(1)}, "the mask function changed x in place, which the"),
        ({"padding": 0.5}, "padding is the number of a token, an integer, got 0.5."),
        ({"credit": 3}, "credit must be a context of attrain.LFP, got int."),
        ({"generator": 0}, "generator must be a torch.Generator, got int."),
        ({"loss_fn": 3}, "loss_fn must be a function of outputs and y, got int."),
        (
            {"loss_fn": lambda out, y: F.cross_entropy(out.detach(), y)},
            "loss_fn returned a number without a gradient, from which nothing is learned",
        ),
        (
            {"outputs": "probabilities", "model": nn.Sequential(nn.Flatten(), nn.Tanh())},
            "outputs='probabilities', but the smallest is -0.",
        ),
        (
            {"form": "fast", "target": "predicted"},
            "form='fast' ranks by the gradient of the loss, which is of the true label",
        ),
        ({"form": "fast", "refresh": 2}, "so refresh=2 would save nothing"),
        ({"embedding": "0"}, "embedding= is for texts, and x is of the kind 'image': leave it"),
        ({"padding": 0}, "padding= is for texts, and x is of the kind 'image': leave it out."),
        ({"fraction": 0.1}, "fraction=0.1 of 9 features masks none: give at least 0.111"),
        ({"refresh": 2}, "so it must know them: give index=, their numbers >= 0 in the data set"),
        ({"data": "series"}, "data='series' takes floating point numbers [N, T, F], and x is"),
        ({"data": "text", "embedding": "0"}, "data='text' takes tokens [N, L] as integers"),
        (
            {"outputs": "log_probabilities"},
            "outputs='log_probabilities', but the probabilities of a sample sum to",
        ),
        (
            {"loss_fn": lambda out, y: F.cross_entropy(out, y, reduction="none")},
            "loss_fn returned [4], and one number is wanted: use reduction='mean'.",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options, message):
    refused(message, **options)


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="model must be a torch.nn.Module, got function."):
        attrain.SaliencyGuided(lambda x: x, F.cross_entropy)


def test_a_text_model_without_an_embedding_is_refused():
    x, y = texts()
    message = (
        "tokens have no gradient, their vectors do: give embedding=, the layer of the model that "
        "makes vectors of tokens, as a module or its name, such as 'words'."
    )
    refused(message, lambda guided: guided(x, y), model=Reader())
    refused(message, model=Reader(), data="text")
    refused("has no layer 'wordz'. Did you mean 'words'?", model=Reader(), embedding="wordz")


def test_a_layer_that_makes_no_vector_of_each_token_is_refused():
    x, y = texts()
    refused(
        "embedding 'out' turns tokens [6, 9] into [6, 4]: one vector per token, [N, L, D], is "
        "wanted.",
        lambda guided: guided(x, y), model=Reader(), embedding="out",
    )  # fmt: skip


def test_texts_of_padding_alone_are_refused():
    x, y = texts()
    x[2:4] = 0
    refused(
        "2 of 6 texts are padding everywhere (token 0), the first is text 2: remove them, or "
        "correct padding=.",
        lambda guided: guided(x, y), model=Reader(), embedding="words",
    )  # fmt: skip


def test_constant_images_are_refused_where_all_are():
    flat = torch.arange(4.0, dtype=torch.float64).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    refused(
        "every image of this batch is constant, so that masking by numbers between its smallest "
        "and largest value changes nothing",
        lambda guided: guided(flat, LABELS),
    )
    refused(
        "every feature of this batch is constant over its sample's time",
        lambda guided: guided(flat[:, 0, :1].expand(4, 3, 3), LABELS),
    )
    some = torch.cat([flat[:2], PICTURES[2:]])
    step = attrain.SaliencyGuided(network((1, 3, 3)), F.cross_entropy).step(some, LABELS)
    assert torch.equal(step.masked[:2], some[:2]) and not torch.equal(step.masked, some)


@pytest.mark.parametrize("form", FORMS)
def test_one_class_only_is_refused(form):
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 1)).double()
    refused(
        "the model returns [4, 1], which is one class only, and any two distributions over one "
        "class agree: give it one output per class, two for a yes or no.",
        model=model, form=form,
    )  # fmt: skip
    refused("the model returns [4], which is one class only", form=form,
            model=nn.Sequential(model, nn.Flatten(0)))  # fmt: skip
    refused("the model turns 4 samples into [4, 1, 3, 3]: one output per class, [N, C], is wanted.",
            form=form, model=nn.Conv2d(1, 1, 1).double())  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (lambda x, drop: x[:, :, :2], "torch.float64 [4, 1, 2, 3]"),
        (lambda x, drop: x.float(), "torch.float32 [4, 1, 3, 3]"),
        (lambda x, drop: None, "NoneType"),
    ],
)
def test_a_mask_function_that_returns_something_else_is_refused(mask, got):
    refused(
        f"the mask function returned {got} for x of torch.float64 [4, 1, 3, 3]: it must return a "
        "tensor of the same shape and type.",
        mask=mask,
    )


def test_batches_that_do_not_fit_are_refused():
    refused("x must be a tensor [N, ...], got list.", lambda g: g([1.0], LABELS))
    refused("a batch [N, ...] of at least one sample", lambda g: g(PICTURES[:0], LABELS[:0]))
    refused("y holds class indices, torch.int64 [4]; got torch.float64 [4]",
            lambda g: g(PICTURES, LABELS.double()))  # fmt: skip
    refused("y holds class indices, torch.int64 [4]; got torch.int64 [3]",
            lambda g: g(PICTURES, LABELS[:3]))  # fmt: skip
    refused("labels go from 4 to 7, and the model has 4 outputs: they must lie in 0..3.",
            lambda g: g(PICTURES, torch.tensor([4, 5, 6, 7])))  # fmt: skip
    refused("index= is for refresh > 1", lambda g: g(PICTURES, LABELS, index=torch.arange(4)))
    refused("got torch.float32 [4]", lambda g: g(PICTURES, LABELS, index=torch.ones(4)), refresh=2)
    refused("got torch.int64 [4]", lambda g: g(PICTURES, LABELS, index=-torch.ones(4).long()),
            refresh=2)  # fmt: skip
    refused(
        "refresh=2 keeps masks of shape [3, 3], and these samples have [1, 9]: give all samples "
        "one shape, or refresh=1.",
        lambda g: [
            g(x, LABELS, index=torch.arange(4)) for x in (PICTURES, PICTURES.view(4, 1, 1, 9))
        ],
        refresh=2,
    )


@pytest.mark.parametrize("form", FORMS)
def test_inputs_without_numbers_to_draw_between_are_refused(form):
    broken = PICTURES.clone()
    broken[1, 0, 0, 0], broken[3] = float("nan"), float("inf")
    refused(
        "2 of 4 samples have values that are NaN or infinite, the first is sample 1: clean the "
        "data, or give a mask function of your own.",
        lambda g: g(broken, LABELS), form=form,
    )  # fmt: skip
    refused("x has the shape [4, 0]: its samples have no values to mask.",
            lambda g: g(PICTURES.new_zeros(4, 0), LABELS), form=form)  # fmt: skip
    refused("x has the layout torch.sparse_coo: give x.to_dense().",
            lambda g: g(PICTURES.to_sparse(), LABELS), form=form)  # fmt: skip
    with torch.inference_mode():
        made = PICTURES + 0
    refused("x was made under torch.inference_mode", lambda g: g(made, LABELS), form=form)


def test_integers_that_are_no_tokens_are_refused():
    whole = (PICTURES * 10).long()
    refused("x is torch.int64 of shape [4, 1, 3, 3]: texts are tokens [N, L] as integers, images "
            "and series floating point numbers, such as x.float() / 255.",
            lambda g: g(whole, LABELS))  # fmt: skip
    refused("If x holds no tokens but numbers, give x.float().",
            lambda g: g(whole.flatten(1), LABELS))  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_models_without_a_gradient_in_the_input_are_refused(form):
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = network((1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.detach())

    class Rounded(Detached):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(self.out(x).argmax(1), CLASSES).double()

    message = "the model's outputs have no gradient in its input, so that there is nothing to rank"
    refused(message, model=Detached(), form=form)
    if form == "exact":
        refused(message, model=Rounded(), form=form)
    attrain.SaliencyGuided(Detached(), F.cross_entropy, form=form, order="random")(PICTURES, LABELS)


def test_a_step_that_fails_leaves_masks_due():
    guided = attrain.SaliencyGuided(network((1, 3, 3)), F.cross_entropy, refresh=2)
    index = torch.arange(4)
    with pytest.raises(InputError):
        guided(PICTURES, LABELS + CLASSES, index=index)
    assert guided.step(PICTURES, LABELS, index=index).drop.sum((1, 2)).tolist() == [4] * 4


def test_guided_training_needs_gradients():
    with torch.no_grad():
        refused("guided training needs gradients, and they are off")


def test_the_fast_form_refuses_what_it_would_get_wrong():
    x, y = texts()
    weights = torch.full(x.shape, 0.1, requires_grad=True)
    refused(
        "another argument of the model requires grad: use form='shared' or 'exact'.",
        lambda g: g(x, y, weights), model=Reader(), embedding="words", form="fast",
    )  # fmt: skip

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(CLASSES))

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.scale * out, y)

    refused(
        "form='fast' knows the gradients of the model's parameters and of x, and the loss depends "
        "on another tensor that requires grad, [4]: use form='shared' or 'exact'.",
        loss_fn=Scaled(), form="fast",
    )  # fmt: skip

    def half(guided) -> None:
        with torch.autocast("cpu", torch.float16):
            guided(PICTURES.float(), LABELS)

    refused("under float16 small gradients become 0", half, form="fast")


# The method of the command line -------------------------------------------------------------------


def test_the_method_is_the_loss_of_the_paper():
    model, (x, y) = convolutional(), batch((2, 5, 5))
    method = find("saliency-guided")
    assert method.citation and method.guided is not None
    torch.manual_seed(0)
    loss, out = BatchLoss(method, model)(x.float(), y)
    torch.manual_seed(0)
    expected = attrain.SaliencyGuided(model, F.cross_entropy, 0.5, 1.0, form="exact").step(
        x.float(), y
    )
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(out, expected.outputs)


def test_models_whose_saliency_disagrees_learn_to_agree():
    model, (x, y) = convolutional(), batch((2, 5, 5), 32)
    guided = attrain.SaliencyGuided(
        model, F.cross_entropy, generator=torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = []
    for _ in range(150):
        optimizer.zero_grad()
        step = guided.step(x.float(), y)
        step.loss.backward()
        optimizer.step()
        rows.append((float(step.task), float(step.divergence)))
    peak = max(row[1] for row in rows)
    assert rows[-1][0] < 0.3 * rows[0][0] and rows[-1][1] < peak


# Several processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    guided_worker.run(folder)
    return folder


def of_ranks(folder: Path, case: guided_worker.Case) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{case}.{rank}.safetensors") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.xdist_group("two guided processes")  # all cases are trained at once, by one worker
@pytest.mark.parametrize("case", guided_worker.cases(), ids=str)
def test_two_processes_equal_one(case: guided_worker.Case, processes: Path) -> None:
    wanted = guided_worker.train(case, 0, world=1)
    for found in of_ranks(processes, case):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value)


@pytest.mark.slow
@pytest.mark.xdist_group("two guided processes")
@pytest.mark.parametrize("case", guided_worker.norms(), ids=str)
def test_two_processes_with_batch_norm_equal_their_halves(
    case: guided_worker.Case, processes: Path
) -> None:
    """Each half has its own statistics, which the first process hands on before the forward pass.

    The saliency pass, which is one of evaluation, goes by those that a process has.
    """
    models = [guided_worker.wrapped_norm() for _ in range(2)]
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in models]
    found = of_ranks(processes, case)
    for step in range(guided_worker.STEPS):
        images, labels = small_models.batch(step, dtype=torch.float64)
        handed_on = copy.deepcopy(models[0].state_dict())
        for model, x, y in zip(models, images.chunk(2), labels.chunk(2), strict=True):
            model.zero_grad()
            if case.form != "exact":
                model.load_state_dict(handed_on)
            guided = attrain.SaliencyGuided(
                copy.deepcopy(model), F.cross_entropy, form=case.form, mask=blank
            )
            masked = guided.step(x, y).masked
            model.load_state_dict(handed_on)
            clean, other = model(x), model(masked)
            fixed = clean.detach() if case.form == "fast" else clean
            (F.cross_entropy(clean, y) + slow.divergence(fixed, other)).backward()
        for pair in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mean = (pair[0].grad + pair[1].grad) / 2
            for each in pair:
                each.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
        for rank in range(2):
            for name, value in models[rank].state_dict().items():
                torch.testing.assert_close(found[rank][f"{step}/{name}"], value)


def test_what_a_wrapper_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network((1, 3, 3))
    monkeypatch.setattr("attrain.guided.step.has_static_graph", lambda model: True)
    for form in ("shared", "fast"):
        refused(
            f"form={form!r} goes back through the first pass alone, which "
            "DistributedDataParallel(static_graph=True) does not foresee: use form='exact'.",
            model=model, form=form,
        )  # fmt: skip
    attrain.SaliencyGuided(model, F.cross_entropy, form="exact")(PICTURES, LABELS)
