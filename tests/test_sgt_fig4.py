"""The study of what replaces salient pixels: what it concludes from given curves."""

from dataclasses import replace

import pytest

from attrain.metrics.faithfulness import FRACTIONS
from attrain.studies.sgt_fig4 import (
    IID,
    OOD,
    RANDOM,
    REPLACEMENTS,
    ROAR,
    SALIENCY,
    STUDY,
    Config,
    conclude,
    measure,
    measure_roar,
)

CONFIG = Config(seeds=3, retrained=(0.3, 0.9))


def falling(to: float, seed: int, points: int = len(FRACTIONS)) -> list[float]:
    """Return a line from 1 to `to`, a little lower with each seed."""
    return [1 - (1 - to + 0.001 * seed) * index / (points - 1) for index in range(points)]


def results(**ends: float) -> dict:
    """Return rows whose saliency curves fall to these ends; random ones fall to 0.9."""
    found: dict = {}
    for seed in range(CONFIG.seeds):
        of = {
            name: {
                SALIENCY: falling(end, seed, 3 if name == ROAR else len(FRACTIONS)),
                RANDOM: falling(0.9, -seed, 3 if name == ROAR else len(FRACTIONS)),
            }
            for name, end in ends.items()
        }
        found[f"ROAR, seed {seed}"] = of.pop(ROAR)
        found[f"seed {seed}"] = of
    return found


def holds(given: dict, tmp_path, config: Config = CONFIG) -> dict[str, object]:
    found = conclude(config, given, tmp_path).claims
    names = [f"{name} differs" for name in (OOD, ROAR)] + list(REPLACEMENTS)
    return {name: claim["holds"] for name, claim in zip(names, found, strict=True)}


def test_curves_that_differ_from_the_iid_one_are_told(tmp_path) -> None:
    found = holds(results(IID=0.2, OOD=0.4, ROAR=0.95), tmp_path)
    assert found == {"OOD differs": True, "ROAR differs": True, IID: True, OOD: True, ROAR: False}


def test_equal_curves_and_one_seed_are_unclear(tmp_path) -> None:
    found = holds(results(IID=0.2, OOD=0.2, ROAR=0.95), tmp_path)
    assert found["OOD differs"] == "unclear"
    one = replace(CONFIG, seeds=1, retrained_seeds=1)
    alone = holds(results(IID=0.2, OOD=0.4, ROAR=0.9), tmp_path, one)
    assert set(alone.values()) == {"unclear"}


def test_seeds_without_roar_count_for_the_others_alone(tmp_path) -> None:
    given = results(IID=0.2, OOD=0.4, ROAR=0.95)
    del given["ROAR, seed 2"]
    found = conclude(replace(CONFIG, retrained_seeds=2), given, tmp_path)
    counts = {row["name"]: row["ours"]["n"] for row in found.rows}
    assert counts["ROAR, saliency: area"] == 2 and counts["IID, saliency: area"] == 3
    assert "2 seeds" in found.claims[1]["figure"] and "3 seeds" in found.claims[0]["figure"]


def test_areas_are_over_the_fractions_that_all_three_have(tmp_path) -> None:
    given = results(IID=0.1, OOD=0.1, ROAR=0.1)
    for seed in range(CONFIG.seeds):
        row = given[f"seed {seed}"]
        row[IID][SALIENCY][1] = 0.0  # at 10%, for which ROAR did not train
        given[f"ROAR, seed {seed}"][SALIENCY] = [row[OOD][SALIENCY][index] for index in (0, 3, 9)]
    table = {row["name"]: row["ours"]["mean"] for row in conclude(CONFIG, given, tmp_path).rows}
    areas = [table[f"{name}, saliency: area"] for name in REPLACEMENTS]
    assert areas == pytest.approx([areas[0]] * 3)
    assert table["ROAR, saliency: 30% replaced"] == table["OOD, saliency: 30% replaced"]


def test_the_figure_of_a_claim_names_the_largest_gap(tmp_path) -> None:
    claim = conclude(CONFIG, results(IID=0.2, OOD=0.4, ROAR=0.95), tmp_path).claims[0]
    assert "largest with 90% replaced: +20.0 points" in claim["figure"]


@pytest.mark.slow
def test_what_is_measured_starts_with_the_accuracy_of_the_model() -> None:
    config = replace(STUDY.budgets["smoke"], seeds=1, retrained=(0.9,))
    found = measure(config, 0) | {ROAR: measure_roar(config, 0)}
    starts = [found[name][order][0] for name in REPLACEMENTS for order in (SALIENCY, RANDOM)]
    assert len(set(starts)) == 1 and starts[0] > 0.8
    assert [len(found[name][SALIENCY]) for name in REPLACEMENTS] == [10, 10, 2]


def test_retrained_fractions_are_among_those_of_the_curves() -> None:
    for config in STUDY.budgets.values():
        assert set(config.retrained) <= set(FRACTIONS)
