"""The command line: what it accepts, what it refuses, and in which words."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attrain import cli, config
from attrain.cli import run
from attrain.methods import METHODS
from attrain.sparse import load_sparse

QUICK = ["--epochs", "1", "--seeds", "1", "--device", "cpu", "--no-rival"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    out = tmp_path_factory.mktemp("job") / "out"
    assert run(["compare", *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture
def told(capsys):
    """Return a function that runs a command and returns its status and what it said on stderr."""

    def call(*arguments) -> tuple[int, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    return call


# Help ---------------------------------------------------------------------------------------------


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "attrain.cli", *command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=True,
    )
    return re.sub(r"[│╭╮╰╯─\s]+", " ", done.stdout)


def test_a_reader_who_has_seen_enough_is_no_failure_to_tell():
    command = f"'{sys.executable}' -m attrain.cli train --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""


def test_help_tells_the_commands_the_flags_their_defaults_and_the_methods():
    top = help_of()
    assert all(name in top for name in ("compare", "train", "evaluate", "prune", "report"))
    text = help_of("compare")
    for flag, default in (
        ("--data STR", "digits"),
        ("--model STR", "mlp"),
        ("--seeds INT", "3"),
        ("--batch-size INT", "128"),
        ("--clip-norm FLOAT", "3.0"),
        ("--methods [STR [STR ...]]", "sgd lfp"),
    ):
        assert re.search(re.escape(flag) + r"[^(]*(\([^d][^)]*\)[^(]*)*\(default: " + default, text)
    assert all(name in text for name in METHODS)


def test_the_version_is_told(capsys):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"attrain \d+\.\d+\.\d+\n", capsys.readouterr().out)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--methods", "sgd", "lpf"], "unknown method 'lpf'. Did you mean 'lfp'? Known: "),
        (["--methods"], "--methods is empty: name at least one method, such as sgd."),
        (["--methods", "sgd", "sgd"], "--methods names sgd 2 times: name it once."),
        (["--data", "digit"], "unknown data set 'digit'. Did you mean 'digits'?"),
        (["--data", "./nowhere.csv"], "data './nowhere.csv' does not exist"),
        (["--model", "lenett"], "unknown model 'lenett'. Did you mean 'lenet'?"),
        (["--activation", "rleu"], "unknown activation 'rleu'. Did you mean 'relu'?"),
        (["--epochs", "0"], "--epochs 0 is too small: give at least 1."),
        (["--seeds", "0"], "--seeds 0 is too small: give at least 1."),
        (["--batch-size", "0"], "--batch-size 0 is too small: give at least 1."),
        (["--batch-size", "9" * 20], "--batch-size 99999999999999999999 is too large"),
        (["--seeds", "9" * 20], f"--seeds {'9' * 20} is too large: give at most 1000000."),
        (["--epochs", "9" * 20], f"--epochs {'9' * 20} is too large: give at most 1000000."),
        (["--threads", "70000"], "--threads 70000 is too large: give at most 4096."),
        (["--accumulate", "200"], "--batch-size 128 cannot be shared by 1 devices in 200 parts"),
        (["--learning-rate", "-1"], "--learning-rate -1.0 is not possible: give a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate nan is not possible"),
        (["--weight-decay", "-1"], "--weight-decay -1.0 is not possible: give 0 or more."),
        (["--device", "cpu", "--precision", "16-mixed"], "--precision 16-mixed needs a GPU"),
        (["--strategy", "fsdp2", "--precision", "16-mixed"], "use bf16-mixed or 32-true."),
        (["--config", "nowhere.toml"], "--config nowhere.toml cannot be read: No such file"),
        (["--resume"], "holds no config.json, so there is no run to resume"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path, told, arguments, text
):
    status, said = told("compare", *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert text in said and said.startswith("attrain: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--sedes", "3"],
        ["compare", "--epochs", "three"],
        ["evaluate", "runs", "--config", "nowhere.toml"],
        ["compaer"],
        [],
    ],
)
def test_arguments_that_cannot_be_read_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_a_folder_with_results_is_refused_and_kept(job, told):
    before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    status, said = told("compare", *QUICK, "--out", job)
    assert status == 2
    assert "already holds the results of a run: give another --out, or --resume to go on" in said
    assert before == {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path, told):
    (tmp_path / "file").write_text("mine")
    status, said = told("compare", *QUICK, "--out", tmp_path / "file" / "out")
    assert status == 1
    assert said.count("\n") == 1 and "a part of the path is a file, not a folder" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_told_and_the_job_can_go_on(tmp_path, told, monkeypatch):
    real = os.replace

    def replace(source, target):
        if Path(target).name == "samples.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    status, said = told("compare", *QUICK, "--out", tmp_path / "out")
    assert status == 1
    assert "samples.json: the disk is full: free some space" in said.splitlines()[-1]
    monkeypatch.undo()
    assert told("compare", *QUICK, "--out", tmp_path / "out", "--resume")[0] == 0
    assert (tmp_path / "out" / "report.html").exists()


def test_resuming_with_other_settings_names_them(job, told):
    status, said = told("compare", *QUICK, "--out", job, "--resume", "--epochs", "2")
    assert status == 2
    assert "holds a job with other settings (training epochs 1, now 2)" in said
    status, said = told("compare", *QUICK, "--out", job, "--resume", "--methods", "lfp")
    assert "methods sgd lfp, now lfp" in said


def test_an_interruption_says_how_to_go_on(tmp_path, told, monkeypatch):
    import attrain.compare

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(attrain.compare, "compare", interrupted)
    monkeypatch.chdir(tmp_path)
    status, said = told("compare", "--epochs", "1")
    assert status == 130
    assert "attrain compare --epochs 1 --out runs/compare-digits --resume" in said


def test_without_out_the_next_free_folder_is_taken_and_the_last_one_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.free_folder("compare", "digits", False) == Path("runs/compare-digits")
    for name in ("compare-digits", "compare-digits-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert config.free_folder("compare", "digits", False) == Path("runs/compare-digits-3")
    assert config.free_folder("compare", "digits", True) == Path("runs/compare-digits-2")
    assert config.free_folder("train", "../some data.csv", False) == Path(
        "runs/train-some-data.csv"
    )
    with pytest.raises(config.InputError, match="there is no runs/train-digits to resume"):
        config.free_folder("train", "digits", True)


# Settings in a file -------------------------------------------------------------------------------


def settings(tmp_path, text: str) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def test_a_file_gives_the_defaults_and_flags_win_over_it(tmp_path):
    path = settings(
        tmp_path,
        'data = "mnist"\nmethods = ["lfp"]\nbatch-size = 64\nlearning_rate = 1\nseeds = 2\n'
        'out = "here"\ntensorboard = true\noptimizer = "adam"\n',
    )
    found = cli.parse(["compare", "--config", str(path), "--seeds", "5"])
    assert (found.data, found.methods, found.seeds) == ("mnist", ("lfp",), 5)
    assert (found.training.batch_size, found.training.learning_rate) == (64, 1.0)
    assert found.out == Path("here") and found.training.tensorboard
    assert found.training.optimizer == "adam"
    settings(tmp_path, 'method = "sgd"')
    assert cli.parse(["train", f"--config={path}"]).method == "sgd"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("epoch = 3", "unknown setting in {path} 'epoch'. Did you mean 'epochs'?"),
        ("epochs = 'three'", "epochs in {path} is 'three': an integer is wanted."),
        ("epochs = true", "epochs in {path} is True: an integer is wanted."),
        ("rival = 1", "rival in {path} is 1: true or false is wanted."),
        ("methods = 'sgd'", "methods in {path} is 'sgd': a list of names is wanted."),
        ("clip-norm = 'a'", "clip-norm in {path} is 'a': a number is wanted."),
        ("data = 1", "data in {path} is 1: a text is wanted."),
        ("schedule = 'cycle'", "unknown schedule in {path} 'cycle'. Did you mean 'onecycle'?"),
        ("= 3", "--config {path} is not valid TOML: "),
        ("[training]\nepochs = 3", "unknown setting in {path} 'training'."),
    ],
)
def test_files_that_cannot_work_are_refused(tmp_path, told, text, wanted):
    path = settings(tmp_path, text)
    status, said = told("compare", "--config", path)
    assert status == 2
    assert wanted.format(path=path) in said


# Trained models -----------------------------------------------------------------------------------


def test_evaluation_agrees_with_the_job(job, capsys):
    analysis = json.loads((job / "lfp" / "seed-0" / "analysis.json").read_text())
    for path in ("lfp/seed-0", "lfp/seed-0/model.safetensors", "lfp/seed-0/checkpoint.pt"):
        assert run(["evaluate", str(job / path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["accuracy"] == analysis["measures"]["test_accuracy"]
        assert found["loss"] == pytest.approx(analysis["measures"]["test_loss"])
        assert found["gini"] == pytest.approx(analysis["weights"]["gini"])
        assert found["sparsity"] == 0
    assert run(["evaluate", str(job / "lfp/seed-0"), "--measures", "accuracy"]) == 0
    assert re.fullmatch(r"accuracy  0\.\d{4}\n", capsys.readouterr().out)


def test_a_model_whose_outputs_are_nan_is_not_measured(job, tmp_path, capsys):
    weights = {n: v * math.nan for n, v in load_file(job / "sgd/seed-0/model.safetensors").items()}
    save_file(weights, tmp_path / "broken.safetensors")
    given = ["evaluate", str(tmp_path / "broken.safetensors"), "--data", "digits", "--model", "mlp"]
    for measure in ("accuracy", "noise"):
        assert run([*given, "--measures", measure]) == 2
        assert "the model's outputs are NaN for" in capsys.readouterr().err


def test_explanations_and_robustness_are_measured_on_a_checkpoint(job, tmp_path, capsys):
    out = tmp_path / "curves.json"
    names = ["accuracy", "accuracy_drop", "gradient_distribution", "pgd"]
    given = ["--measures", *names, "--samples", "40", "--attack-steps", "2", "--out", str(out)]
    assert run(["evaluate", str(job / "lfp/seed-0"), "--json", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    told = json.loads(out.read_text())
    assert told["figures"] == found and told["kind"] == "measures"
    assert list(told["curves"]) == names[1:] and told["settings"]["samples"] == 40
    assert {
        "accuracy",
        "faithfulness",
        "accuracy_drop",
        "gradient_kurtosis",
        "pgd_accuracy",
    } <= set(found)
    curve = told["curves"]["pgd"]
    assert len(curve["sizes"]) == len(curve["overall"]) and curve["steps"] == 2
    assert len(told["curves"]["gradient_distribution"]["kurtosis"]) == 40


def test_a_function_that_returns_a_model_is_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--data", "digits", "--measures", "noise", "sufficiency", "--samples", "20"]
    assert run(["evaluate", "mine:model", *given]) == 0
    assert re.fullmatch(
        r"noise_accuracy  \d\.\d{4}\nsufficiency     -?\d\.\d{4}\n", capsys.readouterr().out
    )


def test_pruned_weights_have_the_accuracy_that_was_told(job, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    assert run(["prune", str(job / "sgd/seed-0"), "--amount", "0.5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    told = json.loads(out.with_suffix(".json").read_text())
    assert f"50% removed: accuracy {told['accuracy_before']:.1%} before" in said
    curve = dict(zip(told["removed"], told["accuracy"], strict=True))
    assert told["accuracy_after"] == curve[0.5] and told["accuracy_before"] == curve[0.0]
    assert run(["evaluate", str(out), "--data", "digits", "--model", "mlp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == told["accuracy_after"]
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-4)
    before = load_file(job / "sgd/seed-0/model.safetensors")
    assert all(torch.equal(load_file(out)[name], before[name]) for name in before if "bias" in name)


def test_pruned_weights_are_exported_without_their_zeros(job, tmp_path, capsys):
    out, small = tmp_path / "pruned.safetensors", tmp_path / "small.safetensors"
    given = ["--amount", "0.9", "--criterion", "relevance", "--relevance-data", "train"]
    given += ["--out", str(out), "--export", str(small)]
    assert run(["prune", str(job / "sgd/seed-0"), *given]) == 0
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["criterion"] == "relevance" and told["relevance_data"] == "train"
    assert told["export"]["bytes"] == small.stat().st_size < out.stat().st_size / 3
    assert f"{small.stat().st_size:,} bytes" in capsys.readouterr().out
    whole, restored = load_file(out), load_sparse(small)
    assert all(torch.equal(restored[name], value) for name, value in whole.items())
    assert run(["evaluate", str(small), "--data", "digits", "--model", "mlp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == told["accuracy_after"]


def test_pruning_does_not_overwrite(job, tmp_path, told):
    out = tmp_path / "weights.safetensors"
    out.write_bytes(b"mine")
    status, said = told("prune", job / "sgd/seed-0", "--out", out)
    assert status == 2 and "exists already: give another --out, or remove it." in said
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["evaluate", "nowhere"], "nowhere does not exist: give the folder of a finished run"),
        (["evaluate", "."], "holds no model.safetensors"),
        (["evaluate", "{job}/config.json"], "is neither a .safetensors file nor a .pt"),
        (["evaluate", "{run}", "--measures", "acuracy"], "Did you mean 'accuracy'?"),
        (["evaluate", "{run}", "--measures"], "--measures is empty"),
        (["evaluate", "{run}", "--measures", "accuracy-drop"], "Did you mean 'accuracy_drop'?"),
        (["evaluate", "{run}", "--measures", "pgd", "pgd"], "names pgd more than once: name it"),
        (["evaluate", "{run}", "--method", "salience"], "Did you mean 'saliency'?"),
        (["evaluate", "{run}", "--samples", "0"], "--samples 0 is too small: give at least 1."),
        (["evaluate", "{run}", "--attack-steps", "0"], "--attack-steps 0 is too small"),
        (["evaluate", "{run}", "--out", "c.txt"], "--out c.txt must end in .json, the format"),
        (["evaluate", "{run}", "--out", "{job}/config.json"], "exists already: give another --out"),
        (["evaluate", "some:model"], "some:model does not say what it was trained on: give --da"),
        (["evaluate", "some:model", "--data", "digits", "--model", "mlp"], "leave --model and --"),
        (["evaluate", "{run}", "--model", "lenet"], "holds the weights of another model"),
        (["evaluate", "{lone}"], "give --data and --model."),
        (["evaluate", "{cut}", "--data", "digits", "--model", "mlp"], "may have been cut short"),
        (
            ["prune", "{run}", "--amount", "1.5"],
            "--amount 1.5 is not a share: give a number in 0..",
        ),
        (["prune", "{run}", "--criterion", "magnitude"], "Did you mean 'magnitude-"),
        (["prune", "{run}", "--out", "weights.pt"], "must end in .safetensors"),
        (["prune", "{run}", "--export", "weights.pt"], "--export weights.pt must end in"),
        (["prune", "{run}", "--export", "{lone}"], "give another --export, or remove it."),
        (
            ["prune", "{run}", "--out", "w.safetensors", "--export", "w.safetensors"],
            "--out and --export are both w.safetensors: give two files.",
        ),
        (["prune", "{run}", "--layers", "conv"], "the model has no convolution layer"),
        (["report", "nowhere"], "nowhere has no results.json"),
    ],
)
def test_trained_models_that_cannot_be_used_are_refused(job, tmp_path, told, arguments, text):
    save_file({"w": torch.zeros(1)}, tmp_path / "lone.safetensors")
    whole = (job / "sgd/seed-0/model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:1000])
    places = {
        "job": job,
        "run": job / "sgd/seed-0",
        "lone": tmp_path / "lone.safetensors",
        "cut": tmp_path / "cut.safetensors",
    }
    status, said = told(*[argument.format(**places) for argument in arguments])
    assert status == 2 and text in said and said.count("\n") == 1


def test_the_report_is_written_again(job, capsys):
    (job / "report.html").unlink()
    assert run(["report", str(job)]) == 0
    assert (job / "report.html").stat().st_size > 1000
    assert "report.html" in capsys.readouterr().out
