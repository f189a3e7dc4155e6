"""Texts in Hugging Face's form: words, rationales, vocabulary, vectors of words."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from attrain import data, trained
from attrain.cli import run
from attrain.data import texts, word_vectors
from attrain.errors import InputError
from attrain.models import build

datasets = pytest.importorskip("datasets")
REAL = Path(os.environ.get("ATTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data"))

GOOD = ["a good film , it 's fun", "good fun and good songs", "what a good story", "fun , good"]
BAD = ["a bad film , it 's dull", "bad and dull songs", "what a bad story", "dull , bad !"]
SNLI = ("entailment", "neutral", "contradiction")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write a folder of parquet files as the hub has them, with a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv(texts.VECTORS, raising=False)

    def write(splits, features=None, name="texts"):
        for split, columns in splits.items():
            file = tmp_path / name / "data" / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            kinds = None if features is None else datasets.Features(features)
            datasets.Dataset.from_dict(columns, features=kinds).to_parquet(file)
        return tmp_path / name

    return write


def movies(spans=False):
    string = datasets.Value("string")
    features = {
        "review": string,
        "label": datasets.ClassLabel(names=["NEG", "POS"]),
        "evidences": datasets.List(string),
    }
    train = {
        "review": [*GOOD, *BAD],
        "label": [1] * 4 + [0] * 4,
        "evidences": [["good film", "fun"], ["good songs"], [], ["good"]]
        + [["bad film"], ["dull songs"], ["bad story", "not in it"], ["bad !"]],
    }
    test = {
        "review": ["a dull and soporific thing", "it is n't bad"],
        "label": [0, 1],
        "evidences": [["soporific thing"], ["is n't bad"]],
    }
    if spans:
        features["evidence_spans"] = datasets.List(datasets.List(datasets.Value("int32")))
        train["evidence_spans"] = [[[1, 3]], [], [], []] + [[[0, 1], [5, 99]], [], [], []]
        test["evidence_spans"] = [[[3, 4]], []]
    return {"train": train, "test": test}, features


def read(found, part, k):
    """Return the words of a text without its padding, and those of its evidence."""
    numbers = getattr(found, part).tensors[0][k].tolist()
    words = [found.words[number] for number in numbers if number]
    reason = found.evidence[part][k].tolist() if found.evidence else []
    marked = [found.words[n] for n, mark in zip(numbers, reason, strict=False) if mark]
    return words, marked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's what I don't do.", "it 's what i do n't do ."),
        ("did n't snag ' it '", "did n't snag ' it '"),
        ("3-D at 7.50 $", "3 - d at 7 . 50 $"),
        ("We'll they've you're I'm he'd", "we 'll they 've you 're i 'm he 'd"),
        ("çay & naïve", "çay & naïve"),
        ("", ""),
    ],
)
def test_words_are_split_as_in_the_penn_treebank(text, words):
    assert texts.words_of(text) == words.split()
    assert texts.words_of(words) == words.split()


def test_movies_with_rationales_found_by_their_quotes(folder):
    found = data.load(str(folder(*movies())))
    assert found.classes == ("NEG", "POS") and found.num_classes == 2
    assert found.train.tensors[0].dtype == torch.int64 and found.input_shape == (7,)
    assert found.train.tensors[1].tolist() == [1] * 4 + [0] * 4
    assert read(found, "train", 0) == (GOOD[0].split(), ["good", "film", "fun"])
    assert read(found, "train", 2) == (GOOD[2].split(), [])
    assert read(found, "train", 6) == (BAD[2].split(), ["bad", "story"])
    assert read(found, "train", 7)[1] == ["bad", "!"]
    words, marked = read(found, "test", 0)
    assert words == ["a", "dull", "and", "<unknown>", "<unknown>"] and marked == words[3:]
    assert torch.equal(found.restore(found.test.tensors[0]), found.test.tensors[0])
    assert "texts 'review', label 'label'; " in found.notes
    assert "0% are longer); word vectors made of the training texts" in found.notes


def test_spans_count_whitespace_tokens_and_win_over_quotes(folder):
    found = data.load(str(folder(*movies(spans=True))))
    assert read(found, "train", 0)[1] == ["good", "film"]
    assert read(found, "train", 4)[1] == ["a", "'s", "dull"]
    assert read(found, "train", 1)[1] == []
    assert read(found, "test", 0)[1] == ["<unknown>"]


def test_pieces_of_a_token_share_its_mark(folder):
    splits, features = movies()
    splits["train"]["review"][0] = "He didn't like-it at all"
    splits["train"]["evidences"][0] = ["didn't like-it"]
    found = data.load(str(folder(splits, features)))
    words, marked = read(found, "train", 0)
    assert words == "he did n't like - it at all".split()
    assert marked == "did n't like - it".split()


def test_quotes_are_found_where_they_stand_first_as_whole_words():
    tokens = "a bad ab ad a bad ad".split()
    assert texts.quoted(tokens, ["bad", "ad", "bad ad", "b", "", "a  bad"]) == [
        (1, 2),
        (3, 4),
        (5, 7),
        (0, 2),
    ]


def test_the_vocabulary_is_of_the_training_set_alone_and_most_frequent_first(folder):
    found = data.load(str(folder(*movies())))
    assert found.words[:3] == ("<padding>", "<unknown>", "<between>")
    counts = {}
    for text in [*GOOD, *BAD]:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    assert found.words[3:] == tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    assert not {"soporific", "thing", "n't"} & set(found.words)
    assert found.vectors.shape == (len(found.words), len(found.words))
    assert found.vectors.dtype == torch.float32 and not found.vectors[0].any()


def test_what_is_held_out_has_no_say_in_the_vocabulary(folder):
    splits, features = movies()
    splits["train"]["review"] = [f"{text} only{k}" for k, text in enumerate([*GOOD, *BAD])]
    path = folder(splits, features)
    found = data.load(str(path), validation=0.25)
    assert (len(found.train), len(found.validation)) == (6, 2)
    assert sum(word == "only" for word in found.words) == 0
    assert sum(word.startswith("only") for word in found.words) == 6
    for k in range(2):
        assert read(found, "validation", k)[0][-1] == "<unknown>"
    again = data.load(str(path), validation=0.25)
    assert torch.equal(again.vectors, found.vectors)
    assert torch.equal(again.evidence["validation"], found.evidence["validation"])
    shown = [read(found, "validation", k) for k in range(2)]
    assert all(set(marked) <= set(words) for words, marked in shown)


def test_long_texts_are_cut_and_it_is_told(folder, monkeypatch):
    monkeypatch.setattr(texts, "LENGTH", 4)
    monkeypatch.setattr(texts, "VOCABULARY", 5)
    found = data.load(str(folder(*movies())))
    assert found.input_shape == (4,) and len(found.words) == 8
    assert "the first 4 of each text (38% are longer)" in found.notes  # 3 of 8
    assert found.evidence["train"].shape == (8, 4)


def test_esnli_joins_its_texts_and_is_trained_on_validation(folder):
    columns = {
        "premise": ["A man sleeps.", "A dog runs.", "Women sing."],
        "hypothesis": ["He isn't awake", "An animal moves", "Men sing"],
        "label": [0, 1, 2],
        "explanation_1": ["x", "y", "z"],
    }
    string = datasets.Value("string")
    features = {"premise": string, "hypothesis": string, "label": datasets.ClassLabel(names=SNLI)}
    features["explanation_1"] = string
    found = data.load(str(folder({"validation": columns, "test": columns}, features)))
    assert read(found, "train", 0)[0] == "a man sleeps . <between> he is n't awake".split()
    assert found.classes == SNLI and not found.evidence
    assert "no train split: trained on its validation split" in found.notes
    assert "texts 'premise' and 'hypothesis'" in found.notes


def test_fever_with_its_sentences_leaves_out_what_is_undecided(tmp_path, folder):
    rows = [
        ("Fire is hot.", "SUPPORTS", [["Fire", "3", "Fire is hot, very hot."], ["Heat", "0", "x"]]),
        ("Ice is hot.", "REFUTES", [["Ice", "1", "Ice is cold."]]),
        ("Mud is old.", "NOT ENOUGH INFO", []),
    ]
    (tmp_path / "fever").mkdir()
    for split in ("train", "validation", "test"):
        lines = [
            json.dumps({"claim": claim, "label": label, "evidence": evidence, "id": k})
            for k, (claim, label, evidence) in enumerate(rows)
        ]
        (tmp_path / "fever" / f"{split}.jsonl").write_text("\n".join(lines))
    found = data.load(str(tmp_path / "fever"))
    assert found.classes == ("REFUTES", "SUPPORTS")
    assert (len(found.train), len(found.test)) == (2, 2)
    wanted = "fire is hot . <between> fire is hot , very hot . x".split()
    assert read(found, "train", 0)[0] == wanted


def test_fever_without_sentences_and_with_named_classes(folder):
    features = {
        "claim": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["NOT ENOUGH INFO", "REFUTES", "SUPPORTS"]),
    }
    columns = {"claim": ["a b", "c d", "e f"], "label": [1, 0, 2]}
    found = data.load(str(folder({"train": columns, "test": columns}, features)))
    assert found.train.tensors[1].tolist() == [1, 2]


@pytest.mark.parametrize("column", ["text", "sentence"])
def test_any_texts_with_labels_of_any_kind(folder, column):
    columns = {
        column: [*GOOD, *BAD] * 2,
        "label": ["yes"] * 4 + ["no"] * 4 + ["yes"] * 4 + ["no"] * 4,
    }
    found = data.load(str(folder({"train": columns})))
    assert found.classes == ("no", "yes") and (len(found.train), len(found.test)) == (12, 4)
    text = read(found, "train", 0)[0]
    assert ("yes" if "good" in text else "no") == found.classes[found.train.tensors[1][0]]


def test_short_names_are_looked_for_in_the_data_folder(folder, tmp_path, monkeypatch):
    folder(*movies(), name="movie_rationales")
    monkeypatch.setenv("ATTRAIN_DATA", str(tmp_path))
    assert data.load("movies").name == "movies"
    assert data.HUB_NAMES["fever"] == "copenlu/fever_gold_evidence"


def test_texts_that_cannot_work_are_refused(folder):
    columns = {"text": ["a", "b"], "kind": ["x", "y"]}
    with pytest.raises(InputError, match=r"no column of labels \(its columns: text, kind\)"):
        data.load(str(folder({"train": columns}, name="first")))
    columns = {"text": ["a", "b"], "label": [0, None]}
    with pytest.raises(InputError, match="1 of 2 samples of a split have no label"):
        data.load(str(folder({"train": columns}, name="second")))
    columns = {"text": ["a", "b", "c", "d"] * 2, "label": [0, 1] * 4}
    path = folder({"train": columns}, name="third")
    with pytest.raises(InputError, match="third@8' has no pictures to scale: leave @8 out"):
        data.load(f"{path}@8")


# Vectors of words ---------------------------------------------------------------------------------


def test_information_is_its_definition():
    lines = [[0, 1, 2, 0, 3], [1, 1, 4], [2], [0, 1, 2, 3, 4, 0, 1, 2, 3]]
    counts = np.zeros((6, 6))
    for line in lines:
        for i, word in enumerate(line):
            for j, context in enumerate(line):
                if i != j and abs(i - j) <= word_vectors.WINDOW:
                    counts[word, context] += 1
    total = counts.sum()
    smoothed = counts.sum(0) ** 0.75
    wanted = np.zeros((6, 6))
    for word in range(6):
        for context in range(6):
            if counts[word, context]:
                joint = counts[word, context] / total
                alone = counts[word].sum() / total * smoothed[context] / smoothed.sum()
                wanted[word, context] = max(0.0, math.log(joint / alone))
    assert wanted.any() and not wanted[5].any()
    assert np.allclose(word_vectors.information(lines, 6).toarray(), wanted)


@pytest.mark.parametrize("dense", [0, 1000])
def test_vectors_are_those_of_the_largest_singular_values(dense, monkeypatch):
    monkeypatch.setattr(word_vectors, "DENSE", dense)
    random = np.random.default_rng(0)
    lines = [list(random.integers(0, 30, 40)) for _ in range(20)]
    found = word_vectors.made_vectors(lines, 30, 8)
    left, values, right = np.linalg.svd(word_vectors.information(lines, 30).toarray())
    wanted = left[:, :8] * np.sqrt(values[:8])
    wanted /= np.sqrt(np.square(wanted).mean())
    # Signs of singular vectors are free, so products of words with each other are compared.
    assert np.allclose(found @ found.T, wanted @ wanted.T, atol=1e-4)
    assert np.square(found).mean() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found, word_vectors.made_vectors(lines, 30, 8))


def test_words_in_the_same_company_have_alike_vectors():
    """0 and 1 never meet, but both come before 2 and 3; so do 4 and 5 before 6 and 7."""
    lines = [[0, 2, 3], [1, 2, 3], [4, 6, 7], [5, 6, 7]] * 5
    found = word_vectors.made_vectors(lines, 9, 4)
    unit = found[:8] / np.linalg.norm(found[:8], axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[0, 1] > 0.99 and alike[4, 5] > 0.99
    assert np.abs(alike[:4, 4:]).max() < 0.01
    assert not found[8].any()
    assert not word_vectors.made_vectors([[0], [1]], 3).any()


def glove(tmp_path, text, name="glove.txt"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_vectors_from_a_file(tmp_path):
    path = glove(tmp_path, "the 1 2 3\n. . . 4 5 6\nGood 0 0 0\ngood 7 8 -9e-1\n")
    found, known = word_vectors.read_vectors(path, ["<padding>", "good", ". . .", "rare"])
    assert known == 2
    mean = [5.5, 6.5, 2.55]
    assert found.tolist() == [pytest.approx(row) for row in (mean, [7, 8, -0.9], [4, 5, 6], mean)]
    with_header = glove(tmp_path, "2 3\nthe 1 2 3\ngood 4 5 6\n", "word2vec.txt")
    assert word_vectors.read_vectors(with_header, ["good"])[0].tolist() == [[4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("good 1 2\nfilm 1\n", r"glove.txt, line 2: a word and 2 numbers are wanted, got 'film 1'"),
        ("good 1 x\n", "glove.txt, line 1: could not convert string to float: 'x'"),
        ("good 1 nan\n", "glove.txt, line 1: a value is not finite"),
        ("gut 1 2\n", "glove.txt have none of the 1 words of the texts"),
        ("", "have none of the 1 words"),
        ("good\n", "line 1: a word and 1 numbers are wanted, got 'good'"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        word_vectors.read_vectors(glove(tmp_path, text), ["good"])
    with pytest.raises(InputError, match="nowhere.txt cannot be read: .*No such file"):
        word_vectors.read_vectors(tmp_path / "nowhere.txt", ["good"])


def test_the_environment_names_the_file(tmp_path, folder, monkeypatch):
    monkeypatch.setenv(texts.VECTORS, str(glove(tmp_path, "good 1 2\nbad 3 4\n")))
    found = data.load(str(folder(*movies())))
    assert found.vectors[found.words.index("bad")].tolist() == [3, 4]
    assert found.vectors[0].tolist() == [0, 0] and found.vectors[1].tolist() == [2, 3]
    assert "word vectors glove.txt, which has 2 of the words" in found.notes


# The whole way ------------------------------------------------------------------------------------


def test_texts_are_trained_on_measured_and_explained(folder, tmp_path, capsys):
    splits, features = movies()
    splits["train"] = {name: values * 8 for name, values in splits["train"].items()}
    path, out = folder(splits, features), tmp_path / "out"
    flags = ["--seeds", "1", "--epochs", "2", "--batch-size", "16", "--device", "cpu"]
    where = ["--data", str(path), "--model", "bilstm"]
    assert run(["compare", *where, *flags, "--out", str(out)]) == 0
    assert (out / "report.html").exists() and not (out / "samples.json").exists()
    notes = json.loads((out / "config.json").read_text())["data"]["notes"]
    assert "word vectors made of the training texts" in notes
    for method in ("lrp", "saliency", "lime"):
        there = tmp_path / method
        place = str(out / "lfp" / "seed-0")
        assert run(["attribute", place, "--method", method, "--out", str(there)]) == 0
        page = (there / "attributions.html").read_text()
        assert "dull #1" in page or "bad #3" in page
    assert run(["evaluate", str(out / "sgd" / "seed-0")]) == 0
    capsys.readouterr()
    for model, message in (
        ("mlp", "the data are texts, which model 'mlp' cannot read. Models for texts: bilstm"),
        ("resnet18", "the data are texts, which model 'resnet18' cannot read"),
    ):
        assert run(["train", "--data", str(path), "--model", model, "--out", str(out / "x")]) == 2
        assert message in capsys.readouterr().err


def test_texts_are_trained_on_with_guidance_and_judged_by_their_rationales(
    folder, tmp_path, capsys
):
    splits, features = movies()
    splits["train"] = {name: values * 8 for name, values in splits["train"].items()}
    path, out = folder(splits, features), tmp_path / "out"
    flags = ["--seeds", "1", "--epochs", "2", "--batch-size", "16", "--device", "cpu", "--no-rival"]
    methods = ["--methods", "sgd", "saliency-guided", "--optimizer", "adam"]
    where = ["--data", str(path), "--model", "bilstm", "--out", str(out)]
    assert run(["compare", *where, *methods, *flags]) == 0
    results = json.loads((out / "results.json").read_text())["methods"]
    for method in ("sgd", "saliency-guided"):
        assert results[method]["aup_above_uniform"]["mean"] is not None
        assert results[method]["faithfulness"]["mean"] is None
    assert "AUP above random" in (out / "report.html").read_text()
    analysis = json.loads((out / "sgd" / "seed-0" / "analysis.json").read_text())
    assert analysis["localisation"]["samples"] == 2 and "robustness" not in analysis
    capsys.readouterr()
    place = str(out / "saliency-guided" / "seed-0")
    names = ["localisation", "comprehensiveness", "sufficiency"]
    assert run(["evaluate", place, "--measures", *names, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["aup_above_features"] is None and figures["aup"] > 0
    assert run(["evaluate", place, "--measures", "pgd"]) == 2
    assert "numbers of words, which have no size to change, as pgd does" in capsys.readouterr().err


def test_a_model_that_looks_up_no_vectors_is_told_what_else_there_is():
    with pytest.raises(InputError, match="has no nn.Embedding, .*: give --layer, or lime, kernel"):
        trained._embedding(torch.nn.Linear(2, 2))


def test_a_model_of_ones_own_may_take_the_vectors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_text_model.py").write_text(
        "from torch import nn\n"
        "class Bag(nn.Module):\n"
        "    def __init__(self, vectors, num_classes):\n"
        "        super().__init__()\n"
        "        self.embedding = nn.Embedding.from_pretrained(vectors)\n"
        "        self.fc = nn.Linear(vectors.shape[1], num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.embedding(x).mean(1))\n"
    )
    model = build("own_text_model:Bag", (5,), 3, vectors=torch.randn(9, 4))
    assert model.fc.in_features == 4


@pytest.mark.skipif(not (REAL / "movie_rationales").is_dir(), reason=f"no data in {REAL}")
def test_real_movies_have_the_rationales_of_their_quotes(monkeypatch):
    monkeypatch.setenv("ATTRAIN_DATA", str(REAL))
    rows = datasets.load_dataset(str(REAL / "movie_rationales"))["train"].select(range(200))
    same = total = 0
    for row in rows:
        found = set(texts.quoted(row["review"].split(), row["evidences"]))
        spans = {tuple(span) for span in row["evidence_spans"]}
        same, total = same + len(found & spans), total + len(spans)
    assert same / total > 0.98


@pytest.mark.skipif(not (REAL / "esnli").is_dir(), reason=f"no data in {REAL}")
def test_real_esnli(monkeypatch):
    monkeypatch.setenv("ATTRAIN_DATA", str(REAL))
    monkeypatch.delenv(texts.VECTORS, raising=False)
    found = data.load("esnli")
    assert (len(found.train), len(found.test)) == (9842, 9824) and found.classes == SNLI
    assert len(found.words) > 5000 and found.vectors.shape[1] == 100
    unknown = (found.test.tensors[0] == 1).sum() / (found.test.tensors[0] != 0).sum()
    assert unknown < 0.05
