"""The study of attribution methods: what it measures by hand, and what it concludes from it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attrain.attribution import METHODS
from attrain.studies import attribution_measures as measures
from attrain.studies import attribution_methods as study
from attrain.studies.attribution_claims import Findings, beyond, both, each_pair, less, told
from attrain.studies.attribution_subject import (
    VARIANTS,
    Config,
    Subject,
    Variant,
    blurred,
    by_cells,
    games,
)

SMOKE = study.STUDY.budgets["smoke"]
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


class Bilinear(nn.Module):
    """Scores of pictures [N, 1, 10, 10]: the sum, and the upper half times the lower."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x[:, 0, :5].sum((1, 2)), x[:, 0, 5:].sum((1, 2))
        return torch.stack([upper + lower, upper * lower], 1) * self.scale


def subject(model: nn.Module | None = None, few: int = 2, **config: Any) -> Subject:
    torch.manual_seed(0)
    x = torch.rand(4, 1, 10, 10) + 0.6
    return Subject(
        config=Config(seeds=1, samples=4, few=few, **config),
        seed=0,
        model=model or Bilinear(),
        x=x,
        y=torch.tensor([0, 1, 1, 1]),
        target=torch.tensor([1, 1, 1, 1]),
        black=0.0,
        typical=torch.rand(3, 1, 10, 10),
        mean=torch.full((1, 1, 10, 10), 0.5),
        accuracy=0.5,
    )


# What is measured ---------------------------------------------------------------------------------


def test_every_method_is_in_the_table_and_every_row_has_a_family():
    assert {variant.method for variant in VARIANTS.values()} == set(METHODS)
    names = [row.name for row in study.rows(SMOKE)]
    assert names == list(dict.fromkeys(names))
    assert [row.name for row in study.rows(SMOKE) if row.timed] == [f"cost, {n}" for n in VARIANTS]


def test_cells_add_up_and_a_masked_value_counts_once():
    values = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert by_cells(values, 2).tolist() == [[10.0, 18.0, 42.0, 50.0]]
    flat = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])[None, None]
    assert by_cells(flat, 2, masked=True).tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_shapley_values_of_a_product_are_known():
    # Cells 0..4 are the upper half and 5..9 the lower: v(S) = U(S) L(S), and every cell has half
    # of what it is worth with the whole of the other half, since that joins before it or after.
    of = subject()
    found = games(of)
    cells = by_cells(of.few, (2, 5)).double()
    upper, lower = cells[:, :5].sum(1, keepdim=True), cells[:, 5:].sum(1, keepdim=True)
    close(found.values, torch.cat([cells[:, :5] * lower, cells[:, 5:] * upper], 1) / 2)
    assert (found.interaction > 0.005).all()
    exact = measures._exact(of, VARIANTS["Kernel SHAP"], torch.zeros(2, 1, 10, 10))
    assert exact["shapley_error"] < 0.2
    additive = replace(of, target=torch.zeros(4, dtype=torch.long))
    assert float(games(additive).interaction.max()) < 1e-8
    close(games(additive).values, cells)


def test_completeness_is_the_error_over_the_change():
    of = subject()
    values, error = of.attribute(Variant("input_x_gradient"), of.x)
    # Products count twice: the error is as large as the output itself.
    close(values.flatten(1).sum(1), 2 * of.output(of.x))
    assert measures._completeness(of, Variant("input_x_gradient"), error) == pytest.approx(1)
    _, error = of.attribute(VARIANTS["integrated gradients"], of.x)
    assert measures._completeness(of, VARIANTS["integrated gradients"], error) < 1e-5


def test_a_blur_keeps_the_sum_of_what_is_not_at_the_border():
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 8, 8] = 1.0
    found = blurred(x - 1, -1.0) + 1
    assert float(found.sum()) == pytest.approx(1, abs=1e-5) and float(found.max()) < 0.1
    assert float(found[0, 0, 8, 8]) == float(found.max())


def test_removing_by_size_takes_the_answer_as_by_hand():
    of = replace(subject(), y=torch.tensor([1, 1, 1, 1]))
    upper = torch.zeros(4, 1, 10, 10)
    upper[:, :, :5] = 1.0
    found = measures.faithful(of, upper)
    # With the upper half gone the product is 0 and the sum is not: class 0 wins.
    assert found["accuracy"][:1] == [1.0] and found["accuracy"][5:] == [0.0] * 5
    assert found["probability"][0] == pytest.approx(1) and found["probability"][5] < 1e-3
    assert found["positive"] == found["probability"]


def test_signs_are_wrong_where_the_way_back_is_short():
    class Hill(nn.Module):  # x - x^2 of the first pixel: it rises at .3 and is lower at 1.3
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.stack([flat.sum(1) * 0, flat[:, 0] - flat[:, 0] ** 2], 1)

    of = subject(Hill())
    of.x[:, :, 0, 0] = 0.3
    # Of 20 pixels one has a gradient; of the others the sign is 0, as their effect.
    assert measures._wrong_signs(of) == pytest.approx(1 / measures.SIGNS)


def test_a_saturated_probability_leaves_the_gradient_nothing():
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([s * 0 + 1, s / 4], 1)

    found = measures._saturation(subject(Steep()))
    assert found["gradient"] < 0.05 and found["integrated"] == pytest.approx(1, abs=0.05)


