"""The training loop: updates, schedules, devices, evaluation, and what it refuses."""

import dataclasses
import errno
import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import FAST, in_ranks, small_data, small_model
from torch import nn
from torch.utils.data import TensorDataset

from attrain import training
from attrain.config import TrainingConfig
from attrain.devices import make_fabric
from attrain.errors import AttrainError, CreditWarning, InputError
from attrain.methods import SPIKING_METHODS, find
from attrain.metrics.cost import saved_for_backward, training_bytes
from attrain.models import SpikingMLP
from attrain.optim import COURSES
from attrain.runs import load_checkpoint, save_checkpoint
from attrain.schedules import learning_rate, momentum
from attrain.training import batches, evaluate, predict, train


def plain_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def weights_after(config: TrainingConfig, method: str = "sgd", **options) -> dict:
    return train(plain_model(), small_data(), find(method), config, **options).weights


def close(first: dict, second: dict, tolerance: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=tolerance, atol=tolerance)


# The loop against one written out -----------------------------------------------------------------


def written_out(
    config: TrainingConfig, seed: int = 0, l1: float = 0.0, decay: float = 0.0, course=None
) -> dict:
    """Train as the loop should, with nothing but torch."""
    model, data = plain_model(), small_data()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    per_epoch = [batches(len(data.train), config.batch_size, seed, e) for e in range(config.epochs)]
    steps = sum(map(len, per_epoch))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps
    )
    x, y = data.train.tensors
    for step, index in enumerate(batch for epoch in per_epoch for batch in epoch):
        strength = 1.0 if course is None else course(step / (steps - 1))
        optimizer.param_groups[0]["weight_decay"] = strength * decay
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[index]), y[index])
        loss = loss + strength * l1 * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        scheduler.step()
    return model.state_dict()


@pytest.mark.parametrize("method, l1", [("sgd", 0.0), ("sgd-l1", 1e-3)])
def test_the_loop_does_what_a_loop_written_out_does(method, l1):
    config = dataclasses.replace(FAST, clip_norm=0.5)
    close(weights_after(config, method), written_out(config, l1=l1))


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("l1, decay", [(1e-2, 0.0), (0.0, 0.1)])
def test_decay_and_l1_follow_the_course_of_the_method(course, l1, decay, tmp_path):
    method = dataclasses.replace(find("sgd"), l1=l1, weight_decay=decay, course=course)
    found = train(plain_model(), small_data(), method, FAST, folder=tmp_path).weights
    close(found, written_out(FAST, l1=l1, decay=decay, course=COURSES[course]))
    other = dataclasses.replace(method, course="release" if course == "ramp" else "ramp")
    with pytest.raises(InputError, match=f"course of weight decay and l1 {course}, now "):
        train(plain_model(), small_data(), other, FAST, folder=tmp_path, resume=True)


def test_lfp_is_weight_times_gradient_for_relu_networks():
    config = dataclasses.replace(FAST, epochs=1, batch_size=48, clip_norm=0.0, momentum=0.0)
    data, before = small_data(), plain_model()
    method = dataclasses.replace(find("lfp-abs"), credit={"epsilon": 0.0, "scale": "abs"})
    loss = F.cross_entropy(before(data.train.tensors[0]), data.train.tensors[1])
    loss.backward()
    after = train(plain_model(), data, method, config).weights
    rate = learning_rate(0, 1, config.learning_rate, "onecycle")
    for name, weight in before.named_parameters():
        expected = weight - rate * weight.abs() * weight.grad
        torch.testing.assert_close(after[name], expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["sgd", "lfp", "sgd-l1", "saliency-guided"])
