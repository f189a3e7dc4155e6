"""The proposal's table 1, which compares methods of attribution in words, measured."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from attrain.studies.attribution_claims import Findings, claims
from attrain.studies.attribution_figures import (
    draw_agreement,
    draw_maps,
    draw_measures,
    draw_removal,
)
from attrain.studies.attribution_measures import (
    measure_axioms,
    measure_cost,
    measure_method,
    measure_model,
)
from attrain.studies.attribution_subject import VARIANTS, Config, subject
from attrain.studies.study import Conclusion, Result, Row, Study, TableRow, measured

MEASURES: Mapping[str, str] = {
    "completeness": "completeness error, share of the change",
    "noise_change": "relative change under noise",
    "noise_rank": "rank correlation under noise",
    "seed_spread": "spread over seeds, share of the mean",
    "seed_rank": "rank correlation of two seeds",
    "baseline_change": "relative change from the black baseline",
    "baseline_rank": "rank correlation of two baselines",
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
    "shapley_error": "distance to exact Shapley values, relative",
    "shapley_rank": "rank correlation with exact Shapley values",
    "randomised": "rank correlation with a random model's",
    "local_rank": "rank correlation of local and global sizes",
    "global_rank": "rank correlation of global sizes with removal",
}
"""What a row of a method holds -> how the table calls it."""


def rows(config: Config) -> list[Row]:
    """Return, seed by seed, a row for the model, its axioms and every method; then the costs."""
    found = []
    for seed in range(config.seeds):
        found.append(Row(f"model, seed {seed}", partial(_model, config, seed)))
        found.append(Row(f"axioms, seed {seed}", partial(_axioms, config, seed)))
        found += [
            Row(f"{name}, seed {seed}", partial(_method, config, seed, name)) for name in VARIANTS
        ]
    costs = [Row(f"cost, {name}", partial(_cost, config, name), timed=True) for name in VARIANTS]
    return [*found, *costs]


def _model(config: Config, seed: int) -> Result:
    return measure_model(subject(config, seed))


def _axioms(config: Config, seed: int) -> Result:
    return measure_axioms(subject(config, seed))


def _method(config: Config, seed: int, name: str) -> Result:
    return measure_method(subject(config, seed), VARIANTS[name])


def _cost(config: Config, name: str) -> Result:
    return measure_cost(subject(config, config.seeds - 1), VARIANTS[name])


def conclude(config: Config, results: Mapping[str, Result], out: Path) -> Conclusion:
    """Return the table, the claims of the paper's table, and the figures."""
    found = Findings(config, results)
    folder = out / "figures"
    drawn = [
        draw_measures(found, folder / "attribution-methods-measures.svg"),
        draw_removal(found, folder / "attribution-methods-removal.svg"),
        draw_agreement(found, folder / "attribution-methods-agreement.svg"),
        draw_maps(found, folder / "attribution-methods-maps.svg"),
    ]
    return Conclusion(_table(found), claims(found), drawn)


def _table(found: Findings) -> list[TableRow]:
    table = [measured("test accuracy", found.model("test_accuracy"), unit="accuracy")]
    for name in VARIANTS:
        seconds = found.results[f"cost, {name}"]["seconds"]
        table.append(measured(f"{name}: cost", found.cost(name), unit="gradients"))
        table.append(measured(f"{name}: CPU time of a sample", [1e3 * seconds], unit="ms"))
        for key, label in MEASURES.items():
            if found.has(name, key):
                table.append(measured(f"{name}: {label}", found.method(name, key)))
        table += _areas(found, name)
    for key in ("comprehensiveness", "sufficiency"):
        table.append(measured(f"random order: {key}", found.random(key)))
    return [*table, *_areas(found, "random")]


def _areas(found: Findings, name: str) -> list[TableRow]:
    label = "random order" if name == "random" else name
    return [
        measured(f"{label}: {what}", found.area(name, curve), unit=unit)
        for curve, what, unit in (
            ("accuracy", "accuracy, area with top pixels black", "accuracy"),
            ("accuracy_mean", "accuracy, area with top pixels at their mean", "accuracy"),
            ("probability", "probability, area with top pixels black", "share"),
        )
    ]


STUDY = Study(
    id="attribution-methods",
    title="Methods of attribution, compared: cost, errors, stability, faithfulness",
    source="A Novel Training Method for Deep Neural Networks Leveraging Attribution Graphs, "
    "table 1",
    deviations=(
        "The table has words and no numbers: every threshold in a claim is ours.",
        "LeNet on MNIST, trained by gradient descent. The logit of the predicted class is "
        "explained; baselines are black, and ten training samples for DeepSHAP and GradientSHAP.",
        "LIME and Kernel SHAP see 8x8 cells, everything else sees pixels, and all are compared at "
        "those cells.",
        "Methods without a baseline (saliency, input x gradient, SmoothGrad, LRP) refer to inputs "
        "of 0, which is the mean grey and not black; pixels are removed to black.",
        "Costs are measured on the last seed's model, in one process.",
        "The smoke budget takes the 8x8 digits of scikit-learn and an MLP.",
    ),
    budgets={
        "smoke": Config(
            data="digits",
            model="mlp",
            epochs=5,
            seeds=1,
            samples=8,
            few=3,
            draws=2,
            surrogate=70,
            background=3,
            cost_batch=4,
            pairs=1,
        ),
        "quick": Config(seeds=2, samples=40, epochs=1, pairs=5),
        "full": Config(),
    },
    rows=rows,
    conclude=conclude,
)
