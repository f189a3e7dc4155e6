"""Studies of saliency guided training: their arms, maps and measures, and what they conclude."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attrain.errors import InputError
from attrain.guided import SaliencyGuided
from attrain.metrics.faithfulness import FRACTIONS
from attrain.studies import guided_evidence as evidence
from attrain.studies import guided_subjects as subjects
from attrain.studies import sgt_fig3, sgt_order
from attrain.studies.graph_subjects import images
from attrain.studies.guided_subjects import ARMS, SALIENCIES, Recipe
from attrain.studies.verdicts import no_worse

DIGITS = Recipe(data="digits", model="mnist-cnn", samples=64, epochs=1, batch_size=32)


# Arms and maps ------------------------------------------------------------------------------------


def test_every_arm_trains_another_model_and_twice_the_same() -> None:
    weights = {arm: subjects.trained(DIGITS, arm, 0).state_dict()["fc2.bias"] for arm in ARMS}
    subjects.trained.cache_clear()
    again = subjects.trained(DIGITS, subjects.GUIDED, 0)
    assert not again.training
    assert torch.equal(again.state_dict()["fc2.bias"], weights[subjects.GUIDED])
    assert len({tuple(each.tolist()) for each in weights.values()}) == len(ARMS)


def test_an_arm_has_the_options_it_is_given_and_its_own() -> None:
    method = subjects.under(subjects.ABSOLUTE, fraction=0.3, data="series")
    assert method.guided == {"fraction": 0.3, "data": "series", "order": "absolute"}
    assert subjects.under(subjects.REGULAR, fraction=0.3).guided is None
    with pytest.raises(InputError, match="arm 'guidde'.*'guided'"):
        subjects.under("guidde")


def test_masks_of_the_arms_change_what_they_say() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x[:, :, 1:3, 1:3] = 1.0
    drop = torch.zeros(2, 4, 4, dtype=torch.bool)
    drop[:, :2] = True
    assert torch.equal(subjects.unmasked(x, drop), x)
    assert torch.equal((subjects.opposite(x, drop) != x)[:, 0], ~drop)


def test_the_opposite_mask_hides_the_highest_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    options = subjects.under(subjects.HIGHEST).guided
    assert options is not None
    step = SaliencyGuided(model, nn.functional.cross_entropy, **options).step(x, y)
    changed = (step.masked != x).flatten(1)
    gradient = next(model.parameters())[y]  # d logit y / d x
    kept = torch.where(changed, -torch.inf, gradient).amax(1)
    assert bool((torch.where(changed, gradient, torch.inf).amin(1) > kept).all())


@pytest.mark.parametrize("title", SALIENCIES)
def test_maps_are_shaped_as_the_inputs_and_repeat(title: str) -> None:
    data = images("digits")
    model = subjects.trained(DIGITS, subjects.REGULAR, 0)
    x = data.test.tensors[0][:3]
    target = subjects.predicted(model, x)
    told: dict[str, Any] = {
        "baseline": float(x.min()),
        "typical": subjects.typical(data, 1),
    }
    found = [subjects.maps(model, x, target, title, **told) for _ in range(2)]
    assert found[0].shape == x.shape
    assert torch.equal(found[0], found[1])


def test_an_unknown_saliency_method_is_named() -> None:
    model = subjects.trained(DIGITS, subjects.REGULAR, 0)
    x = images("digits").test.tensors[0][:1]
    with pytest.raises(InputError, match="saliency method 'gradent'.*'gradient'"):
        subjects.maps(model, x, torch.tensor([0]), "gradent")


def test_every_seed_is_judged_by_other_samples() -> None:
    data = images("digits")
    count = len(data.test) // 3
    parts = [subjects.judged(data, count, seed)[0] for seed in range(3)]
    assert [len(part) for part in parts] == [count] * 3
    rows = {tuple(each.flatten().tolist()) for part in parts for each in part}
    whole = {tuple(each.flatten().tolist()) for each in data.test.tensors[0]}
    assert len(rows) >= min(3 * count, len(whole)) - 3
    everything = subjects.judged(data, 10**6, 0)[0]
    assert torch.equal(everything, data.test.tensors[0])


# What the order of masks does ---------------------------------------------------------------------


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Two digits of 6x6 with a stroke, and their gradients."""
    generator = torch.Generator().manual_seed(3)
    x = torch.full((2, 1, 6, 6), -0.5)
    x[0, 0, 2, 1:5] = 1.0
    x[1, 0, 1:4, 3] = torch.tensor([0.5, 1.0, 2.0])
    return x, torch.randn(2, 6, 6, generator=generator)


