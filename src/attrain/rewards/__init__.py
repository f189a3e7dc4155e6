"""Objectives: initial rewards of LFP behind torch's loss signatures.

LFP (Weber et al., arXiv:2308.12053) starts its backward pass with a reward r_c at every output o_c
(section 3.2, Table 2). Here an objective is a scalar to be minimised, as any torch loss: its value
is minus the reward that was gathered, and its backward pass gives -c_c to the outputs, where c_c is
the reward per unit of output, c_c = r_c / (o_c + sign(o_c) epsilon) with sign(0) = +1.

Two kinds of reward differ in where epsilon comes from. Rewards that are the output times a slope
(softmax, sigmoid, squared_error) need none of their own: c is the slope, damped by the credit
context's epsilon where the outputs still owe it. Rewards that only judge (hits, outcome and their
kin) divide by the output, so they take an `epsilon` for it: at 1e-6 one output near zero would
outweigh all others.

Values are checked on the CPU only: on an accelerator a check would make the host wait for the
device. There, NaN flows on as it does through torch's own losses. Shapes are checked everywhere.
"""

from attrain.rewards.formulas import REWARDS, Reward, initial
from attrain.rewards.losses import (
    binary,
    false_positives,
    hits,
    outcome,
    raise_outputs,
    sigmoid,
    softmax,
    squared_error,
)
from attrain.rewards.objective import Objective, Reduction
from attrain.rewards.scores import Metric, metric
from attrain.rewards.spikes import spike_count

__all__ = [
    "REWARDS",
    "Metric",
    "Objective",
    "Reduction",
    "Reward",
    "binary",
    "false_positives",
    "hits",
    "initial",
    "metric",
    "outcome",
    "raise_outputs",
    "sigmoid",
    "softmax",
    "spike_count",
    "squared_error",
]
