"""Write a run folder that looks like a real one, from random numbers: nothing is trained here."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Json = dict[str, Any]

METHODS = ("sgd", "lfp", "sgd-l1")
LAYERS = (("fc1", 64, 64), ("fc2", 64, 32), ("fc3", 32, 10))
REMOVED = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
FRACTIONS = tuple(k / 10 for k in range(10))
BATCH, TRAIN = 32, 1437

# Final accuracy, epochs to settle, CPU seconds per step, Laplace share of the weights, how much
# of the weights can go, loss, calibration error.
_NATURE: dict[str, tuple[float, ...]] = {
    "sgd": (0.973, 3.0, 2.1e-3, 0.2, 0.89, 0.095, 0.012),
    "lfp": (0.974, 4.2, 2.25e-3, 1.4, 0.955, 0.102, 0.031),
    "sgd-l1": (0.968, 3.4, 2.11e-3, 1.1, 0.94, 0.118, 0.016),
}

# Student's t at 97.5%, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def write_run(
    folder: Path,
    methods: Sequence[str] = METHODS,
    seeds: int = 3,
    epochs: int = 30,
    samples: int = 18,
    boundary: bool = False,
) -> Path:
    """Write a whole run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    final = {
        method: [_train(folder, method, s, epochs) for s in range(seeds)] for method in methods
    }
    _json(folder / "config.json", config(methods, seeds, epochs))
    _json(folder / "results.json", results(final))
    if samples:
        _json(folder / "samples.json", _samples(methods, samples))
    if boundary:
        _json(folder / "boundary.json", _boundary(methods))
    return folder


def config(methods: Sequence[str], seeds: int, epochs: int) -> Json:
    """Return a configuration as the contract of the run folder has it."""
    layers = [{"name": n, "kind": "Linear", "shape": [b, a]} for n, a, b in LAYERS]
    return {
        "schema": 1,
        "command": f"attrain compare --data digits --methods {' '.join(methods)} --seeds {seeds} "
        f"--epochs {epochs} --out runs/digits",
        "started": "2026-01-31T12:00:00+00:00",
        "versions": {
            "attrain": "0.1.0",
            "torch": "2.15.0",
            "numpy": "2.3.1",
            "python": "3.11.9",
            "platform": "Linux x86_64",
        },
        "data": {
            "name": "digits",
            "train": TRAIN,
            "test": 360,
            "validation": 0,
            "classes": [str(k) for k in range(10)],
            "input_shape": [1, 8, 8],
            "notes": "1,797 handwritten digits, stratified split",
        },
        "model": {"name": "mlp", "parameters": 6570, "layers": layers},
        "training": {
            "epochs": epochs,
            "batch_size": BATCH,
            "optimizer": "sgd",
            "schedule": "cosine",
            "momentum": 0.9,
            "clip_norm": None,
            "precision": "32-true",
            "device": "cpu",
        },
        "methods": {method: _settings(method) for method in methods},
        "tuning": [
            {
                "method": "sgd-l1",
                "parameter": "l1",
                "candidates": [1e-5, 1e-4, 1e-3],
                "chosen": 1e-4,
                "criterion": "validation accuracy at 90% removed",
                "scores": [0.883, 0.951, 0.874],
            }
        ],
        "seeds": list(range(seeds)),
        "warnings": ["3 of 64 units of fc1 are exactly zero for every training example (lfp)."],
    }


def results(final: dict[str, list[Json]]) -> Json:
    """Return results aggregated from what each seed ended with, as the contract has them."""
    baseline = next(iter(final), "")
    methods, differences = {}, {}
    for method, runs in final.items():
        keys = runs[0] if runs else {}
        values = {key: [run[key] for run in runs] for key in keys}
        methods[method] = {
            "seeds": list(range(len(runs))),
            **{key: _estimate(each) for key, each in values.items()},
        }
        if method != baseline:
            base = final[baseline]
            differences[method] = {
                "baseline": baseline,
                **{k: _paired(v, [run[k] for run in base]) for k, v in values.items()},
            }
    return {
        "schema": 1,
        "kind": "compare",
        "id": "compare",
        "budget": None,
        "methods": methods,
        "differences": differences,
        "rows": [],
        "claims": [],
    }


def _settings(method: str) -> Json:
    lfp = method.startswith("lfp")
    return {
        "description": "Layer-wise Feedback Propagation" if lfp else "gradient descent",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "l1": 1e-4 if method.endswith("l1") else 0.0,
        "credit": {"rule": "epsilon", "scale": "relative", "epsilon": 1e-6} if lfp else None,
        "objective": "softmax reward" if lfp else "cross entropy",
        "citation": "Weber et al., Efficient and Flexible Neural Network Training through "
        "Layer-wise Feedback Propagation, 2024"
        if lfp
        else "Robbins and Monro, A Stochastic Approximation Method, 1951",
    }


def _nature(method: str) -> tuple[float, ...]:
    return _NATURE.get(method, _NATURE["sgd"])


