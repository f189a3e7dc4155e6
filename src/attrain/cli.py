"""The command line: `attrain compare`, `train`, `evaluate`, `attribute`, `graph` and others."""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from attrain.config import (
    AttributeConfig,
    CompareConfig,
    EvaluateConfig,
    GraphConfig,
    PruneConfig,
    ReportConfig,
    StudyConfig,
    TrainConfig,
    check_attribute,
    check_evaluate,
    check_graph,
    check_job,
    check_prune,
    default_from,
    free_folder,
)
from attrain.errors import AttrainError, CreditError, InputError

DESCRIPTION = "Train PyTorch models with attribution."
FAILURE, USER_ERROR, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command that the arguments of the process name, and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its status: 0, 1 for a failure, 2 for an error of the user's.

    What a user can mend is told in one sentence on stderr.
    """
    if list(arguments) == ["--version"]:
        from importlib.metadata import version

        print(f"attrain {version('attrain')}")
        return 0
    try:
        return _dispatch(parse(arguments), arguments)
    except AttrainError as error:
        _tell(str(error))
        return USER_ERROR if isinstance(error, InputError | CreditError) else FAILURE
    except BrokenPipeError:  # whoever read has seen enough: `attrain train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        _tell(f"{error.filename or 'a file'}: {error.strerror or error}.")
        return FAILURE
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be imported here
            raise
        _tell("the GPU's memory is full: give a smaller --batch-size, or --accumulate its parts.")
        return FAILURE
    except KeyboardInterrupt:
        _tell("interrupted.")
        return INTERRUPTED


def parse(arguments: Sequence[str]) -> Any:
    """Return the configuration that `arguments` ask for; a --config file gives its defaults.

    Raises InputError for a file that cannot be used. Where the arguments themselves are at fault,
    tyro explains it and exits with status 2.
    """
    compare, train = CompareConfig(), TrainConfig()
    path = _value_of("--config", arguments)
    if path is not None:
        if arguments[0] == "train":
            train = default_from(TrainConfig, Path(path))
        elif arguments[0] == "compare":
            compare = default_from(CompareConfig, Path(path))
    commands = (
        Annotated[CompareConfig, tyro.conf.subcommand("compare", default=compare)]
        | Annotated[TrainConfig, tyro.conf.subcommand("train", default=train)]
        | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
        | Annotated[AttributeConfig, tyro.conf.subcommand("attribute")]
        | Annotated[GraphConfig, tyro.conf.subcommand("graph")]
        | Annotated[PruneConfig, tyro.conf.subcommand("prune")]
        | Annotated[StudyConfig, tyro.conf.subcommand("study")]
        | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    )
    return tyro.cli(
        commands,
        args=list(arguments),
        prog="attrain",
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


def _dispatch(config: Any, arguments: Sequence[str]) -> int:
    if isinstance(config, CompareConfig | TrainConfig):
        return _train(config, arguments)
    if isinstance(config, EvaluateConfig):
        return _evaluate(config)
    if isinstance(config, AttributeConfig):
        return _attribute(config)
    if isinstance(config, GraphConfig):
        return _graph(config)
    if isinstance(config, PruneConfig):
        return _prune(config)
    if isinstance(config, StudyConfig):
        return _study(config, arguments)
    return _report(config)


def _train(config: CompareConfig | TrainConfig, arguments: Sequence[str]) -> int:
    command = "compare" if isinstance(config, CompareConfig) else "train"
    methods = config.methods if isinstance(config, CompareConfig) else (config.method,)
    check_job(config, methods, config.seeds)
    out = config.out or free_folder(command, config.data, config.resume)
    config = dataclasses.replace(config, out=out)
    try:
        from attrain.compare import compare, train_only

        compare(config) if isinstance(config, CompareConfig) else train_only(config)
    except KeyboardInterrupt:
        _tell(f"interrupted. To go on: {_resuming(arguments, out)}")
        return INTERRUPTED
    if _leads():
        from attrain.report import verdict_lines
        from attrain.runs import RunFolder, read_json

        print("\n".join(verdict_lines(read_json(RunFolder(out).results))))
        print(f"\nReport: {RunFolder(out).report}")
    return 0


def _resuming(arguments: Sequence[str], out: Path) -> str:
    """Return the command that goes on with the one that had these `arguments`."""
    arguments = [argument for argument in arguments if argument != "--resume"]
    if _value_of("--out", arguments) is None:
        arguments += ["--out", str(out)]
    return shlex.join(["attrain", *arguments, "--resume"])


def _evaluate(config: EvaluateConfig) -> int:
    check_evaluate(config)
    from attrain.trained import measure

    found = measure(config)
    if config.json:
        print(json.dumps(found))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {'-' if value is None else f'{value:.4f}'}")
    return 0


def _attribute(config: AttributeConfig) -> int:
    check_attribute(config)
    from attrain.trained import explain

    told = explain(config)
    for text in told["warnings"]:
        _tell(f"warning: {text}")
    print(f"{told['samples']} samples, {told['title']}: {told['error_text']}")
    print(f"Attributions: {told['file']}\nPicture: {told['page']}")
    return 0


def _graph(config: GraphConfig) -> int:
    check_graph(config)
    from attrain.trained_graphs import show

    told = show(config)
    print("\n".join(told["summary"]))
    print(f"\nGraphs: {told['file']}\nPage: {told['page']}")
    return 0


def _prune(config: PruneConfig) -> int:
    check_prune(config)
    from attrain.trained import prune_weights

    out, told = prune_weights(config)
    print("removed  accuracy")
    for removed, accuracy in zip(told["removed"], told["accuracy"], strict=True):
        print(f"{removed:>7.0%}  {accuracy:>8.1%}")
    print(
        f"\n{config.amount:.0%} removed: accuracy {told['accuracy_before']:.1%} before, "
        f"{told['accuracy_after']:.1%} after.\nWeights: {out}"
    )
    if "export" in told:
        size = told["export"]
        ratio = size["dense"] / size["bytes"]
        print(f"Without zeros: {size['file']}, {size['bytes']:,} bytes ({ratio:.1f} times smaller)")
    return 0


def _study(config: StudyConfig, arguments: Sequence[str]) -> int:
    from attrain.studies import STUDIES, check

    if config.study == "list":
        width = max(map(len, STUDIES))
        for name, title in STUDIES.items():
            print(f"{name:<{width}}  {title}")
        return 0
    check(config)
    out = config.out or free_folder("study", config.study, config.resume)
    try:
        from attrain.studies.runner import run_study

        run_study(dataclasses.replace(config, out=out))
    except KeyboardInterrupt:
        _tell(f"interrupted. To go on: {_resuming(arguments, out)}")
        return INTERRUPTED
    print((out / "report.md").read_text())
    print(f"Report: {out / 'report.html'}")
    return 0


def _report(config: ReportConfig) -> int:
    from attrain.report import write_report

    print(f"Report: {write_report(config.folder)}")
    return 0


def _leads() -> bool:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _tell(text: str) -> None:
    if _leads():
        print(f"attrain: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
