"""Synthetic time series: each process against its definition, boxes, scaling, seeds."""

import math

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import Matern

import attrain
from attrain import data
from attrain.cli import run
from attrain.data import series
from attrain.errors import InputError
from attrain.models import build
from attrain.runs import load_weights, read_json

# set: (steps, features), start (step, feature); None is anywhere, a pair by class (1, then 0).
TABLE = {
    "middle": ((30, 30), (10, 10)),
    "small-middle": ((14, 14), (18, 18)),
    "moving-middle": ((30, 30), (None, None)),
    "moving-small-middle": ((15, 15), (None, None)),
    "rare-time": ((6, 40), (22, 5)),
    "moving-rare-time": ((6, 40), (None, None)),
    "rare-feature": ((40, 6), (5, 22)),
    "moving-rare-feature": ((40, 6), (None, None)),
    "positional-time": ((20, 20), (None, (1, 29))),
    "positional-feature": ((20, 20), ((1, 29), None)),
}


def rng(seed=0):
    return np.random.default_rng(seed)


def corner(mask):
    """Return where the box of a mask begins and how large it is; it must be one rectangle."""
    steps, features = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    assert mask.sum() == len(steps) * len(features)
    assert (np.diff(steps) == 1).all() and (np.diff(features) == 1).all()
    return (steps[0], features[0]), (len(steps), len(features))


def test_there_are_seventy_sets_and_three():
    assert len(series.BOXES) == 10 and len(series.PROCESSES) == 7 and len(series.NAMES) == 73
    assert series.BOXES.keys() == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_boxes_are_those_of_the_table(name):
    box = series.BOXES[name]
    x, y, where = series.draw(rng(), 200, 50, box, "gaussian")
    assert x.shape == where.shape == (200, 50, 50) and np.bincount(y).tolist() == [100, 100]
    size, start = TABLE[name]
    found = [corner(mask) for mask in where]
    assert {each for _, each in found} == {size}
    for axis in (0, 1):
        places = np.array([begin[axis] for begin, _ in found])
        if start[axis] is None:
            last = 50 - size[axis]
            assert places.min() <= 1 and places.max() >= last - 1
            assert len(set(places.tolist())) >= min(last, 15)
        elif isinstance(start[axis], tuple):
            assert places.tolist() == [start[axis][0] if label else start[axis][1] for label in y]
        else:
            assert set(places.tolist()) == {start[axis]}


@pytest.mark.parametrize("process", series.PROCESSES)
@pytest.mark.parametrize("name", ["middle", "positional-time"])
def test_mu_is_added_in_the_box_and_nowhere_else(name, process):
    box = series.BOXES[name]
    x, y, where = series.draw(rng(3), 60, 50, box, process)
    random = rng(3)
    random.permutation(60)
    for start, size in ((box.step, box.steps), (box.feature, box.features)):
        if start is None:
            random.integers(0, 50 - size, 60, endpoint=True)
    plain = series.PROCESSES[process](random, series.irregular_times(random, 60, 50), 50)
    if process != "gaussian":
        plain = plain + random.normal(0.0, 0.3, plain.shape)
    for k in range(60):
        mu = 1.0 if name == "positional-time" or y[k] == 1 else -1.0
        assert np.allclose(x[k][where[k]] - plain[k][where[k]], mu)
        assert np.array_equal(x[k][~where[k]], plain[k][~where[k]])


def test_times_rise_and_keep_half_of_the_points():
    times = series.irregular_times(rng(), 300, 50)
    assert times.shape == (300, 50) and (np.diff(times, axis=1) >= 0).all()
    assert times.mean() == pytest.approx(10, abs=0.2)
    assert times.min() > -1 and times.max() < 21
    # Half of 100 points at distance .2, each moved by N(0, .2): steps of about .4, not equal.
    assert np.diff(times, axis=1).mean() == pytest.approx(0.4, abs=0.01)
    assert np.diff(times, axis=1).std() > 0.2


def test_gaussian_is_white():
    x = series.gaussian(rng(), np.zeros((200, 50)), 20)
    assert x.mean() == pytest.approx(0, abs=0.01) and x.std() == pytest.approx(1, abs=0.01)
    for lag in (1, 5):
        assert (x[:, lag:] * x[:, :-lag]).mean() == pytest.approx(0, abs=0.01)
    assert (x[:, :, 1:] * x[:, :, :-1]).mean() == pytest.approx(0, abs=0.01)


def test_harmonic_is_a_sine_of_two_periods_a_unit():
    times = series.irregular_times(rng(), 3, 7)
    found = series.harmonic(rng(), times, 2)
    for n in range(3):
        for t in range(7):
            wanted = math.sin(2 * math.pi * 2 * times[n, t])
            assert found[n, t].tolist() == pytest.approx([wanted] * 2)


