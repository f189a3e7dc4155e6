"""The study of accuracy against sparsity: what it picks and concludes from given accuracies."""

import json

import pytest

from attrain.methods import METHODS
from attrain.runs import write_json
from attrain.studies import frontier
from attrain.studies.frontier import CONTENDERS, OURS, PLAIN, REMOVED, Config, Setting

L1 = "gradient descent with L1"
FEW = Config(seeds=3)


def kept(dense: float, at_95: float, at_98: float) -> list[float]:
    """Return accuracies over `REMOVED` that fall as given."""
    known = {0.95: at_95, 0.97: at_98, 0.98: at_98, 0.99: 0.1, 0.995: 0.1}
    return [known.get(removed, dense) for removed in REMOVED]


def results(config: Config, final) -> dict:
    """Return made-up results; `final` maps a contender's name and a seed to its accuracies."""
    found = {}
    for name, contender in CONTENDERS.items():
        for setting in contender.trials:
            tops = [point for point, chosen in contender.chosen.items() if chosen == setting]
            accuracy = kept(0.99, *(0.9 if point in tops else 0.8 for point in frontier.POINTS))
            found[frontier._trial_name(name, setting)] = {"accuracy": accuracy}
        for setting in contender.chosen.values():
            for seed in range(config.seeds):
                found[frontier._final_name(name, setting, seed)] = final(name, seed)
    return found


def claims(found: dict, out, config: Config = FEW):
    conclusion = frontier.conclude(config, found, out)
    return {claim["claim"]: claim for claim in conclusion.claims}, conclusion


def of_lfp(name: str, seed: int) -> dict:
    """LFP is ahead of gradient descent, half a point behind L1, and reaches both goals."""
    gap = {OURS: 0.0, L1: 0.005}.get(name, -0.3)
    tilt = 0.001 * (seed - 1) * (name == OURS)
    accuracy = kept(0.989, 0.987 + gap + tilt, 0.98 + gap + tilt)
    return {"accuracy": accuracy, "gini": 0.9 if name == OURS else 0.5, "signs_changed": 0.1}


def test_every_row_has_results_of_its_own_name():
    assert {row.name for row in frontier.rows(FEW)} == set(results(FEW, of_lfp))


def test_l1_is_tried_more_often_than_lfp_and_all_that_is_picked_was_tried():
    assert len(CONTENDERS[L1].trials) > len(CONTENDERS[OURS].trials)
    for contender in CONTENDERS.values():
        assert len(set(contender.trials)) == len(contender.trials)
        assert set(contender.chosen) == set(frontier.POINTS)
        assert set(contender.chosen.values()) <= set(contender.trials)


def test_the_conclusion_names_goals_winners_and_picks(tmp_path):
    found, conclusion = claims(results(FEW, of_lfp), tmp_path)
    told = {text: claim["holds"] for text, claim in found.items()}
    goal = "LFP keeps 98.5% with 95% of its weights removed, at 98.8% or more with all of them"
    assert told[goal] is True
    assert told["LFP keeps 97.8% with 98% of its weights removed"] is True
    ahead = "LFP is ahead of {} with 98% of the weights removed, both tuned for 98%"
    assert told[ahead.format(PLAIN)] is True
    assert told[ahead.format(L1)] is False
    assert found[ahead.format(L1)]["figure"].endswith("difference -0.50 points (-0.75 to -0.25)")
    even = f"LFP is ahead of {L1} with all weights, both tuned for 98%"
    assert told[even] == "unclear"
    picks = [holds for text, holds in told.items() if "is the best of its" in text]
    assert picks == [True] * 8
    table = {row["name"]: row["ours"] for row in conclusion.rows}
    chosen = CONTENDERS[OURS].chosen[0.95]
    assert table[f"LFP ({chosen}): 95% removed"]["mean"] == pytest.approx(0.987)
    assert table[f"LFP ({chosen}): 95% removed"]["n"] == 3
    names = {path.name for path in conclusion.figures}
    assert names == {"lfp-frontier.svg", "lfp-frontier-tuning.svg"}


def test_a_run_that_diverged_leaves_its_claims_open(tmp_path):
    def final(name: str, seed: int) -> dict:
        return {"diverged": "NaN"} if name == PLAIN and seed == 1 else of_lfp(name, seed)

    found, conclusion = claims(results(FEW, final), tmp_path)
    claim = found[f"LFP is ahead of {PLAIN} with all weights, both tuned for 95%"]
    assert claim["holds"] == "unclear" and "unknown, since a run diverged" in claim["figure"]
    write_json(tmp_path / "rows.json", {"rows": conclusion.rows})
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    plain = [row for row in rows if row["name"].startswith(f"{PLAIN} (rate")]
    assert plain and all(row["ours"]["mean"] is None for row in plain)


def test_a_goal_is_missed_where_the_dense_model_is(tmp_path):
    def final(name: str, seed: int) -> dict:
        return of_lfp(name, seed) | {"accuracy": kept(0.987, 0.987, 0.97)}

    found, _ = claims(results(FEW, final), tmp_path)
    assert [claim["holds"] for claim in list(found.values())[:2]] == [False, False]


def test_a_pick_that_the_trials_contradict_is_said(tmp_path):
    other = results(FEW, of_lfp)
    better = CONTENDERS[L1].trials[0]
    other[frontier._trial_name(L1, better)] = {"accuracy": kept(0.99, 0.95, 0.95)}
    found, _ = claims(other, tmp_path)
    claim = found[f"For 98%, the setting of {L1} is the best of its 36 trials"]
    assert claim["holds"] is False and str(better) in claim["figure"]


def test_the_setting_for_95_percent_needs_a_dense_accuracy():
    sparse, dense, broken = Setting(0.1), Setting(0.2), Setting(0.3)
    trials = {
        sparse: kept(0.98, 0.979, 0.978),
        dense: kept(0.99, 0.97, 0.5),
        broken: frontier.NEVER,
    }
    assert frontier.pick(trials, 0.95, least_dense=0.986) == dense
    assert frontier.pick(trials, 0.95, least_dense=0.97) == sparse
    assert frontier.pick(trials, 0.98, least_dense=0.986) == sparse
    assert frontier.pick(trials, 0.95, least_dense=0.999) == dense


def test_a_setting_changes_what_it_names_and_keeps_the_rest():
    lfp = METHODS["lfp"]
    method = frontier._sparse(0.3, 4e-3).of(lfp)
    assert (method.learning_rate, method.weight_decay, method.course) == (0.3, 4e-3, "release")
    assert method.credit == {**lfp.credit, "scale": "contraharmonic"}
    assert Setting(0.1, l1=1e-3).of(METHODS["sgd-l1"]).credit is None
    assert str(Setting(0.1, l1=1e-3)) == "rate 0.1, L1 0.001"