def test_accumulation_leaves_the_update_as_it_is(method):
    whole = weights_after(FAST, method)
    parts = weights_after(dataclasses.replace(FAST, accumulate=3), method)
    close(whole, parts)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first = train(small_model(), small_data(), find("sgd"), FAST, seed=1).weights
    again = train(small_model(), small_data(), find("sgd"), FAST, seed=1).weights
    other = train(small_model(), small_data(), find("sgd"), FAST, seed=2).weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_every_optimizer_learns_under_every_schedule(optimizer, schedule):
    config = dataclasses.replace(
        FAST, optimizer=optimizer, schedule=schedule, epochs=10, learning_rate=None
    )
    if optimizer != "sgd":
        config = dataclasses.replace(config, learning_rate=0.01)
    trained = train(plain_model(), small_data(), find("sgd"), config)
    assert trained.epochs[-1]["train_loss"] < trained.epochs[0]["train_loss"]


@pytest.mark.parametrize("method", ["sgd", "lfp"])
def test_mixed_precision_learns(method):
    config = dataclasses.replace(FAST, precision="bf16-mixed", epochs=8)
    trained = train(plain_model(), small_data(), find(method), config)
    assert trained.weights["1.weight"].dtype == torch.float32
    assert trained.epochs[-1]["train_loss"] < trained.epochs[0]["train_loss"]


def test_what_training_leaves_behind_is_only_the_model():
    threads, modes = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    model = small_model()
    train(model, small_data(), find("sgd"), dataclasses.replace(FAST, threads=2))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (
        threads,
        modes,
    )
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


# Pieces -------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 200),
    size=st.integers(1, 64),
    epoch=st.integers(0, 3),
    shares=st.integers(1, 4),
)
def test_batches_hold_every_sample_at_most_once_and_can_be_shared(count, size, epoch, shares):
    assume(count >= shares and size >= shares)
    found = batches(count, size, 0, epoch, shares)
    every = torch.cat(found)
    assert len(every) == len(every.unique())
    assert count - len(every) < max(2, shares)
    assert all(0 < len(batch) <= size and len(batch) % shares == 0 for batch in found)
    assert len(found) == len(batches(count, size, 0, epoch + 1, shares))


def test_a_lone_last_sample_is_left_out_unless_it_is_all_there_is():
    assert [len(batch) for batch in batches(33, 16, 0, 0)] == [16, 16]
    assert [len(batch) for batch in batches(34, 16, 0, 0)] == [16, 16, 2]
    assert [len(batch) for batch in batches(1, 16, 0, 0)] == [1]


@pytest.mark.parametrize("steps", [4, 10, 97])
def test_onecycle_is_that_of_torch(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]
        rate = learning_rate(step, steps, 0.3, "onecycle")
        assert math.isclose(rate, expected["lr"], rel_tol=1e-9)
        swung = momentum(step, steps, 0.9, "onecycle")
        assert math.isclose(swung, expected["momentum"], rel_tol=1e-9)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


def test_other_schedules_and_no_momentum_do_not_swing():
    assert momentum(3, 10, 0.9, "cosine") == momentum(3, 10, 0.9, "constant") == 0.9
    assert momentum(3, 10, 0.0, "onecycle") == 0.0


def test_cosine_falls_and_constant_stays():
    rates = [learning_rate(step, 10, 0.3, "cosine") for step in range(10)]
    assert rates[0] == 0.3 and rates == sorted(rates, reverse=True) and rates[-1] > 0
    assert {learning_rate(step, 10, 0.3, "constant") for step in range(10)} == {0.3}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_schedules_are_finite(steps):
    rates = [learning_rate(step, steps, 0.3, "onecycle") for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates)


