"""Models that are already trained: found by their files, measured, pruned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attrain.config import (
    EvaluateConfig,
    PruneConfig,
    Source,
    check_evaluate,
    check_prune,
    weights_file,
)
from attrain.data import Data, load
from attrain.errors import InputError
from attrain.metrics.sparsity import connection_weights, gini
from attrain.models import build
from attrain.pruning import AMOUNTS, curve, fold_batch_norm, masks, prune
from attrain.runs import (
    check_fits,
    load_checkpoint,
    read_json,
    save_weights,
    write_json,
)
from attrain.sparse import load_sparse, save_sparse
from attrain.training import evaluate, predict


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
    model = build(model_name, data.input_shape, data.num_classes, activation=activation)
    if file.suffix == ".safetensors":
        state = load_sparse(file)
    else:
        state = _weights_in(load_checkpoint(file), file)
    check_fits(state, model, str(file))
    model.load_state_dict(state)
    return model, data


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


def measure(config: EvaluateConfig) -> dict[str, float]:
    """Return the measures that `config` asks for, each with its name.

    accuracy, loss and ece are on the test set; gini and sparsity (the share that is exactly 0)
    are of the weights of linear and convolution layers. Raises InputError for unknown measures and
    as `open_model`.
    """
    check_evaluate(config)
    model, data = open_model(config)
    found = evaluate(model, data.test)
    weights = torch.cat([weight.flatten() for weight in connection_weights(model).values()])
    found |= {"gini": gini(weights), "sparsity": float((weights == 0).double().mean())}
    return {name: found[name] for name in config.measures}


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
