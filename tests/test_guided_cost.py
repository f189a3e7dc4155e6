"""What a step costs, and what the study of the cost of guided training concludes."""

import torch
from torch import nn

from attrain.metrics.cost import cpu_time, interleaved, saved_at_once

# Time and memory ----------------------------------------------------------------------------------


def test_what_is_held_at_once_is_the_most_at_any_time_and_not_the_sum() -> None:
    layer = nn.Linear(10, 5, bias=False)
    x, z = torch.randn(7, 10), torch.randn(70, 10)

    def one_after_the_other() -> None:
        layer(x).square().sum().backward()
        layer(z).square().sum().backward()

    def both() -> None:
        (layer(x).square().sum() + layer(z).square().sum()).backward()

    # The input, and the output that is squared; no weight.
    alone = {len(each): 4 * len(each) * (10 + 5) for each in (x, z)}
    assert saved_at_once(lambda: layer(x).square().sum().backward()) == alone[7]
    assert saved_at_once(one_after_the_other) == alone[70]
    assert saved_at_once(both) == alone[7] + alone[70]


def test_rounds_take_every_step_alike_and_begin_with_another_one_each_time() -> None:
    taken: list[str] = []
    steps = {name: lambda name=name: taken.append(name) for name in "abc"}
    times = interleaved(steps, 3, repeats=2)
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(second >= 0 for each in times.values() for second in each)
    assert "".join(taken) == "abcabc" + "aabbcc" + "bbccaa" + "ccaabb"


def test_the_time_of_steps_is_that_of_all_of_them() -> None:
    taken: list[int] = []
    assert cpu_time(lambda: taken.append(sum(range(100_000))), 5) > 0
    assert len(taken) == 5