def test_gaussian_process_has_the_covariance_of_a_matern_kernel():
    times = series.irregular_times(rng(1), 1, 12)
    wanted = Matern(length_scale=1.0, nu=1.5)(times[0][:, None])
    found = series.gaussian_process(rng(2), np.repeat(times, 400, axis=0), 50)
    rows = found.transpose(0, 2, 1).reshape(-1, 12)
    assert np.abs(rows.T @ rows / len(rows) - wanted).max() < 0.04
    assert np.abs(rows.mean(0)).max() < 0.03
    factor = np.linalg.cholesky(wanted + 1e-9 * np.eye(12))
    again = factor @ rng(2).standard_normal((400, 12, 50))[0]
    assert np.allclose(found[0], again)


def test_pseudo_periodic_has_its_period_and_its_amplitudes():
    times = np.tile(np.arange(160) / 16, (50, 1))
    found = series.pseudo_periodic(rng(4), times, 5)
    random = rng(4)
    amplitude = random.normal(1.0, 0.5, (50, 160, 5))
    frequency = random.normal(2.0, 0.01, (50, 160, 5))
    for n, t, f in ((0, 3, 1), (49, 159, 4), (7, 80, 0)):
        wanted = amplitude[n, t, f] * math.sin(2 * math.pi * frequency[n, t, f] * t / 16)
        assert found[n, t, f] == pytest.approx(wanted)
    power = np.square(np.abs(np.fft.rfft(found, axis=1))).mean((0, 2))
    assert np.fft.rfftfreq(160, 1 / 16)[power.argmax()] == 2.0
    # E[a^2] E[sin^2] = (1 + .25) / 2
    assert np.square(found).mean() == pytest.approx(0.625, abs=0.02)


def test_autoregressive_is_its_recursion():
    found = series.autoregressive(rng(5), np.zeros((2, 6)), 3)
    noise = rng(5).normal(0.0, 0.5, (2, 6, 3))
    for n in range(2):
        for f in range(3):
            before = 0.0
            for t in range(6):
                before = 0.9 * before + noise[n, t, f]
                assert found[n, t, f] == pytest.approx(before)
    late = series.autoregressive(rng(6), np.zeros((20, 500)), 20)[:, 100:]
    assert late.std() == pytest.approx(0.5 / math.sqrt(1 - 0.81), rel=0.03)
    correlation = (late[:, 1:] * late[:, :-1]).mean() / np.square(late).mean()
    assert correlation == pytest.approx(0.9, abs=0.01)


def test_car_is_its_recursion_over_uneven_times():
    times = series.irregular_times(rng(7), 2, 6)
    found = series.car(rng(8), times, 3)
    noise = rng(8).standard_normal((2, 5, 3))
    for n in range(2):
        for f in range(3):
            before = 0.01
            assert found[n, 0, f] == before
            for t in range(1, 6):
                a = 0.9 ** (times[n, t] - times[n, t - 1])
                before = a * before + 0.01 * math.sqrt(1 - a) * noise[n, t - 1, f]
                assert found[n, t, f] == pytest.approx(before)
    # On even times the variance settles at sigma^2 (1 - a) / (1 - a^2) = sigma^2 / (1 + a).
    late = series.car(rng(9), np.tile(np.arange(400.0), (20, 1)), 20)[:, 100:]
    assert late.std() == pytest.approx(0.01 / math.sqrt(1.9), rel=0.03)
    correlation = (late[:, 1:] * late[:, :-1]).mean() / np.square(late).mean()
    assert correlation == pytest.approx(0.9, abs=0.01)


def test_narma_is_its_recursion_of_order_ten():
    found = series.narma(rng(10), np.zeros((2, 30)), 3)
    u = rng(10).uniform(0.0, 0.5, (2, 39, 3))
    for n in range(2):
        for f in range(3):
            y = [0.0] * 10  # y[k] for k = 0..9
            for k in range(9, 39):
                total = sum(y[k - lag] for lag in range(10))
                y.append(0.3 * y[k] + 0.05 * y[k] * total + 1.5 * u[n, k - 9, f] * u[n, k, f] + 0.1)
            assert found[n, :, f].tolist() == pytest.approx(y[10:])
    assert np.isfinite(series.narma(rng(11), np.zeros((500, 50)), 20)).all()


def test_each_place_is_scaled_by_the_training_set_alone():
    found = series.load("series:middle-gaussian-process")
    (x, y), (x_test, y_test) = found.train.tensors, found.test.tensors
    assert x.shape == (1000, 50, 50) and x_test.shape == (100, 50, 50)
    assert x.dtype == torch.float32 and found.input_shape == (50, 50) and found.num_classes == 2
    assert torch.equal(x.amin(0), torch.zeros(50, 50))
    assert torch.allclose(x.amax(0), torch.ones(50, 50))
    assert x_test.amin() < 0 and x_test.amax() > 1
    assert torch.bincount(y).tolist() == [500, 500] and torch.bincount(y_test).tolist() == [50, 50]
    place = series.NAMES.index("series:middle-gaussian-process")
    streams = np.random.default_rng([0, place]).spawn(2)
    box = series.BOXES["middle"]
    for part, count, stream in (("train", 1000, streams[0]), ("test", 100, streams[1])):
        plain, labels, where = series.draw(stream, count, 50, box, "gaussian-process")
        split = getattr(found, part).tensors
        assert np.allclose(found.restore(split[0]).numpy(), plain, atol=1e-5)
        assert split[1].tolist() == labels.tolist()
        assert np.array_equal(found.evidence[part].numpy(), where)


