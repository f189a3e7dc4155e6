"""The study of gradient distributions: what it measures, and what it concludes from given rows."""

import math

import numpy as np
import pytest

from attrain.studies import sgt_fig2 as gradients
from attrain.studies.guided_subjects import GUIDED, RANDOM, REGULAR, Recipe
from attrain.studies.sgt_fig2 import FIGURES, SHARPER, Config, Task

RECIPE = Recipe(data="digits", model="mlp", samples=200, epochs=3, batch_size=32)
TASK = Task(RECIPE, arms=(REGULAR, GUIDED, RANDOM), seeds=3, test=40, shown=4)


def row(sharp: float, *, seed: int, correct: list[bool], images: bool = False) -> dict:
    """Return what a row of four images holds whose maps are as sharp as `sharp`."""
    found = {
        "accuracy": sum(correct) / len(correct),
        "correct": correct,
        "mean": np.full((1, 8, 8), 0.1).tolist(),
        "maps": np.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8).tolist(),
        **{name: [0.01 * seed + 1 + SHARPER.get(name, 1) * sharp] * 4 for name in FIGURES},
    }
    return found | ({"images": np.zeros((4, 1, 8, 8)).tolist()} if images else {})


def results(guided: float, random: float, correct: list[bool] | None = None) -> dict:
    told = correct or [True] * 4
    return {
        f"T, {arm}, seed {seed}": row(
            sharp + noise * seed, seed=seed, correct=told, images=arm == REGULAR
        )
        for arm, sharp, noise in ((REGULAR, 0, 0), (GUIDED, guided, 1e-3), (RANDOM, random, 0))
        for seed in range(3)
    }


def concluded(given: dict, tmp_path):
    return gradients.conclude(Config({"T": TASK}), given, tmp_path)


def test_sharper_maps_than_both_rivals_are_told(tmp_path) -> None:
    found = concluded(results(0.5, 0.2), tmp_path)
    assert [claim["holds"] for claim in found.claims] == [True] * 7
    assert [claim["source"] for claim in found.claims[:2]] == ["figure 2", "not in the paper"]
    assert len(found.figures) == 3 and all(path.is_file() for path in found.figures)


def test_maps_that_a_control_sharpens_as_well_are_told(tmp_path) -> None:
    found = concluded(results(0.5, 0.8), tmp_path)
    assert [claim["holds"] for claim in found.claims[:6]] == [True, False] * 3


def test_images_that_one_arm_does_not_tell_count_for_none(tmp_path) -> None:
    given = results(0.5, 0.2)
    given["T, random masks, seed 0"]["correct"] = [True, False, True, True]
    given["T, guided, seed 0"]["kurtosis"][1] = 1000.0
    given["T, guided, seed 0"]["kurtosis"][2] = None  # of a gradient that is 0 everywhere
    table = {each["name"]: each["ours"]["values"] for each in concluded(given, tmp_path).rows}
    assert table["T, guided: kurtosis"][0] == pytest.approx(1.5)


def test_no_image_that_all_arms_tell_leaves_no_figure(tmp_path) -> None:
    given = results(0.5, 0.2)
    given["T, guided, seed 1"]["correct"] = [False] * 4
    table = {each["name"]: each["ours"] for each in concluded(given, tmp_path).rows}
    assert math.isnan(table["T, guided: kurtosis"]["values"][1])


def test_what_is_measured_is_that_of_the_model_s_own_gradients() -> None:
    found = gradients.measure(TASK, REGULAR, 0)
    assert len(found["correct"]) == len(found["kurtosis"]) == 40
    assert found["accuracy"] == np.mean(found["correct"]) > 0.3
    maps = np.array(found["maps"])
    assert maps.shape == (4, 1, 8, 8)
    assert np.abs(maps).max((1, 2, 3)) == pytest.approx(1)
    spans = np.quantile(maps.reshape(4, -1), 0.75, axis=1)
    spans -= np.quantile(maps.reshape(4, -1), 0.25, axis=1)
    assert found["interquartile"][:4] == pytest.approx(list(spans), abs=1e-4)
    images = np.array(found["images"])
    assert images.min() >= 0 and images.max() <= 1
    assert "maps" not in gradients.measure(TASK, REGULAR, 1)