def _train(folder: Path, method: str, seed: int, epochs: int) -> Json:
    # The seed's own luck is shared by all methods, as the same split and start would share it.
    luck = np.random.default_rng(seed).normal()
    noise = np.random.default_rng([seed, *method.encode()])
    accuracy, settle, step_s, peaked, robust, loss, ece = _nature(method)
    steps = math.ceil(TRAIN / BATCH)
    place = folder / method / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    accuracy += 0.003 * luck + noise.normal(0, 0.001)
    step_s *= 1 + noise.normal(0, 0.01)
    lines = []
    for epoch in range(1, epochs + 1):
        rest = math.exp(-epoch / settle) + 0.02 * math.exp(-epoch / 15)
        cpu = epoch * steps * step_s
        lines.append(
            {
                "epoch": epoch,
                "step": epoch * steps,
                "wall_s": cpu * 1.04,
                "cpu_s": cpu,
                "learning_rate": 0.05 * (1 + math.cos(math.pi * epoch / epochs)),
                "train_loss": 2.2 * rest + 0.002 * settle + abs(noise.normal(0, 0.001)),
                "train_accuracy": min(1.0, 1 - 0.8 * rest * (1 + noise.normal(0, 0.03))),
                "test_loss": 2.2 * rest + loss + noise.normal(0, 0.003),
                "test_accuracy": round((accuracy - 0.75 * rest + noise.normal(0, 0.002)) * 360)
                / 360,
                "update_density": 0.87 - 0.3 * (method == "lfp") + noise.normal(0, 0.01),
            }
        )
    place.joinpath("metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    last = lines[-1] if lines else {"test_accuracy": accuracy, "test_loss": loss}
    curve = _pruned(last["test_accuracy"], robust + 0.01 * noise.normal(), 0.1)
    local = _pruned(last["test_accuracy"], robust - 0.06 + 0.01 * noise.normal(), 0.1)
    weights = _weights(noise, peaked)
    removal, robustness = _removal(noise, accuracy, peaked), _robustness(noise, accuracy, peaked)
    drop = removal["backgrounds"]["corner"]
    _json(
        place / "analysis.json",
        {
            "calibration": {"ece": ece, "bins": []},
            "pruning": {
                "magnitude-global": {"removed": list(REMOVED), "accuracy": curve},
                "magnitude-local": {"removed": list(REMOVED), "accuracy": local},
            },
            "weights": weights,
            "confusion": [],
            "faithfulness": removal,
            "robustness": robustness,
        },
    )
    at = dict(zip(REMOVED, curve, strict=True))
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "ece": ece * (1 + noise.normal(0, 0.1)),
        "gini": weights["gini"],
        "update_density": lines[-1]["update_density"] if lines else 1.0,
        "signs_changed": 0.12 - 0.07 * (method == "lfp"),
        "accuracy_90_removed": at[0.9],
        "accuracy_95_removed": at[0.95],
        "accuracy_98_removed": at[0.98],
        "faithfulness": _area(FRACTIONS, drop["random"]) - _area(FRACTIONS, drop["accuracy"]),
        "accuracy_drop": _area(FRACTIONS, drop["accuracy"]),
        "accuracy_drop_random": _area(FRACTIONS, drop["random"]),
        **{
            f"{kind}_accuracy": _area(robustness[kind]["sizes"], robustness[kind]["overall"])
            for kind in ("noise", "fgsm", "pgd")
        },
        "step_cpu_s": step_s,
        "train_wall_s": epochs * steps * step_s * 1.04,
        "train_cpu_s": epochs * steps * step_s,
        "peak_memory_bytes": 412e6 * (1 + 0.01 * (method == "lfp") + noise.normal(0, 0.002)),
    }


def _pruned(dense: float, robust: float, chance: float) -> list[float]:
    """Accuracy falls from dense to chance around the share `robust`, in the log of what is kept."""
    kept = np.log10(1 - np.array(REMOVED))
    fall = 1 / (1 + np.exp(-9 * (kept - np.log10(max(1 - robust, 0.005)) + 0.28)))
    return [round(float(v) * 360) / 360 for v in chance + (dense - chance) * fall]


def _removal(noise: np.random.Generator, accuracy: float, peaked: float) -> Json:
    """Accuracy falls with what is replaced, faster in the order of a map than at random."""
    share = np.array(FRACTIONS)

    def falling(rate: float) -> list[float]:
        lost = np.exp(-rate * share) + 0.01 * noise.normal(size=share.size)
        return [float(v) for v in np.clip(0.05 + (accuracy - 0.05) * lost, 0, 1)]

    return {
        "method": "saliency",
        "target": "predicted",
        "samples": 256,
        "fractions": list(FRACTIONS),
        "backgrounds": {
            name: {"accuracy": falling(rate - 1.5 * peaked), "random": falling(1.6)}
            for name, rate in (("corner", 7.0), ("mean", 6.0))
        },
    }