def test_axioms_are_counted_on_a_network():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(300, 5), nn.ReLU(),
        nn.Linear(5, 2),
    ).eval()  # fmt: skip
    of = subject(network)
    missed = measures._missed(of)
    assert missed["integrated"] == 0 and missed["false"] == 0 and missed["mattered"] > 10
    invariant = measures._rewritten(of, VARIANTS["integrated gradients"])
    assert invariant["function"] < 1e-5 and invariant["change"] < 1e-3
    assert measures._rewritten(of, VARIANTS["LRP"])["change"] < 1e-3
    plus = measures._rewritten(of, VARIANTS["LRP, epsilon-plus"])
    assert plus["function"] < 1e-5 and plus["change"] > 0.05
    kept = measures._conservation(of, "LRP")
    assert kept["layers"] == ["4", "3", "2", "1", "0", "inputs"]
    assert max(kept["no biases"]) < 1e-4 < max(kept["biases"])
    told = measures._agnostic(of, VARIANTS["Kernel SHAP"])
    assert told["gradient"] == 0.0 and told["rank"] > 0.5


def test_a_bonus_is_seen_by_kernel_shap():
    of = subject(few=5)
    found = measures._inconsistent(of, VARIANTS["Kernel SHAP"])
    assert found["cells"] == 2 and found["fell"] == 0
    x = torch.zeros(1, 1, 10, 10)
    first, second = torch.zeros(10, 10, dtype=torch.bool), torch.zeros(10, 10, dtype=torch.bool)
    first[0, :2], second[9, 9] = True, True
    more = measures.Added(of.model, first, second, -1.0)
    assert more(x).tolist() == [[1.0, 1.0]]
    x[0, 0, 0, 0] = 3.0  # the mean over black of the first cell is 2.5 now
    assert more(x).tolist() == [[3.0 + 2.5, 2.5]]


def test_cost_counts_cpu_time():
    found = measures.measure_cost(subject(pairs=3, cost_batch=2), VARIANTS["saliency"])
    assert len(found["ratios"]) == 3 and min(found["ratios"]) > 0.5
    assert 0 < found["seconds"] < 0.1


# What is concluded --------------------------------------------------------------------------------


def test_verdicts_need_an_interval_on_one_side():
    assert beyond([0.5, 0.51, 0.49], 0.9, above=False) is True
    assert beyond([0.5, 0.51, 0.49], 0.9, above=True) is False
    assert beyond([0.5, 1.5, 0.6], 0.9, above=False) == "unclear"
    assert beyond([0.5], 0.9, above=False) == "unclear"
    assert each_pair([1.1, 1.2], 1.5, above=False) is True
    assert each_pair([1.6, 1.7], 1.5, above=False) is False
    assert each_pair([1.1, 1.7], 1.5, above=False) == "unclear"
    assert less([1.0, 1.1, 0.9], [2.0, 2.2, 2.1]) is True
    assert less([2.0, 2.2, 2.1], [1.0, 1.1, 0.9]) is False
    assert less([1.0, 2.2, 0.1], [1.1, 1.9, 0.2]) == "unclear"
    assert both(True, "unclear") == "unclear" and both(False, "unclear") is False
    assert both(True, True) is True


def test_figures_are_told_with_their_interval():
    assert told([0.5]) == "0.5"
    assert told([0.5, 0.5]) == "0.5 ± 0"
    assert told([0.11, 0.13], "%") == "12 ± 13%"
    assert told([float("nan"), 1.0]) == "unknown"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Rows of three seeds on a small network; every seed has the same numbers."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    of = subject(network, surrogate=70, draws=2, pairs=2, cost_batch=2)
    found: dict[str, Any] = {}
    model, axioms = measures.measure_model(replace(of, model=network)), measures.measure_axioms(of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "untrained", lambda of: of.model)
        rows = {name: measures.measure_method(of, each) for name, each in VARIANTS.items()}
    for seed in range(3):
        found |= {f"model, seed {seed}": model, f"axioms, seed {seed}": axioms}
        found |= {f"{name}, seed {seed}": row for name, row in rows.items()}
    return found | {f"cost, {name}": {"ratios": [1.2, 1.3], "seconds": 1e-3} for name in VARIANTS}


def test_the_conclusion_reads_every_row(measured: dict[str, Any], tmp_path: Path):
    config = replace(SMOKE, seeds=3)
    assert {row.name for row in study.rows(config)} == set(measured)
    found = study.conclude(config, measured, tmp_path)
    lines = {claim["source"].removeprefix("table 1, ") for claim in found.claims}
    assert lines == {"saliency maps", "integrated gradients", "LIME", "SHAP", "LRP"}
    told = {claim["claim"].split(" (here")[0]: claim for claim in found.claims}
    assert told["Costs more than basic gradients"]["holds"] is False
    assert told["Satisfies completeness"]["holds"] is True
    assert told["Satisfies sensitivity"]["holds"] is True
    table = {row["name"]: row["ours"] for row in found.rows}
    assert table["LIME: cost"]["n"] == 2 and table["LIME: comprehensiveness"]["n"] == 3
    # Sizes of gradients are in units of their own: they are no shares of the output.
    assert "LIME: completeness error, share of the change" in table
    assert "saliency: completeness error, share of the change" not in table
    assert "occlusion: distance to exact Shapley values, relative" not in table
    assert table["LRP: rank correlation with a random model's"]["mean"] == pytest.approx(1)
    assert all(path.is_file() for path in found.figures) and len(found.figures) == 4


def test_agreement_is_symmetric_with_ones(measured: dict[str, Any]):
    found = Findings(replace(SMOKE, seeds=3), measured).agreement()
    assert (found == found.T).all() and (found.diagonal() == 1).all()
    names = list(VARIANTS)
    assert found[names.index("LRP"), names.index("input x gradient")] > 0.9
