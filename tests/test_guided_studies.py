"""Studies of saliency guided training: their arms, their maps, and what they conclude."""

import pytest
import torch

from attrain.errors import InputError
from attrain.guided import SaliencyGuided
from attrain.studies import guided_subjects as subjects
from attrain.studies.graph_subjects import images
from attrain.studies.guided_subjects import ARMS, SALIENCIES, Recipe

DIGITS = Recipe(data="digits", model="mnist-cnn", samples=64, epochs=1, batch_size=32)


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
    drop[:, :2] = True  # the upper half: background, and two of the four bright pixels
    bright = (x == 1)[:, 0]
    assert torch.equal(subjects.unmasked(x, drop), x)
    assert torch.equal((subjects.opposite(x, drop) != x)[:, 0], ~drop)
    assert torch.equal((subjects.on_background(x, drop) != x)[:, 0], drop & ~bright)


def test_the_opposite_mask_hides_the_highest_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3, bias=False))
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    options = subjects.under(subjects.HIGHEST).guided
    assert options is not None
    step = SaliencyGuided(model, torch.nn.functional.cross_entropy, **options).step(x, y)
    changed = (step.masked != x).flatten(1)
    gradient = next(model.parameters())[y]  # d logit y / d x
    kept = torch.where(changed, torch.inf, gradient).amin(1)
    assert bool((torch.where(changed, gradient, torch.inf).amin(1) > kept).all())


@pytest.mark.parametrize("title", SALIENCIES)
def test_maps_are_shaped_as_the_inputs_and_repeat(title: str) -> None:
    data = images("digits")
    model = subjects.trained(DIGITS, subjects.REGULAR, 0)
    x = data.test.tensors[0][:3]
    target = subjects.predicted(model, x)
    told = {"baseline": float(x.min()), "typical": subjects.typical(data, 1)}
    found = [subjects.maps(model, x, target, title, **told) for _ in range(2)]
    assert found[0].shape == x.shape
    assert torch.equal(found[0], found[1])


def test_an_unknown_saliency_method_is_named() -> None:
    model = subjects.trained(DIGITS, subjects.REGULAR, 0)
    x = images("digits").test.tensors[0][:1]
    with pytest.raises(InputError, match="saliency method 'gradent'.*'gradient'"):
        subjects.maps(model, x, torch.tensor([0]), "gradent")
