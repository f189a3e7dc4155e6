"""The study of what replaces salient pixels: what it concludes from given curves."""

from dataclasses import replace

import pytest

from attrain.metrics.faithfulness import FRACTIONS
from attrain.studies.guided_replacement import (
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
)

CONFIG = Config(seeds=3, retrained=(0.3, 0.9))


def falling(to: float, seed: int, points: int = len(FRACTIONS)) -> list[float]:
    """Return a line from 1 to `to`, a little lower with each seed."""
    return [1 - (1 - to + 0.001 * seed) * index / (points - 1) for index in range(points)]


def results(**ends: float) -> dict:
    """Return rows whose saliency curves fall to these ends; random ones fall to 0.9."""
    return {
        f"seed {seed}": {
            name: {
                SALIENCY: falling(end, seed, 3 if name == ROAR else len(FRACTIONS)),
                RANDOM: falling(0.9, -seed, 3 if name == ROAR else len(FRACTIONS)),
            }
            for name, end in ends.items()
        }
        for seed in range(CONFIG.seeds)
    }


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
    alone = holds(results(IID=0.2, OOD=0.4, ROAR=0.9), tmp_path, replace(CONFIG, seeds=1))
    assert set(alone.values()) == {"unclear"}


def test_areas_are_over_the_fractions_that_all_three_have(tmp_path) -> None:
    given = results(IID=0.1, OOD=0.1, ROAR=0.1)
    for row in given.values():
        row[IID][SALIENCY][1] = 0.0  # at 10%, for which ROAR did not train
        for name in (IID, OOD):
            assert row[name][SALIENCY][3] == pytest.approx(1 - (1 - row[name][SALIENCY][9]) / 3)
        row[ROAR][SALIENCY] = [row[OOD][SALIENCY][index] for index in (0, 3, 9)]
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
    found = measure(config, 0)
    starts = [found[name][order][0] for name in REPLACEMENTS for order in (SALIENCY, RANDOM)]
    assert len(set(starts)) == 1 and starts[0] > 0.8
    assert [len(found[name][SALIENCY]) for name in REPLACEMENTS] == [10, 10, 2]


def test_retrained_fractions_are_among_those_of_the_curves() -> None:
    for config in STUDY.budgets.values():
        assert set(config.retrained) <= set(FRACTIONS)
