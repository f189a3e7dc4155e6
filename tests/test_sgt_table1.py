"""The study of texts under saliency guided training: its models, and what it concludes."""

import pytest
import torch

from attrain.studies import guided_texts, sgt_table1
from attrain.studies.guided_subjects import GUIDED, REGULAR, UNMASKED
from attrain.studies.guided_texts import MADE, Recipe, Texts
from attrain.studies.sgt_table1 import (
    COMPREHENSIVE,
    CONTROLS,
    DRAWN,
    MEASURES,
    METHODS,
    PAPER,
    SUFFICIENT,
    Config,
    Part,
)

# Texts and models ---------------------------------------------------------------------------------


def test_a_batch_has_texts_of_like_length_and_each_text_comes_once():
    words = torch.randint(1, 100, (1000,), generator=torch.Generator().manual_seed(0))
    found = list(guided_texts.batches(words, 16, torch.Generator().manual_seed(1)))
    assert sorted(torch.cat(found).tolist()) == list(range(1000))
    assert max(map(len, found)) == 16
    spread = sum(int(words[some].max() - words[some].min()) for some in found) / len(found)
    assert spread < 15
    again = list(guided_texts.batches(words, 16, torch.Generator().manual_seed(1)))
    other = list(guided_texts.batches(words, 16, torch.Generator().manual_seed(2)))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(torch.cat(found), torch.cat(other))


def test_made_up_texts_have_three_words_of_their_class_and_one_of_the_other():
    given = guided_texts.texts(MADE, 24)
    for x, y in (given.train, given.validation, given.test):
        assert set(guided_texts.lengths(x).tolist()) <= set(range(12, 25))
        for text, label in zip(x.tolist(), y.tolist(), strict=True):
            names = [given.words[number] for number in text if number]
            own, other = ("good", "bad") if label else ("bad", "good")
            assert sum(name.startswith(own) for name in names) == 3
            assert sum(name.startswith(other) for name in names) == 1
    assert given.vectors.shape == (len(given.words), 16) and not given.vectors[0].any()


def test_the_epoch_with_the_lowest_validation_loss_is_kept():
    recipe = Recipe(MADE, 24, epochs=3, hidden=4, learning_rate=0.1)
    found = guided_texts.trained(recipe, GUIDED, 0)
    x, y = guided_texts.texts(MADE, 24).validation
    loss = torch.nn.functional.cross_entropy(guided_texts.logits(found.model, x), y)
    assert found.losses[found.epoch - 1] == min(found.losses) == pytest.approx(float(loss))
    assert not found.model.training
    again = guided_texts.trained(recipe, GUIDED, 0)
    assert again.losses == found.losses
    for arm in (REGULAR, UNMASKED):
        assert guided_texts.trained(recipe, arm, 0).losses != found.losses


def test_scores_are_sums_over_the_vector_of_a_word():
    given: Texts = guided_texts.texts(MADE, 24)
    torch.manual_seed(0)
    model = guided_texts.WordBiLSTM(given.vectors, 2, hidden=4).eval()
    x, target = given.test[0][:3], torch.tensor([0, 1, 1])
    found = guided_texts.scores(model, x, target, 0)
    assert set(found) == set(DRAWN)
    vectors: list[torch.Tensor] = []

    def keep(_, __, out):
        vectors.append(out.detach().requires_grad_())
        return vectors[0]

    handle = model.embedding.register_forward_hook(keep)
    model(x).gather(1, target[:, None]).sum().backward()
    handle.remove()
    slope = vectors[0].grad
    assert slope is not None
    for title, wanted in (
        (guided_texts.GRADIENT, slope.abs()),
        (guided_texts.SIGNED, slope),
        (guided_texts.PRODUCT, slope * vectors[0].detach()),
    ):
        torch.testing.assert_close(found[title], wanted.sum(2), atol=1e-6, rtol=1e-4)
    assert all(each.shape == x.shape for each in found.values())


# What it concludes --------------------------------------------------------------------------------


def row(values, *, accuracy=0.8, confidence=0.9):
    """Return a row with these means of (comprehensiveness, sufficiency), by saliency method."""
    spread = [-0.03125, -0.015625, 0.015625, 0.03125]
    return {
        "accuracy": accuracy,
        "confidence": confidence,
        "epoch": 1,
        "losses": [0.5],
        "texts": {
            method: {
                measure: [value + each for each in spread]
                for measure, value in zip(MEASURES, values.get(method, (0.0, 0.3)), strict=True)
            }
            for method in DRAWN
        },
        "shown": [],
    }


def concluded(part, results, tmp_path):
    found = sgt_table1.conclude(Config((part,)), results, tmp_path)
    return found, {claim["claim"]: claim for claim in found.claims}


@pytest.fixture
def movies(tmp_path):
    """Guided training raises comprehensiveness by .1, lowers sufficiency or not, by the seed."""
    part = Part(Recipe("movies", 8, 1), seeds=3, control_seeds=1)
    results = {}
    for seed in range(3):
        shift = 0.01 * seed
        regular = {method: (0.2 + shift, 0.1) for method in METHODS}
        guided = {method: (0.3 + 1.1 * shift, 0.1 + (-1) ** seed * 0.05) for method in METHODS}
        results[f"movies, {REGULAR}, seed {seed}"] = row(regular)
        results[f"movies, {GUIDED}, seed {seed}"] = row(guided, accuracy=0.8 - 0.001 * seed)
    for arm in CONTROLS:
        results[f"movies, {arm}, seed 0"] = row({})
    return concluded(part, results, tmp_path)


