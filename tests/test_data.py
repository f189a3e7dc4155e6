import http.server
import math
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attrain import data
from attrain.data import dataset, toy
from attrain.data import hub as hub_module
from attrain.errors import InputError

REAL = Path(os.environ.get("ATTRAIN_DATA", Path(__file__).parents[2] / "shared" / "data"))
DIGIT_NAMES = tuple(str(digit) for digit in range(10))


def rows(part):
    return {tuple(row) for row in part.tensors[0].flatten(1).tolist()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write pictures as a Hugging Face folder of parquet files, with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(splits, features, name="pictures"):
        for split, columns in splits.items():
            file = tmp_path / name / "data" / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            part = library.Dataset.from_dict(columns, features=library.Features(features(library)))
            part.to_parquet(file)
        return tmp_path / name

    return write


def pictures(count, *, channels=1, size=(5, 4), seed=0):
    """Draw random pictures as PIL images: `count` of `size` (width, height)."""
    images = pytest.importorskip("PIL.Image")
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    random = np.random.default_rng(seed)
    return [images.fromarray(random.integers(0, 256, shape, np.uint8)) for _ in range(count)]


def labelled(library):
    return {"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}


def unnamed(library):
    return {"image": library.Image(), "label": library.Value("int64")}


def test_digits_are_the_default_of_the_library():
    found = data.load("digits")
    x, y = found.train.tensors
    assert x.shape == (1437, 1, 8, 8) and x.dtype == torch.float32 and x.is_contiguous()
    assert y.dtype == torch.int64 and len(found.test) == 360 and found.validation is None
    assert found.classes == DIGIT_NAMES and found.num_classes == 10
    assert found.input_shape == (1, 8, 8) and found.mean.shape == found.std.shape == (1, 1, 1)
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    pixels = found.restore(found.test.tensors[0])
    assert pixels.min() == pytest.approx(0, abs=1e-6) and pixels.max() == pytest.approx(1)
    counts = torch.bincount(found.test.tensors[1])
    assert counts.min() >= 35 and counts.max() <= 37
    assert "scikit-learn" in found.notes


def test_held_out_samples_do_not_depend_on_the_seed():
    first, second = data.load("digits", validation=0.1), data.load("digits", validation=0.1, seed=9)
    for part in ("train", "test", "validation"):
        for left, right in zip(
            getattr(first, part).tensors, getattr(second, part).tensors, strict=True
        ):
            assert torch.equal(left, right)
    whole = data.load("digits")
    assert len(first.train) + len(first.validation) == len(whole.train)
    assert torch.equal(first.test.tensors[1], whole.test.tensors[1])
    share = torch.bincount(first.validation.tensors[1]) / torch.bincount(whole.train.tensors[1])
    assert share.min() > 0.08 and share.max() < 0.12
    assert first.train.tensors[0].mean().item() == pytest.approx(0, abs=1e-6)


def test_hold_out_keeps_every_sample_on_one_side():
    x, y = np.arange(40), np.repeat([0, 1], [10, 30])
    (kept, y_kept), (held, y_held) = dataset.hold_out("x", (x, y), 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(40))
    assert np.bincount(y_held).tolist() == [2, 6] and np.bincount(y_kept).tolist() == [8, 24]


@pytest.mark.parametrize("validation", [-0.1, 1.0, math.nan])
def test_validation_outside_is_refused(validation):
    with pytest.raises(InputError, match="validation is a share of the train set, in 0..1"):
        data.load("digits", validation=validation)


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [("blobs", (1000, 100), 2), ("circles", (10000, 500), 2), ("swirl", (10000, 500), 3)],
)
def test_toy_sets(name, sizes, classes):
    found = data.load(name)
    assert (len(found.train), len(found.test)) == sizes
    assert found.num_classes == classes and found.input_shape == (2,)
    counts = torch.bincount(found.train.tensors[1])
    assert counts.max() - counts.min() <= 1
    assert len(set(found.train.tensors[1][:50].tolist())) == classes
    assert torch.equal(found.train.tensors[0], data.load(name, seed=0).train.tensors[0])
    assert not torch.equal(found.train.tensors[0], data.load(name, seed=1).train.tensors[0])
    assert torch.equal(found.mean, torch.zeros(2)) and torch.equal(found.std, torch.ones(2))
    assert rows(found.train) & rows(found.test) <= {(0.0, 0.0)}  # where the arms begin


def test_blobs_and_circles_lie_where_the_paper_puts_them():
    x, y = data.load("blobs").train.tensors
    for label in (0, 1):
        assert x[y == label].mean(0).tolist() == pytest.approx([label + 1.0] * 2, abs=0.05)
        assert x[y == label].std(0).tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    x, y = data.load("circles").train.tensors
    radius = x.norm(dim=1)
    assert radius[y == 0].mean().item() == pytest.approx(1.02, abs=0.03)
    assert radius[y == 1].square().mean().item() == pytest.approx(2 * 0.04 + 0.05**2, abs=0.01)


def test_swirl_equals_twin():
    found_x, found_y = toy._swirl(7, np.random.RandomState(3))
    random = np.random.RandomState(3)
    points = []
    for arm, size in enumerate((3, 2, 2)):
        noise = random.standard_normal(size)
        for index in range(size):
            radius = index / (size - 1)
            angle = 4 * arm + 4 * index / (size - 1) + 0.2 * noise[index]
            points.append((radius * math.sin(angle), radius * math.cos(angle), arm))
    order = random.permutation(7)
    assert found_x.tolist() == [pytest.approx(points[index][:2]) for index in order]
    assert found_y.tolist() == [points[index][2] for index in order]


def test_toy_seed_is_checked():
    with pytest.raises(InputError, match=r"seed of a toy set must be in 0..4294967295: got -1"):
        data.load("blobs", seed=-1)


def test_grey_pictures_of_a_folder(folder):
    train, test = pictures(6), pictures(2, seed=1)
    path = folder(
        {
            "train": {"image": train, "label": [0, 1, 0, 1, 0, 1]},
            "test": {"image": test, "label": [1, 0]},
        },
        labelled,
    )
    found = data.load(str(path))
    assert found.classes == ("cat", "dog") and found.input_shape == (1, 4, 5)
    assert found.train.tensors[1].tolist() == [0, 1, 0, 1, 0, 1]
    for part, originals in ((found.train, train), (found.test, test)):
        for x, picture in zip(found.restore(part.tensors[0]), originals, strict=True):
            assert np.allclose(x[0].numpy() * 255, np.asarray(picture), atol=1e-3)
    whole = np.stack([np.asarray(picture) for picture in train]) / 255
    assert found.mean.item() == pytest.approx(whole.mean(), abs=1e-6)
    assert found.std.item() == pytest.approx(whole.std(), abs=1e-6)
    assert found.notes == f"folder {path}, label 'label'"


def test_colour_pictures_and_grey_ones_among_them(folder):
    mixed = pictures(5, channels=3) + pictures(5)
    path = folder({"train": {"img": mixed, "fine": [0, 1] * 5}}, _cifar_columns)
    found = data.load(str(path))
    assert found.input_shape == (3, 4, 5) and found.mean.shape == (3, 1, 1)
    assert (len(found.train), len(found.test)) == (8, 2)
    assert "label 'fine'" in found.notes
    both = torch.cat([found.train.tensors[0], found.test.tensors[0]])
    grey = [x for x in found.restore(both) if torch.allclose(x[0], x[2], atol=1e-6)]
    assert len(grey) == 5


def _cifar_columns(library):
    return {"img": library.Image(), "fine": library.ClassLabel(names=["a", "b"])}


def test_labels_without_names_are_numbered(folder):
    path = folder(
        {
            "train": {"image": pictures(4), "label": [7, 10, 7, 10]},
            "validation": {"image": pictures(2), "label": [10, 7]},
        },
        unnamed,
    )
    found = data.load(str(path))
    assert found.classes == ("7", "10")
    assert found.test.tensors[1].tolist() == [1, 0]


def test_pictures_of_several_sizes_are_scaled_to_one(folder, tmp_path, monkeypatch):
    several = pictures(4) + pictures(4, size=(9, 7)) + pictures(2, size=(6, 6))
    path = folder({"train": {"image": several, "label": [0, 1] * 5}}, labelled, name="bird")
    found = data.load(f"{path}@6")
    assert found.name == f"{path}@6" and found.input_shape == (1, 6, 6)
    assert found.notes.endswith("label 'label', scaled to 6x6")
    every = found.restore(torch.cat([found.train.tensors[0], found.test.tensors[0]]))
    kept = [torch.tensor(np.array(each)).float() / 255 for each in several[8:]]
    for wanted in kept:  # already of that size
        assert any(torch.allclose(x[0], wanted, atol=1e-5) for x in every)
    monkeypatch.setenv("ATTRAIN_DATA", str(tmp_path))
    assert data.load("bird@5").input_shape == (1, 5, 5)
    with pytest.raises(InputError, match=r"differ in size .*: scale them to one size, such as b"):
        data.load("bird")


@pytest.mark.parametrize("name", ["digits@8", "table.csv@8", "nowhere@8"])
def test_only_pictures_are_scaled(name):
    with pytest.raises(InputError, match=f"data .{name}.: only pictures of a folder or of the hub"):
        data.load(name)


def test_rows_of_mnist_are_steps_of_time(folder, tmp_path, monkeypatch):
    split = {"image": pictures(12), "label": [0, 1] * 6}
    folder({"train": split, "test": split}, labelled, name="mnist")
    monkeypatch.setenv("ATTRAIN_DATA", str(tmp_path))
    pixels, found = (data.load(name, validation=0.5) for name in ("mnist", "mnist-series"))
    assert found.input_shape == (4, 5) and found.name == "mnist-series"
    for part in ("train", "test", "validation"):
        (x, y), (series, labels) = (getattr(each, part).tensors for each in (pixels, found))
        assert torch.equal(x[:, 0], series) and torch.equal(y, labels)
    x = found.test.tensors[0]
    assert torch.equal(found.restore(x), pixels.restore(pixels.test.tensors[0])[:, 0])
    assert found.notes.endswith("each row of pixels a step of time")


def test_jpeg_is_told(tmp_path, folder):
    for split, count in (("train", 4), ("test", 2)):
        for number, picture in enumerate(pictures(count, channels=3, size=(8, 8))):
            file = tmp_path / "photos" / split / "ab"[number % 2] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    found = data.load(str(tmp_path / "photos"))
    assert found.classes == ("a", "b") and len(found.train) == 4
    assert found.notes.endswith("stored as JPEG (lossy)")


@pytest.mark.parametrize(
    ("splits", "features", "message"),
    [
        (
            lambda: {
                "train": {"image": pictures(2) + pictures(2, size=(6, 6)), "label": [0, 1, 0, 1]}
            },
            labelled,
            r"pictures of data set .* differ in size \(5x4, 6x6\): scale them to one size",
        ),
        (
            lambda: {"train": {"image": pictures(4), "label": [0, 1, None, -1]}},
            unnamed,
            "2 of 4 samples of a split have no label",
        ),
        (
            lambda: {"train": {"image": pictures(10), "label": [1] * 10}},
            labelled,
            r"has only one class \('dog'\): a classifier needs two or more",
        ),
        (
            lambda: {
                "train": {"image": pictures(4), "label": [3, 4, 3, 4]},
                "test": {"image": pictures(2), "label": [3, 5]},
            },
            unnamed,
            r"test set of data set .* has labels that its train set lacks \('5'\)",
        ),
        (
            lambda: {
                "train": {"image": pictures(4), "label": [0, 0, 0, 0]},
                "test": {"image": pictures(2), "label": [0, 1]},
            },
            labelled,
            "has only one class",
        ),
        (
            lambda: {"train": {"image": pictures(3), "label": [0, 1, 0]}},
            labelled,
            r"too small to hold out 20% of its 3 samples .* smallest class has 1 samples",
        ),
        (
            lambda: {part: {"image": pictures(1), "label": [0]} for part in ("one", "two")},
            labelled,
            "has the splits one, two: one named train is needed",
        ),
        (
            lambda: {"train": {"image": [], "label": []}},
            labelled,
            "cannot be loaded: .* corresponds to no data",
        ),
        (
            lambda: {"train": {"number": ["a", "b"], "label": [0, 1]}},
            lambda library: {"number": library.Value("string"), "label": library.Value("int64")},
            r"has no column of pictures \(its columns: number, label\)",
        ),
        (
            lambda: {"train": {"image": pictures(2), "kind": [0, 1]}},
            lambda library: {"image": library.Image(), "kind": library.Value("int64")},
            r"has no column of labels \(its columns: image, kind\): name it label",
        ),
        (
            lambda: {"train": {"image": pictures(2), "label": [0.5, 1.5]}},
            lambda library: {"image": library.Image(), "label": library.Value("float32")},
            "column 'label' must hold one class per sample",
        ),
        (
            lambda: {"train": {"image": [None, *pictures(1)], "label": [0, 1]}},
            labelled,
            "picture 0 of data set .* cannot be read: it is missing",
        ),
        (
            lambda: {"train": {"image": [{"bytes": b"no picture", "path": None}], "label": [0]}},
            labelled,
            "picture 0 of data set .* cannot be read: unknown format, or damaged",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence(folder, splits, features, message):
    path = folder(splits(), features)
    with pytest.raises(InputError, match=message) as caught:
        data.load(str(path))
    assert "\n" not in str(caught.value)


def test_sixteen_bit_pictures_are_refused(folder):
    images = pytest.importorskip("PIL.Image")
    deep = [images.fromarray(np.full((4, 4), 1000, np.uint16)) for _ in range(2)]
    path = folder({"train": {"image": deep, "label": [0, 1]}}, labelled)
    with pytest.raises(InputError, match="picture 0 of data set .* has mode I;16: 8-bit grey or"):
        data.load(str(path))


def test_empty_folder_is_one_sentence(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="data set .*nothing' cannot be loaded: .* any data files"):
        data.load(str(tmp_path / "nothing"))


def test_short_names_are_looked_for_in_the_data_folder(folder, tmp_path, monkeypatch):
    split = {"image": pictures(10), "label": [0, 1] * 5}
    folder({"train": split}, labelled, name="mnist")
    monkeypatch.setenv("ATTRAIN_DATA", str(tmp_path))
    found = data.load("mnist", validation=0.25)
    assert found.name == "mnist" and len(found.validation) == 2


def test_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"an extra that is missing .*: pip install attrain\[data"):
        data.load(str(tmp_path))


class NoSuchDataSet(http.server.BaseHTTPRequestHandler):
    """A hub that knows no data set."""

    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(folder, monkeypatch):
    """Point the hub to an address of this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.mark.parametrize("name", ["org/name", "mnist"])
def test_hub_that_cannot_be_reached_is_one_sentence_at_once(hub, name, monkeypatch):
    monkeypatch.delenv("ATTRAIN_DATA", raising=False)
    hub("http://127.0.0.1:9")  # the discard port: nothing listens there
    started = time.monotonic()
    with pytest.raises(InputError, match="is not in the cache and the Hugging Face hub cannot be"):
        data.load(name)
    assert time.monotonic() - started < 5


def test_data_set_of_the_hub_with_a_script_is_read_from_the_hubs_copy(folder, monkeypatch):
    library = pytest.importorskip("datasets")
    copy = folder({"train": {"image": pictures(4), "label": [0, 1, 0, 1]}}, labelled)
    load, asked = library.load_dataset, []

    def from_the_hub(source, revision=None):
        asked.append((source, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found pets.py")
        return load(str(copy))

    monkeypatch.setattr(library, "load_dataset", from_the_hub)
    monkeypatch.setattr(hub_module, "_hub_answers", lambda repository: True)
    opened = hub_module.open_hub("org/pets", "org/pets")
    assert opened.splits["train"].num_rows == 4
    assert asked == [("org/pets", None), ("org/pets", "refs/convert/parquet")]


def test_data_set_that_the_hub_does_not_have(hub):
    with http.server.HTTPServer(("127.0.0.1", 0), NoSuchDataSet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(InputError, match="hub has no data set 'org/nmae' for you: check the"):
            data.load("org/nmae")
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digist", "unknown data set 'digist'. Did you mean 'digits'.* Or a folder, a .csv"),
        ("nowhere/data.csv", "data 'nowhere/data.csv' does not exist: give a .csv or .npz file"),
        ("./nowhere", "data './nowhere' does not exist"),
        (__file__, r"test_data.py' is no .csv or .npz file: give"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError, match=message):
        data.load(name)


CSV = "a,label,b\n" + "".join(f"{index},{'xyz'[index % 3]},{index * 10}\n" for index in range(30))


def write(tmp_path, content, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_csv(tmp_path):
    found = data.load(write(tmp_path, CSV))
    assert (len(found.train), len(found.test)) == (24, 6)
    assert found.classes == ("x", "y", "z") and found.input_shape == (2,)
    x = found.train.tensors[0]
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(x.std(0, correction=0), torch.ones(2), atol=1e-6)
    for part in (found.train, found.test):
        for row, y in zip(found.restore(part.tensors[0]), part.tensors[1], strict=True):
            assert row[1].item() == pytest.approx(10 * row[0].item(), abs=1e-3)
            assert round(row[0].item()) % 3 == y.item()


def test_csv_with_numbers_as_labels_and_a_constant_column(tmp_path):
    lines = "".join(f"1,{index},{(9, 10)[index % 2]}\n" for index in range(20))
    found = data.load(write(tmp_path, "\ufeffconstant,value,kind\n\n" + lines))
    assert found.classes == ("9", "10") and "'kind'" in found.notes
    assert torch.equal(found.train.tensors[0][:, 0], torch.zeros(16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds 0 rows of 0 columns below its header"),
        ("a,label\n", "holds 0 rows of 2 columns below its header"),
        ("label\nx\n", "holds 1 rows of 1 columns below its header"),
        ("1,2\n3,4\n", "has no header: its first line must name the columns"),
        (CSV + "1,x\n", "line 32: 2 cells where the header has 3"),
        (CSV + "nan,x,1\n", "line 32, column 'a': a finite number is needed, got 'nan'"),
        (CSV + "inf,x,1\n", "line 32, column 'a': a finite number is needed, got 'inf'"),
        (CSV + "1,x,\n", "line 32, column 'b': a finite number is needed, got ''"),
        (CSV + "1, ,2\n", r"line 32: the label \('label'\) is missing"),
        (b"a,label\n\xff\xfe,1\n", "cannot be read as CSV: .*utf-8"),
        ("a,b\n" + "1,x\n" * 10, r"has only one class \('x'\)"),
        ("a,b\n" + "".join(f"1,{index}.5\n" for index in range(9)), "another column is the label"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        data.load(write(tmp_path, content))


def archive(tmp_path, **arrays):
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    return str(path)


def test_npz_table_and_its_own_test_set(tmp_path):
    x = np.arange(40, dtype=">f8").reshape(20, 2)
    y = np.array(["b", "a"] * 10)
    found = data.load(archive(tmp_path, x=x, y=y))
    assert (len(found.train), len(found.test)) == (16, 4) and found.classes == ("a", "b")
    found = data.load(archive(tmp_path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3]))
    assert (len(found.train), len(found.test)) == (20, 3)
    assert found.test.tensors[1].tolist() == [1, 0, 1]
    assert torch.allclose(found.restore(found.test.tensors[0]), torch.tensor(x[:3].tolist()))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((20, 5, 4), (1, 5, 4)),
        ((20, 2, 5, 4), (2, 5, 4)),
        ((20, 3, 5, 4), (3, 5, 4)),
        ((20, 5, 4, 3), (3, 5, 4)),
    ],
)
def test_npz_pictures(tmp_path, shape, wanted):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = data.load(archive(tmp_path, x=x, y=np.arange(20.0)[:, None] % 2))
    assert found.input_shape == wanted and found.mean.shape == (wanted[0], 1, 1)
    pixels = found.restore(found.train.tensors[0])
    assert 0 <= pixels.min() + 1e-6 and 0.9 < pixels.max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros(3)}, "holds images: x and y are needed, or x_train"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, r"x must be \[N, F\].*got \[3\] and \[3\]"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, r"got \[3, 2\] and \[4\]"),
        ({"x": np.full((4, 2), np.nan), "y": np.arange(4)}, "x must hold finite numbers only"),
        ({"x": np.array([["a"]] * 4), "y": np.arange(4)}, r"finite numbers only \(it is <U1"),
        ({"x": np.zeros((4, 2)), "y": np.arange(4) / 3}, "y must hold whole numbers or text"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "has no samples in its train or its test"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(9, int)}, r"has only one class \('0'\)"),
        (
            {"x": np.array([[object()]] * 4), "y": np.arange(4)},
            "cannot be read as a NumPy archive of plain arrays",
        ),
        (
            {
                "x_train": np.zeros((4, 2)),
                "y_train": np.arange(4) % 2,
                "x_test": np.zeros((4, 3)),
                "y_test": np.arange(4) % 2,
            },
            r"samples of train and test differ in shape, \[\(2,\), \(3,\)\]",
        ),
        (
            {
                "x_train": np.zeros((4, 2)),
                "y_train": np.arange(4) % 2,
                "x_test": np.zeros((2, 2)),
                "y_test": np.array([1, 2]),
            },
            r"has labels that its train set lacks \('2'\)",
        ),
    ],
)
def test_what_is_wrong_with_an_archive_is_one_sentence(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        data.load(archive(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_unreadable_archive_is_one_sentence(tmp_path, content):
    with pytest.raises(InputError, match="cannot be read as a NumPy archive of plain arrays"):
        data.load(write(tmp_path, content, "arrays.npz"))


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason=f"no data set in {REAL / 'mnist'}")
@pytest.mark.slow
def test_real_mnist(folder, monkeypatch):
    monkeypatch.setenv("ATTRAIN_DATA", str(REAL))
    found = data.load("mnist")
    assert (len(found.train), len(found.test)) == (60000, 10000)
    assert found.classes == DIGIT_NAMES and found.input_shape == (1, 28, 28)
    assert found.mean.item() == pytest.approx(0.1307, abs=1e-4)
    assert found.std.item() == pytest.approx(0.3081, abs=1e-4)
    assert torch.bincount(found.train.tensors[1])[:2].tolist() == [5923, 6742]
