"""Models that are already trained: found by their files, measured, explained, pruned."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attrain.attribution import METHODS, attribute
from attrain.attribution.layers import embedding_of
from attrain.attribution.methods import find
from attrain.config import (
    AttributeConfig,
    EvaluateConfig,
    PruneConfig,
    Source,
    check_attribute,
    check_evaluate,
    check_prune,
    free_folder,
    is_function,
    weights_file,
)
from attrain.data import Data, load
from attrain.errors import InputError, unknown
from attrain.measuring import BASELINES, Settings, measure_explanations
from attrain.measuring import MEASURES as EXPLAINED
from attrain.methods import is_spiking
from attrain.metrics.batches import check_told
from attrain.metrics.sparsity import connection_weights, gini
from attrain.models import SpikingNet, build
from attrain.pruning import AMOUNTS, curve, fold_batch_norm, masks, prune
from attrain.report.attributions import Explanation, write_page
from attrain.runs import (
    check_fits,
    environment,
    load_checkpoint,
    read_json,
    save_weights,
    write_json,
)
from attrain.sparse import load_sparse, save_sparse
from attrain.training import predict, scores


def open_model(source: Source) -> tuple[nn.Module, Data]:
    """Return the model with its trained weights, and the data set to measure it on.

    What `source` leaves out is read from the config.json of the job above the weights. Raises
    InputError where there is none, and for weights of another model.
    """
    file = weights_file(source.path)
    job = _job_of(file)
    data_name = source.data or job.get("data", {}).get("name")
    model_name = source.model or job.get("model", {}).get("name")
    if data_name is None or model_name is None:
        raise InputError(
            f"there is no config.json above {file} that says what these are the weights of: "
            "give --data and --model."
        )
    activation = source.activation or job.get("model", {}).get("activation", "relu")
    data = load(data_name)
    model = build(
        model_name,
        data.input_shape,
        data.num_classes,
        activation=activation,
        vectors=data.vectors,
    )
    if file.suffix == ".safetensors":
        state = load_sparse(file)
    else:
        state = _weights_in(load_checkpoint(file), file)
    check_fits(state, model, str(file))
    model.load_state_dict(state)
    return model, data


def open_path(
    path: str, data: str | None, model: str | None, activation: str | None
) -> tuple[nn.Module, Data]:
    """Return a trained model and its data set: a module:function, or as `open_model` finds it."""
    if not is_function(path):
        return open_model(Source(Path(path), data, model, activation))
    if data is None:
        raise InputError(f"{path} does not say what it was trained on: give --data.")
    loaded = load(data)
    model_of = build(path, loaded.input_shape, loaded.num_classes, vectors=loaded.vectors)
    return model_of, loaded


def class_number(name: str, data: Data, what: str, *others: str) -> int:
    """Return the number of a class, given by name or number.

    Raises InputError for a `what` that is none, with the nearest; `others` are known as well.
    """
    if name in data.classes:
        return data.classes.index(name)
    if name.isdigit() and int(name) < data.num_classes:
        return int(name)
    raise unknown(what, name, [*others, *data.classes])


def _job_of(file: Path) -> Mapping[str, Any]:
    """Return the config.json in the folder of `file` or in one of the three above it."""
    for folder in list(file.resolve().parents)[:4]:
        if (folder / "config.json").is_file():
            record = read_json(folder / "config.json")
            if isinstance(record, dict) and "schema" in record:
                return record
    return {}


def _weights_in(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{file} holds no weights: neither under 'model' nor by themselves.")
    return state


def measure(config: EvaluateConfig) -> dict[str, float | None]:
    """Return the figures that `config` asks for, by name; write the curves behind them.

    accuracy, loss and ece are on the test set; gini and sparsity (the share that is exactly 0)
    are of the weights of linear, convolution and recurrent layers; the others, which `measuring`
    has, are on some samples. A measure may have several figures, None where one cannot be told.
    Raises InputError for unknown measures or methods, and as `open_model`.
    """
    check_evaluate(config)
    find(config.method)
    model, data = open_path(config.path, config.data, config.model, config.activation)
    settings = Settings(
        samples=config.samples, method=config.method, target=config.target,
        steps=config.attack_steps, restarts=config.restarts, seed=config.seed,
        batch_size=config.batch_size,
    )  # fmt: skip
    names = tuple(name for name in config.measures if name in EXPLAINED)
    found = measure_explanations(model, data, names, settings, progress=True) if names else {}
    plain = _figures(model, data, config) if len(names) < len(config.measures) else {}
    figures: dict[str, float | None] = {}
    for name in config.measures:
        figures |= found[name].figures if name in found else {name: plain[name]}
    if config.out is not None:
        told = {
            "schema": 1,
            "kind": "measures",
            "model": config.path,
            "data": data.name,
            "settings": dataclasses.asdict(settings),
            "figures": figures,
            "curves": {name: each.curves for name, each in found.items()},
            **environment(),
        }
        write_json(config.out, told, indent=None)
    return figures


def _figures(model: nn.Module, data: Data, config: EvaluateConfig) -> dict[str, float]:
    """Return what is measured on the whole test set and on the weights."""
    found = {}
    if {"accuracy", "loss", "ece"} & set(config.measures):
        logits = predict(model, data.test, batch_size=config.batch_size)
        check_told(logits)
        found = scores(logits, data.test.tensors[1])
    if {"gini", "sparsity"} & set(config.measures):
        layers = connection_weights(model)
        weights = torch.cat([weight.flatten() for weight in layers.values()])
        found |= {"gini": gini(weights), "sparsity": float((weights == 0).double().mean())}
    return found


def prune_weights(config: PruneConfig) -> tuple[Path, dict[str, Any]]:
    """Write pruned weights as safetensors, and beside them what accuracy every amount leaves.

    The weights to go are chosen with BatchNorm folded (paper 001, A.6.3) and set to zero in the
    unfolded model, which computes the same and fits the same code. Returns the file's path and
    what is in the JSON file beside it, with the sizes of an export. Raises InputError for
    arguments that cannot work.
    """
    out = check_prune(config)
    model, data = open_model(config)
    y = data.test.tensors[1]

    def accuracy(candidate: nn.Module) -> float:
        return float((predict(candidate, data.test).argmax(1) == y).double().mean())

    chosen: dict[str, Any] = {
        "criterion": config.criterion,
        "data": data.train if config.relevance_data == "train" else data.test,
        "layers": config.layers,
    }
    pruned = prune(model, 0.0)
    for name, keep in masks(fold_batch_norm(model), config.amount, **chosen).items():
        pruned.get_parameter(name).data.masked_fill_(~keep, 0.0)
    told: dict[str, Any] = {
        "criterion": config.criterion,
        "layers": config.layers,
        "relevance_data": config.relevance_data if config.criterion == "relevance" else None,
        "amount": config.amount,
        "accuracy_before": accuracy(model),
        "accuracy_after": accuracy(pruned),
        **curve(model, accuracy, AMOUNTS, **chosen),
    }
    save_weights(out, pruned.state_dict())
    if config.export:
        size = save_sparse(config.export, pruned.state_dict())
        told["export"] = {"file": str(config.export), "bytes": size.file, "dense": size.dense}
    write_json(out.with_suffix(".json"), told)
    return out, told


def explain(config: AttributeConfig) -> dict[str, Any]:
    """Write the attributions of test samples, what they are, and a page that shows them.

    attributions.safetensors has the inputs as the model takes them, their attributions and, for
    each sample, its number, label, prediction, target and completeness error. Returns what is in
    attributions.json beside it. Raises InputError for arguments that cannot work.
    """
    check_attribute(config)
    method = find(config.method)
    model, data = open_path(config.path, config.data, config.model, config.activation)
    if is_spiking(model) and method.differentiates and config.method != "lrp":
        # What it is asked for is a gradient, which only a surrogate has.
        cast(SpikingNet, model).spike_by("surrogate")
    x, y = data.test.tensors
    drawn = np.random.default_rng(config.seed).permutation(len(x))[: config.samples]
    index = torch.from_numpy(np.sort(drawn))
    x, y = x[index], y[index]
    outputs = predict(model, TensorDataset(x, y))
    predicted = outputs.argmax(1)
    target = _target(config.target, predicted, y, data)
    score = outputs.gather(1, target[:, None])[:, 0]
    options: dict[str, Any] = {}
    if config.method == "lrp":
        options["rule"] = config.rule
    if method.baselines == "many":
        options["baselines"] = data.train.tensors[0][:BASELINES]
    layer, by_word = config.layer, False
    if data.words and layer is None and method.differentiates:
        # A number of a word has no gradient: what is explained is its vector, summed over.
        layer, by_word = _embedding(model), True
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        values, error = attribute(
            model, x, target, method=config.method, layer=layer, return_error=True,
            batch_size=config.batch_size, seed=config.seed if method.drawn else None, progress=True,
            **options,
        )  # fmt: skip
    values = values.sum(2) if by_word else values
    warned = list(dict.fromkeys(str(each.message) for each in doubts))
    out = config.out or free_folder("attribute", data.name, False)
    file, page = out / "attributions.safetensors", out / "attributions.html"
    title = METHODS[config.method].title
    title += f" ({config.rule})" if config.method == "lrp" else ""
    title += f" at layer {config.layer}" if config.layer else ""
    title += " of words" if by_word else ""
    goal = "f(x)" if config.method == "lrp" else "f(x) - f(baseline)"
    missed = f"they add up to {goal} but for {float(error.abs().max()):.3g}"
    told = {
        "schema": 1,
        "kind": "attributions",
        "title": title,
        "method": config.method,
        "source": method.source,
        "options": {key: each for key, each in options.items() if key != "baselines"},
        "baselines": f"the first {BASELINES} training samples" if "baselines" in options else None,
        "layer": layer,
        "target": config.target,
        "samples": len(x),
        "shape": list(values.shape),
        "seed": config.seed,
        "model": config.path,
        "data": {"name": data.name, "classes": list(data.classes)},
        "largest_error": float(error.abs().max()),
        "warnings": warned,
        "error_text": missed if method.sums else "they are no shares of the output",
        "file": str(file),
        "page": str(page),
        **environment(),
    }
    save_weights(
        file,
        {
            "attributions": values, "inputs": x, "index": index, "label": y, "error": error,
            "predicted": predicted, "target": target, "score": score,
        },
    )  # fmt: skip
    write_page(
        page,
        Explanation(
            title=title,
            data=data.name,
            values=values.numpy(),
            inputs=data.restore(x).numpy(),
            classes=data.classes,
            index=index.tolist(),
            labels=y.tolist(),
            predicted=predicted.tolist(),
            targets=target.tolist(),
            scores=score.tolist(),
            errors=error.tolist(),
            goal=goal if method.sums else "",
            warnings=warned,
            words=_words(x, values, data),
        ),
    )
    write_json(out / "attributions.json", told)
    return told


def _embedding(model: nn.Module) -> str:
    """Return the name of the layer that looks up word vectors."""
    found = embedding_of(model)
    if found is not None:
        return found
    raise InputError(
        "the model has no nn.Embedding, whose output would be explained: give --layer, or lime, "
        "kernel_shap or occlusion."
    )


def _words(x: Tensor, values: Tensor, data: Data) -> list[list[str]]:
    """Return the words of each text, where there is an attribution for each of them."""
    if not data.words or values.shape != x.shape:
        return []
    return [[data.words[number] for number in row] for row in x.tolist()]


def _target(given: str, predicted: Tensor, labels: Tensor, data: Data) -> Tensor:
    """Return the class to explain of each sample."""
    if given == "predicted":
        return predicted
    if given == "label":
        return labels
    return torch.full_like(labels, class_number(given, data, "target", "predicted", "label"))