def test_a_difference_is_judged_over_the_seeds(movies):
    found, claims = movies
    raised = claims["Movies: guided training raises the comprehensiveness of gradient"]
    assert raised["holds"] is True and raised["source"] == "table 1"
    assert raised["figure"].startswith("0.210 to 0.311; difference +0.101 (+0.0")
    assert "3 seeds); over the texts +0.101 (+0.101 to +0.101, 4 texts)" in raised["figure"]
    assert raised["figure"].endswith("paper 0.200 to 0.240")
    lowered = claims["Movies: guided training lowers the sufficiency of SmoothGrad"]
    assert lowered["holds"] == "unclear"
    other = claims["Movies: guided training raises the comprehensiveness of gradient times input"]
    assert other["source"] == "not in the paper" and "paper 0" not in other["figure"]
    assert other["holds"] == "unclear"
    kept = claims["Movies: guided training keeps the accuracy, to 2 points"]
    assert kept["holds"] is True and kept["figure"].startswith("80.0% to 79.9%; difference -0.001")
    control = [each for claim, each in claims.items() if "random masks do" in claim]
    assert [each["holds"] for each in control] == ["unclear"] * 2  # one seed
    assert "0.000 against 0.300; difference +0.300, one seed" in control[0]["figure"]


def test_the_table_has_the_paper_s_numbers(movies):
    found, _ = movies
    lines = {each["name"]: each for each in found.rows}
    for (data, measure, method, arm), value in PAPER.items():
        if data == "movies":
            line = lines[f"Movies: {measure} of {method}, {arm}"]
            assert line["paper"] == value and line["ours"]["n"] == 3
    random = lines[f"Movies: {COMPREHENSIVE} of random words, {REGULAR}"]
    assert random["paper"] == 0.056
    assert lines[f"Movies: {SUFFICIENT} of random words, {GUIDED}"]["paper"] is None
    assert lines[f"Movies: test accuracy, {CONTROLS[0]}"]["ours"]["n"] == 1
    assert all(path.is_file() for path in found.figures) and len(found.figures) == 1


def test_a_model_that_is_less_sure_has_smaller_values_but_not_over_its_confidence(tmp_path):
    part = Part(Recipe("movies", 8, 1), seeds=2, control_seeds=0)
    results = {}
    for seed in range(2):
        for arm, factor in ((REGULAR, 0.4 + 0.001 * seed), (GUIDED, 0.2)):
            values = {method: (0.5 * factor, 0.25 * factor) for method in DRAWN}
            results[f"movies, {arm}, seed {seed}"] = row(values, confidence=0.5 + factor)
    found, claims = concluded(part, results, tmp_path)
    assert not any("random masks" in claim for claim in claims)
    lost = claims["Movies: guided training raises the comprehensiveness of gradient"]
    assert lost["holds"] is False
    won = claims["Movies: guided training lowers the sufficiency of gradient"]
    assert won["holds"] is True
    for measure, share in ((COMPREHENSIVE, 0.5), (SUFFICIENT, 0.25)):
        for arm in (REGULAR, GUIDED):
            values = sgt_table1.found_of(part, results).relative(arm, measure)
            assert values == pytest.approx([share, share])


def test_accuracy_is_lost_where_the_interval_says_so(tmp_path):
    part = Part(Recipe("esnli", 8, 1), seeds=3, control_seeds=0)

    def verdict(*lost):
        results = {}
        for seed, each in enumerate(lost):
            results[f"esnli, {REGULAR}, seed {seed}"] = row({})
            results[f"esnli, {GUIDED}, seed {seed}"] = row({}, accuracy=0.8 - each)
        return concluded(part, results, tmp_path)[1][
            "e-SNLI: guided training keeps the accuracy, to 2 points"
        ]["holds"]

    assert verdict(0.05, 0.051, 0.052) is False
    assert verdict(0.0, 0.03, 0.01) == "unclear"
    assert verdict(0.001, 0.002, 0.0) is True


def test_a_part_that_is_optional_is_left_out_where_there_is_no_folder(tmp_path, monkeypatch):
    full = sgt_table1.STUDY.budgets["full"]
    monkeypatch.setenv("ATTRAIN_DATA", str(tmp_path))
    assert not any("fever" in each.name for each in sgt_table1.rows(full))
    (tmp_path / "fever").mkdir()
    names = [each.name for each in sgt_table1.rows(full)]
    assert sum(name.startswith("fever, ") for name in names) == 20
    assert names[0] == f"movies, {REGULAR}, seed 0" and names[-1] == f"fever, {UNMASKED}, seed 4"
    monkeypatch.delenv("ATTRAIN_DATA")
    assert not guided_texts.is_there("fever")


def test_words_are_drawn_line_by_line(tmp_path):
    text = {
        "words": ["a"] * 60 + ["<b>"],
        "scores": [0.0] * 60 + [1.0],
        "label": "x",
        "predicted": "y",
    }
    path = tmp_path / "words.svg"
    sgt_table1.draw_examples({REGULAR: [text], GUIDED: [text]}, path)
    drawn = path.read_text()
    assert "regular: y, is x" in drawn and "guided: y, is x" in drawn and "&lt;b&gt;" in drawn
    assert drawn.count(">a<") == 120