def test_memory_counts_parameters_gradients_state_and_what_is_saved():
    model = nn.Linear(10, 5, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(7, 10)
    model(x).square().sum().backward()
    optimizer.step()
    with saved_for_backward() as saved:
        model(x).square().sum()
    # 50 weights, as many gradients and momenta, the input, and the output that is squared
    assert training_bytes(model, optimizer, saved) == 4 * (3 * 50 + 70 + 35)


# Evaluation ---------------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_definition_and_leaves_the_modes():
    model, data = small_model(), small_data()
    model.train()
    model[1].eval()
    found = evaluate(model, data.test, batch_size=5)
    modes = [module.training for module in model]
    assert modes == [True, False, True, True, True, True] and model.training
    x, y = data.test.tensors
    with torch.no_grad():
        logits = model.eval()(x)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert 0 <= found["ece"] <= 1
    torch.testing.assert_close(predict(model, data.test, batch_size=7), logits)


def test_layers_that_are_silent_after_an_epoch_are_named():
    pytest.importorskip("snntorch")
    model = SpikingMLP(16, (8,), 3, steps=3)
    with torch.no_grad():
        for weight in model.stages[1].parameters():
            weight.mul_(0.001)
    method = dataclasses.replace(SPIKING_METHODS["surrogate"], learning_rate=1e-9)
    with pytest.warns(CreditWarning, match=r"layer 'neurons\.1' never fired .*match_activity_"):
        train(model, small_data(), method, FAST)


def test_zero_samples_cannot_be_evaluated():
    with pytest.raises(InputError, match="zero samples: nothing to predict"):
        evaluate(plain_model(), TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0).long()))


# Files --------------------------------------------------------------------------------------------


def test_metrics_have_a_line_per_epoch(tmp_path):
    told = []
    trained = train(
        plain_model(), small_data(), find("lfp"), FAST, folder=tmp_path, watch=told.append
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == trained.epochs
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["step"] for line in lines] == [3, 6]
    assert 0 < lines[0]["cpu_s"] < lines[1]["cpu_s"] and lines[1]["update_density"] > 0
    assert trained.peak_memory_bytes > 0 and trained.step_cpu_s > 0
    assert (told[-1].epoch, told[-1].step, told[-1].steps) == (2, 6, 6)
    assert told[-1].test_accuracy == lines[-1]["test_accuracy"]


def test_tensorboard_files_are_written_on_demand(tmp_path):
    pytest.importorskip("tensorboard")
    config = dataclasses.replace(FAST, tensorboard=True)
    train(plain_model(), small_data(), find("sgd"), config, folder=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path):
    train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="already holds the checkpoint of a run: train into"):
        train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(tmp_path):
    train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    config = dataclasses.replace(FAST, batch_size=8)
    with pytest.raises(InputError) as caught:
        train(plain_model(), small_data(), find("lfp"), config, folder=tmp_path, resume=True)
    assert "other settings (method sgd, now lfp; " in str(caught.value)
    assert "batch size 16, now 8" in str(caught.value)
    assert "learning rate" not in str(caught.value)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    with pytest.raises(InputError, match="checksum of the training samples"):
        data = small_data()
        data.train.tensors[0][0] += 1
        train(plain_model(), data, find("sgd"), FAST, folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    with pytest.raises(InputError, match="holds the weights of another model"):
        train(small_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="it may have been cut short"):
        train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="nothing in it was executed"):
        train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)
    assert not Path("trapped").exists()


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"something": 1})
    with pytest.raises(InputError, match="is not a checkpoint that this version of attrain wrote"):
        train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)


def test_a_full_disk_is_told_and_the_checkpoint_before_it_is_kept(tmp_path, monkeypatch):
    real, written = os.replace, []

    def replace(source, target):
        if str(target).endswith("checkpoint.pt"):
            written.append(target)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(AttrainError, match=r"cannot write .*checkpoint.pt: the disk is full"):
        train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["position"]["epoch"] == 1
    resumed = train(plain_model(), small_data(), find("sgd"), FAST, folder=tmp_path, resume=True)
    whole = weights_after(FAST)
    assert all(torch.equal(whole[name], resumed.weights[name]) for name in whole)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sgd", "lfp"])
def test_divergence_is_told_with_place_and_remedy_and_keeps_checkpoints(tmp_path, method):
    config = dataclasses.replace(FAST, learning_rate=1e6, clip_norm=0.0, epochs=40, batch_size=48)
    with pytest.raises(AttrainError) as caught:
        train(plain_model(), small_data(), find(method), config, folder=tmp_path)
    text = str(caught.value)
    assert f"({method}, seed 0): the loss is no longer a finite number" in text
    assert "training diverged in epoch" in text and "--learning-rate 3e+05" in text
    assert "Checkpoints written before are kept" in text
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_inputs_that_are_not_finite_are_refused():
    data = small_data()
    data.train.tensors[0][7, 0, 0, 0] = math.nan
    with pytest.raises(
        InputError,
        match="1 of 48 training inputs hold NaN or infinite values, the first is sample 7",
    ):
        train(plain_model(), data, find("sgd"), FAST)