def test_zones_are_those_of_a_loop(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, _ = drawn
    found = evidence.zones(x)
    for n in range(2):
        ink = [(i, j) for i in range(6) for j in range(6) if x[n, 0, i, j] != -0.5]
        for i in range(6):
            for j in range(6):
                far = min(max(abs(i - a), abs(j - b)) for a, b in ink)
                zone = evidence.INK if far == 0 else evidence.RIM if far <= 2 else evidence.FAR
                assert [name for name in found if found[name][n, i, j]] == [zone]


def test_masses_and_what_a_mask_takes_are_those_of_a_loop(
    drawn: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, g = drawn
    for order in evidence.ORDERS:
        drop = evidence.half(g, order, torch.Generator().manual_seed(0))
        assert drop.sum((1, 2)).tolist() == [18, 18]
        wanted: dict[str, list[float]] = {"ink": [], "of ink": [], "mass": [], "contrary": []}
        share = {"ink": 0.0, "contrary": 0.0, "for": 0.0}
        for n in range(2):
            sums = dict.fromkeys(("ink", "all ink", "masked", "mass", "contrary"), 0.0)
            for i in range(6):
                for j in range(6):
                    value, ink = float(g[n, i, j]), bool(x[n, 0, i, j] != -0.5)
                    whole = float(g[n].abs().sum())
                    share["ink"] += abs(value) / whole / 2 if ink else 0
                    share["contrary"] += -value / whole / 2 if value < 0 and not ink else 0
                    share["for"] += value / whole / 2 if value > 0 and ink else 0
                    sums["all ink"] += ink
                    if drop[n, i, j]:
                        sums["ink"] += ink
                        sums["mass"] += abs(value)
                        sums["contrary"] += -value if value < 0 and not ink else 0
            wanted["ink"].append(sums["ink"] / 18)
            wanted["of ink"].append(sums["ink"] / sums["all ink"])
            wanted["mass"].append(sums["mass"] / float(g[n].abs().sum()))
            wanted["contrary"].append(sums["contrary"] / sums["mass"])
        found = evidence.taken(drop, g, x)
        assert found == pytest.approx({name: sum(two) / 2 for name, two in wanted.items()})
        masses = evidence.masses(g, x)
        assert {name: masses[name] for name in share} == pytest.approx(share)
        assert masses["ink"] + masses["rim"] + masses["far"] == pytest.approx(1.0)


def test_halves_hold_what_their_order_says() -> None:
    g = torch.tensor([[[-3.0, 2.0], [0.5, -0.1]]])
    lowest = {order: evidence.half(g, order)[0].tolist() for order in ("signed", "absolute")}
    assert lowest == {
        "signed": [[True, False], [False, True]],
        "absolute": [[False, False], [True, True]],
    }
    assert evidence.half(g, "highest")[0].tolist() == [[False, True], [True, False]]


def test_noise_changes_a_linear_model_by_its_first_order(
    drawn: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, _ = drawn
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    y = torch.tensor([2, 0])
    g = evidence.signed_gradient(model, x, y)
    found = evidence.noise(model, x, y, evidence.half(g, "signed"), g, torch.Generator())
    assert found["logit"] == pytest.approx(found["first order"], rel=1e-4)
    assert found["divergence"] > 0
    nothing = torch.zeros_like(g, dtype=torch.bool)
    still = evidence.noise(model, x, y, nothing, g)
    assert (still["logit"], still["margin"]) == (0.0, 0.0)
    with torch.no_grad():
        assert still["accuracy"] == float((model(x).argmax(1) == y).double().mean())


def test_ink_goes_by_its_share_and_nothing_else(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, _ = drawn
    for share, left in ((0.0, [4, 3]), (0.5, [2, 1]), (1.0, [0, 0])):
        found = evidence.without_ink(x, share, seed=1)
        assert (found != -0.5).sum((1, 2, 3)).tolist() == left
        assert bool(((found == x) | (found == -0.5)).all())


def test_parts_add_up_and_know_whose_doing_it_is() -> None:
    only_map = {(False, False): 0.3, (True, False): 0.3, (False, True): 0.2, (True, True): 0.2}
    assert evidence.parts(only_map) == pytest.approx((0.0, -0.1))
    mixed = {(False, False): 0.3, (True, False): 0.35, (False, True): 0.2, (True, True): 0.21}
    model, by_map = evidence.parts(mixed)
    assert model + by_map == pytest.approx(-0.09)
    assert model == pytest.approx((0.05 + 0.01) / 2)


# What figure 3 concludes --------------------------------------------------------------------------

_FIG3 = sgt_fig3.Config(seeds=4, control_seeds=3)
_LEVELS = {subjects.REGULAR: 0.3, subjects.GUIDED: 0.2, subjects.RANDOM: 0.2}


def _fig3_results(levels: dict[str, float] | None = None) -> dict[str, Any]:
    """Rows whose curves are flat after the start, at a level per arm."""
    levels = levels or _LEVELS
    found = {}
    for arm in sgt_fig3.COMPARED:
        for seed in range(_FIG3.seeds_of(arm)):
            level = levels.get(arm, 0.1) + 0.001 * ((seed * 7 + len(arm)) % 3)
            curves = dict.fromkeys([*SALIENCIES, sgt_fig3.NO_MAP], [1.0] + [level] * 9)
            found[f"{arm}, seed {seed}"] = {
                "accuracy": 0.98 + 0.0001 * seed,
                "curves": curves,
                "on object": dict.fromkeys(SALIENCIES, 0.5),
            }
    return found


def test_figure_3_says_what_the_curves_say(tmp_path: Path) -> None:
    found = sgt_fig3.conclude(_FIG3, _fig3_results(), tmp_path)
    holds = [claim["holds"] for claim in found.claims]
    # accuracy, six methods, ahead of random masks and of unmasked passes, as robust as before
    assert holds == [True, *[True] * 6, "unclear", False, False]
    assert "3 seeds" in found.claims[7]["figure"]
    assert all(path.exists() for path in found.figures)
    row = next(each for each in found.rows if each["name"].startswith("guided: area"))
    assert row["ours"]["mean"] == pytest.approx((0.6 + 8 * 0.2) / 9, abs=0.002)
    turned = sgt_fig3.conclude(
        _FIG3, _fig3_results({subjects.REGULAR: 0.2, subjects.GUIDED: 0.3}), tmp_path
    )
    assert [claim["holds"] for claim in turned.claims[1:7]] == [False] * 6


def test_accuracy_is_preserved_only_where_the_interval_says_so() -> None:
    def gap(low: float | None, high: float | None) -> dict[str, Any]:
        return {"low": low, "high": high}

    assert no_worse(gap(-0.004, 0.001), 0.005) is True
    assert no_worse(gap(-0.02, -0.006), 0.005) is False
    assert no_worse(gap(-0.02, 0.001), 0.005) == "unclear"
    assert no_worse(gap(None, None), 0.005) == "unclear"


# What the study of the order concludes ------------------------------------------------------------


def _order_row(seed: int) -> dict[str, Any]:
    shift = 0.002 * ((seed * 5) % 3)
    curve = {f"{model} | {by}": [1.0] + [0.3 + shift] * 9
             for model in ("own", "regular") for by in ("own", "regular")}  # fmt: skip
    noise = {"first order": 0.0, "logit": 0.0, "margin": -1.0, "divergence": 0.1, "accuracy": 0.9}
    digits = [[[float(i * j) for j in range(5)] for i in range(5)]] * 2
    return {
        "shown": [digits, digits],
        "accuracy": 0.98,
        "curves": {title: copy.deepcopy(curve) for title in ("gradient", "DeepLIFT", "random")},
        "ink removed": [0.9, 0.8, 0.7],
        "masses": {"ink": 0.5 + shift, "rim": 0.3, "far": 0.2, "contrary": 0.25, "for": 0.3},
        "taken": {
            order: {"ink": 0.1, "of ink": 0.4 + shift, "mass": 0.5, "contrary": 0.5}
            for order in evidence.ORDERS
        },
        "noise": {order: dict(noise) for order in evidence.ORDERS},
        "attacked": 0.5 + shift,
    }


def test_the_order_is_judged_by_its_measures(tmp_path: Path) -> None:
    config = sgt_order.Config(seeds=4, mirror_seeds=3)
    rows = {row.name: _order_row(int(row.name.rsplit(" ", 1)[1])) for row in sgt_order.rows(config)}
    for name, row in rows.items():
        seed = int(name.rsplit(" ", 1)[1])
        row["noise"]["signed"]["margin"] = -6.0 + 0.1 * seed
        if name.startswith("guided"):
            # A better map alone: also the regular model falls faster by it.
            for model in ("own", "regular"):
                row["curves"]["gradient"][f"{model} | own"] = [1.0] + [0.1 + 0.001 * seed] * 9
            row["masses"]["ink"] = 0.7
    found = sgt_order.conclude(config, rows, tmp_path)
    told = {claim["claim"]: claim["holds"] for claim in found.claims}
    assert told["The signed order lowers the area by gradient"] is True
    assert told["The absolute order lowers the area by gradient"] == "unclear"
    assert told["The signed order moves |g| to the ink"] is True
    assert told["The absolute order moves |g| to the ink"] == "unclear"
    lead = "Noise in the {} half lowers the lead of the label {} than noise in a random half, on"
    assert told[lead.format("signed", "more") + " regular models"] is True
    assert told[lead.format("absolute", "less") + " regular models"] == "unclear"
    by_map = [holds for claim, holds in told.items() if "exchanged" in claim]
    by_model = [holds for claim, holds in told.items() if "equal maps" in claim]
    assert (by_map, by_model) == ([True, "unclear"], ["unclear", "unclear"])
    assert any("3 seeds" in claim["figure"] for claim in found.claims)
    assert len(found.figures) == 2 and all(path.exists() for path in found.figures)
    assert len({row["name"] for row in found.rows}) == len(found.rows)


def test_zero_is_told_of_no_rival() -> None:
    claim = sgt_order._compared(
        "a", [0.1, 0.2, 0.3], [0.0, 0.0, 0.0], sgt_fig3.percent, sgt_fig3.points
    )
    assert "against 0.00" in claim["figure"]
    assert FRACTIONS[0] == 0.0