def test_what_is_held_out_has_its_boxes_and_no_say_in_the_scaling():
    found = series.load("series:moving-rare-time-gaussian", validation=0.1)
    whole = series.load("series:moving-rare-time-gaussian")
    assert (len(found.train), len(found.validation)) == (900, 100)
    assert torch.equal(found.train.tensors[0].amin(0), torch.zeros(50, 50))
    assert found.validation.tensors[0].amin() < 0
    assert torch.equal(found.evidence["test"], whole.evidence["test"])
    for part in ("train", "validation", "test"):
        split, masks = getattr(found, part).tensors, found.evidence[part]
        assert masks.dtype == torch.bool and masks.shape == split[0].shape
        inside = (found.restore(split[0]) * masks).sum((1, 2)) / masks.sum((1, 2))
        assert torch.equal(inside > 0, split[1] == 1)  # 240 values of +-1 and noise of 1


def test_seeds_decide_and_sets_differ():
    name = "series:moving-middle-car"
    first, again = (data.load(name, seed=4) for _ in range(2))
    other = data.load(name, seed=5)
    for left, right in zip(first.train.tensors, again.train.tensors, strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(first.train.tensors[0], other.train.tensors[0])
    assert not torch.equal(first.evidence["train"], other.evidence["train"])
    assert not torch.equal(first.evidence["train"][:100], first.evidence["test"])
    gaussian = [data.load(f"series:{box}-gaussian") for box in ("middle", "rare-time")]
    assert not torch.equal(gaussian[0].train.tensors[1], gaussian[1].train.tensors[1])
    assert "drawn with seed 4" in first.notes and "box of 30 x 30" in first.notes


@pytest.mark.parametrize(
    ("name", "start", "size"),
    [("early", (0, 10), (30, 80)), ("middle", (20, 20), (60, 60)), ("late", (70, 10), (30, 80))],
)
def test_vanishing_saliency_comes_early_midway_or_late(name, start, size):
    found = data.load(f"vanishing:{name}")
    assert found.input_shape == (100, 100)
    assert (len(found.train), len(found.test)) == (1000, 300)
    assert {corner(mask) for mask in found.evidence["test"].numpy()} == {(start, size)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("series:midle-gaussian", "unknown time series .* Did you mean 'series:middle-gaussian'"),
        ("series:middle", "Known: series:BOX-PROCESS with the boxes middle, small-middle"),
        ("series:rare-time-narmA", "Did you mean 'series:rare-time-narma'"),
        ("vanishing:erly", "Did you mean 'vanishing:early'"),
        ("serie", r"unknown data set .* Or time series \(series:BOX-PROCESS, such as"),
    ],
)
def test_unknown_series(name, message):
    with pytest.raises(InputError, match=message):
        data.load(name)


def test_seed_is_checked():
    with pytest.raises(InputError, match="the seed of time series must be 0 or more: got -1"):
        data.load("series:middle-gaussian", seed=-1)


def check_samples(out):
    """Series lie as pictures that run from left to right, boxes and saliency with them."""
    shown, given = read_json(out / "samples.json"), data.load("series:small-middle-gaussian")
    index = [entry["index"] for entry in shown["samples"]]
    x = given.restore(given.test.tensors[0][index])
    pixels = torch.tensor([entry["pixels"] for entry in shown["samples"]])
    assert pixels.shape == (len(index), 1, 50, 50) and pixels.min() == 0 and pixels.max() == 1
    scaled = (x - x.min()) / (x.max() - x.min())
    torch.testing.assert_close(pixels[0, 0], scaled[0].T, rtol=1e-3, atol=1e-3)
    boxes = torch.tensor([entry["evidence"] for entry in shown["samples"]])
    assert torch.equal(boxes.bool(), given.evidence["test"][index].mT)
    model = build("lstm-input-cell", given.input_shape, given.num_classes)
    load_weights(out / "sgd" / "seed-0" / "model.safetensors", model)
    told = torch.tensor(shown["methods"]["sgd"]["predictions"])
    heat = attrain.attribute(model, given.test.tensors[0][index], told, method="saliency")
    found = torch.tensor(shown["methods"]["sgd"]["saliency"])
    torch.testing.assert_close(found, heat.mT, rtol=1e-3, atol=1e-6)
    page = (out / "report.html").read_text()
    assert "its features from top to bottom" in page
    assert "The frame holds what the label rests on." in page


def test_series_are_trained_on_measured_and_explained(tmp_path):
    out = tmp_path / "out"
    flags = ["--method", "sgd", "--optimizer", "adam", "--epochs", "1", "--device", "cpu"]
    where = ["--data", "series:small-middle-gaussian", "--model", "lstm-input-cell"]
    assert run(["train", *where, *flags, "--out", str(out)]) == 0
    trained = str(out / "sgd" / "seed-0")
    check_samples(out)
    assert run(["evaluate", trained]) == 0
    there = tmp_path / "why"
    assert run(["attribute", trained, "--samples", "2", "--out", str(there)]) == 0
    assert "data:image/png" in (there / "attributions.html").read_text()