def test_labels_out_of_range_are_refused():
    data = small_data()
    data.test.tensors[1][0] = 3
    with pytest.raises(
        InputError,
        match=r"test labels go from 0 to 3, but with 3 classes they "
        r"must lie in 0\.\.2",
    ):
        train(plain_model(), data, find("sgd"), FAST)


def test_no_samples_are_refused():
    empty = TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(InputError, match="data set 'small' has no training samples"):
        train(plain_model(), dataclasses.replace(small_data(), train=empty), find("sgd"), FAST)


def test_models_that_do_not_fit_the_data_are_refused():
    with pytest.raises(InputError, match=r"cannot take inputs of shape \[1, 4, 4\]"):
        train(nn.Linear(5, 3), small_data(), find("sgd"), FAST)
    with pytest.raises(InputError, match=r"3 classes: logits of shape \[2, 3\] are wanted"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), small_data(), find("sgd"), FAST)


def test_a_model_without_parameters_that_learn_is_refused():
    with pytest.raises(InputError, match="no parameter that requires grad"):
        train(plain_model().requires_grad_(False), small_data(), find("sgd"), FAST)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="1 GPU is asked for and torch sees 0: give --device cpu"):
        make_fabric(TrainingConfig(device="cuda"))


def test_half_precision_on_the_cpu_is_refused():
    with pytest.raises(InputError, match="16-mixed needs a GPU: use bf16-mixed or 32-true"):
        make_fabric(TrainingConfig(device="cpu", precision="16-mixed"))


# Two processes ------------------------------------------------------------------------------------


def dropping_model(dropped: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(dropped), nn.Linear(8, 3)
    )


def as_rank(folder: Path, method: str, dropped: float, changes: dict, stop: int = 0) -> None:
    warnings.simplefilter("error")
    training._AGREE_STEPS, training._TELL_SECONDS = 1, -1.0
    config = dataclasses.replace(FAST, **changes)

    def watch(progress: training.Progress) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    options = {"folder": folder, "resume": True, "watch": watch}
    try:
        train(dropping_model(dropped), small_data(), find(method), config, **options)
    except KeyboardInterrupt:
        assert stop


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    "method", ["lfp", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sgd", "sgd-l1"))]
)
def test_two_processes_make_the_updates_of_one(tmp_path, strategy, method):
    in_ranks(as_rank, tmp_path, method, 0.0, {"strategy": strategy, "accumulate": 2})
    alone = train(dropping_model(0.0), small_data(), find(method), FAST)
    close(alone.weights, load_file(tmp_path / "model.safetensors"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert lines[-1][name] == pytest.approx(alone.epochs[-1][name], rel=1e-5)
    density = alone.epochs[-1]["update_density"]
    assert lines[-1]["update_density"] == pytest.approx(density, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on_to_the_same_bits(tmp_path, strategy):
    changes = {"strategy": strategy, "checkpoint_seconds": 0.0}
    in_ranks(as_rank, tmp_path / "whole", "lfp", 0.3, changes)
    in_ranks(as_rank, tmp_path / "broken", "lfp", 0.3, changes, 5)
    state = load_checkpoint(tmp_path / "broken" / "checkpoint.pt")
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 1)
    in_ranks(as_rank, tmp_path / "broken", "lfp", 0.3, changes)
    whole, broken = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.slow
def test_sharded_training_works_in_bfloat16(tmp_path):
    in_ranks(as_rank, tmp_path, "lfp", 0.0, {"strategy": "fsdp2", "precision": "bf16-mixed"})
    assert load_file(tmp_path / "model.safetensors")["1.weight"].dtype == torch.float32