def _robustness(noise: np.random.Generator, accuracy: float, peaked: float) -> Json:
    found: Json = {"samples": 256}
    for kind, most, rate in (("noise", 0.5, 1.0), ("fgsm", 0.2, 14.0), ("pgd", 0.2, 19.0)):
        sizes = [most * share for share in (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)]
        kept = np.exp(-(rate - peaked) * np.array(sizes)) * (1 + 0.01 * noise.normal())
        kept = np.clip(kept, 0, 1)
        kept[0] = 1
        found[kind] = {
            "sizes": sizes,
            "overall": [float(v) for v in accuracy * kept],
            "of_correct": [float(v) for v in kept],
        }
    found["noise"]["draws"] = 3
    found["fgsm"]["without_gradient"] = 0.0
    found["pgd"] |= {"steps": 10, "restarts": 1, "without_gradient": 0.0}
    return found


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.trapezoid(y, x)) / (x[-1] - x[0])


def _weights(noise: np.random.Generator, peaked: float) -> Json:
    edges = np.linspace(-1, 1, 82)
    layers, every = [], []
    for name, a, b in LAYERS:
        values = noise.normal(size=a * b) * np.abs(noise.normal(size=a * b)) ** peaked
        share = np.abs(values) / np.abs(values).max()
        counts, _ = np.histogram(values / np.abs(values).max(), edges)
        layers.append(
            {
                "name": name,
                "gini": gini(values),
                "count": a * b,
                "counts": counts.tolist(),
                "theta_sparsity": {str(t): float((share < t).mean()) for t in (0.01, 0.05, 0.25)},
                "quantiles": np.percentile(share, [0, 25, 50, 75, 100]).tolist(),
            }
        )
        every.append(values)
    return {"gini": gini(np.concatenate(every)), "bin_edges": edges.tolist(), "layers": layers}


def gini(values: Array) -> float:
    """Return the Gini coefficient of the absolute values."""
    size = np.sort(np.abs(values))
    rank = np.arange(1, size.size + 1)
    return float(((2 * rank - size.size - 1) * size).sum() / (size.size * size.sum()))


def _samples(methods: Sequence[str], count: int) -> Json:
    from sklearn.datasets import load_digits

    digits = load_digits()
    noise = np.random.default_rng(7)
    chosen = noise.permutation(len(digits.target))[:count]
    pixels, labels = digits.images[chosen] / 16, digits.target[chosen]
    explained = {}
    for k, method in enumerate(methods):
        wrong = noise.random(count) < 0.12
        predicted = np.where(wrong, (labels + noise.integers(1, 10, count)) % 10, labels)
        focus = 1 + 1.2 * (method == "lfp")
        raw = (0.15 + pixels) * np.abs(noise.normal(size=pixels.shape)) ** focus * (1 + 0.4 * k)
        explained[method] = {
            "seed": 0,
            "predictions": predicted.tolist(),
            "confidence": np.where(wrong, 0.55, 0.97).tolist(),
            "saliency": raw.round(4).tolist(),
        }
    return {
        "classes": [str(k) for k in range(10)],
        "samples": [
            {
                "index": int(index),
                "label": int(label),
                "shape": [1, 8, 8],
                "pixels": [image.round(3).tolist()],
            }
            for index, label, image in zip(chosen, labels, pixels, strict=True)
        ],
        "methods": explained,
    }


def _boundary(methods: Sequence[str], size: int = 100, arms: int = 3) -> Json:
    """Decide between swirling arms, each method with its own slant."""
    noise = np.random.default_rng(3)
    radius = np.linspace(0.05, 1, 60)
    points = []
    for arm in range(arms):
        angle = 4 * arm + 4 * radius + 0.2 * noise.normal(size=60)
        points += [
            [float(r * np.sin(a)), float(r * np.cos(a)), arm]
            for r, a in zip(radius, angle, strict=True)
        ]
    axis = np.linspace(-1.2, 1.2, size)
    x, y = np.meshgrid(axis, axis)
    maps = {}
    for k, method in enumerate(methods):
        angle = np.arctan2(x, y) - 4 * np.hypot(x, y) + 0.15 * k * np.sin(6 * y)
        away = [np.cos(angle - 4 * arm) for arm in range(arms)]
        maps[method] = {"seed": 0, "classes": np.argmax(away, axis=0).tolist()}
    return {
        "x": [-1.2, 1.2],
        "y": [-1.2, 1.2],
        "size": size,
        "classes": [f"arm {arm + 1}" for arm in range(arms)],
        "points": points,
        "methods": maps,
    }


def _estimate(values: list[float]) -> Json:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "values": values}


def _paired(ours: list[float], theirs: list[float]) -> Json:
    gaps = np.array(ours) - np.array(theirs)
    mean, n = float(gaps.mean()), len(gaps)
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n, "clear": False}
    half = _T[n - 1] * float(gaps.std(ddof=1)) / math.sqrt(n)
    low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "n": n, "clear": low > 0 or high < 0}


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
