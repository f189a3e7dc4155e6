"""Studies: tables and figures of the papers, measured again; `attrain study` runs them.

To add one: write a module here with a `STUDY` (see `study.Study`), called as the study is with `_`
for `-`, and enter it in `STUDIES`. The modules are imported only when they are asked for, so that
the command line stays light.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attrain.config import StudyConfig
from attrain.errors import InputError, unknown

if TYPE_CHECKING:
    from attrain.studies.study import Study

BUDGETS = ("smoke", "quick", "full")


STUDIES: Mapping[str, str] = {
    "attribution-methods": (
        "Methods of attribution, compared: cost, errors, stability, faithfulness"
    ),
    "depara-transfer": "DEPARA: does the similarity of attribution graphs tell what transfers?",
    "graph-methods": "Attribution graphs by different methods: agreement, leaks, faithfulness",
    "lfp-fig3": "Toy sets: LFP and gradient descent over all learning rates",
    "lfp-fig4": "Two weights: where LFP and gradient descent walk",
    "lfp-fig7-A3": "Spiking networks: LFP and surrogate gradients over rates, lengths and decays",
    "lfp-figA1": "Toy sets: LFP with SiLU, ELU, tanh, sigmoid and the step function",
    "lfp-figA2": "Blobs: LFP with a reward that has no loss",
    "lfp-frontier": "Accuracy against sparsity: LFP and gradient descent, tuned alike",
    "sgt-cost": "What saliency guided training costs: steps, memory, epochs",
    "sgt-fig2": "How gradients are distributed after saliency guided training",
    "sgt-fig3": "Saliency guided training: accuracy drop by six saliency methods, with controls",
    "sgt-fig4": (
        "Accuracy drop by what replaces salient pixels: background, mean, or mean and retraining"
    ),
    "sgt-fig5": "MNIST as a time series: regular and guided saliency maps",
    "sgt-fig6": "Does guided training keep an LSTM's saliency from vanishing over time?",
    "sgt-order": (
        "Saliency guided training: why the signed order helps and the absolute order does not"
    ),
    "sgt-table1": "Texts: are explanations more faithful after saliency guided training?",
    "sgt-table2": "Time series: does saliency guided training find the informative box?",
    "summit-classes": "SUMMIT's class view: are classes with similar graphs confused?",
    "targeted-efficiency": "Targeted updates from scratch: time, accuracy, and plain controls",
    "targeted-robustness": "Targeted updates and robustness: noise and attacks",
    "targeted-finetune": (
        "Targeted updates in fine-tuning: a search for a setting where they beat dense training"
    ),
    "targeted-forgetting": (
        "Targeted updates that spare an old task: forgetting at equal new accuracy"
    ),
}
"""What each study is about, in a line."""


def check(config: StudyConfig) -> None:
    """Refuse an unknown study or budget and a negative number of jobs; raises `InputError`."""
    if config.study not in STUDIES:
        raise unknown("study", config.study, STUDIES)
    if config.budget not in BUDGETS:
        raise unknown("budget", config.budget, BUDGETS)
    if config.jobs < 0:
        raise InputError(
            f"--jobs {config.jobs} is not possible: give 1 or more, or 0 for all cores."
        )


def find(name: str) -> "Study[Any]":
    """Return the study called `name`; raises `InputError` with the nearest known name."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study: Study[Any] = import_module(f"attrain.studies.{name.replace('-', '_')}").STUDY
    return study
