"""Run a study: measure the rows that are missing, then conclude and write its files."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from attrain.config import StudyConfig, free_folder
from attrain.errors import AttrainError, InputError
from attrain.report import write_report
from attrain.runs import SCHEMA, RunFolder, environment, read_json, write_json
from attrain.studies import check, find
from attrain.studies.page import write_page
from attrain.studies.progress import RowProgress
from attrain.studies.study import Result, Row, Study


def run_study(config: StudyConfig) -> Path:
    """Measure every row of a study that is not there yet, conclude, and return the folder.

    The files are described in docs/reference/run-folder.md. The results are read back from the
    files before anything is concluded, so that a resumed study ends as an unbroken one. Raises
    AttrainError for an unknown study or budget, a folder with results, one to resume that holds
    something else, and a full disk.
    """
    check(config)
    study = find(config.study)
    settings = study.budgets[config.budget]
    rows = study.rows(settings)
    files = _files(rows)
    folder = RunFolder(config.out or free_folder("study", study.id, config.resume))
    _open(folder, study, config, settings)
    missing = _missing(folder.path, files, resume=config.resume)
    with RowProgress(list(files), done=len(files) - len(missing)) as progress:
        for name, result, seconds in _measured(study, config, settings, rows, missing):
            file = folder.path / files[name]
            write_json(file, {"name": name, "seconds": seconds, "result": result}, indent=None)
            progress.finish(name, seconds)
    results = {name: read_json(folder.path / file)["result"] for name, file in files.items()}
    _conclude(study, config.budget, settings, results, folder)
    return folder.path


def _files(rows: Sequence[Row]) -> dict[str, Path]:
    """Return the file of every row, within the folder of the study."""
    files = {row.name: Path("rows") / f"{_written(row.name)}.json" for row in rows}
    if len(set(files.values())) < len(rows):
        raise AttrainError("two rows of the study have names that are written alike.")
    return files


def _written(name: str) -> str:
    """Return a name as a file may have it."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")


def _open(folder: RunFolder, study: Study[Any], config: StudyConfig, settings: Any) -> None:
    """Take a new folder and record what is run there, or see that an old one holds the same."""
    record = {
        "job": "study",
        "study": study.id,
        "budget": config.budget,
        "settings": dataclasses.asdict(settings),
    }
    if not config.resume:
        folder.create()
        write_json(folder.config, environment() | record)
        return
    folder.resume()
    for left in folder.path.glob("rows/.*.tmp"):
        left.unlink(missing_ok=True)
    before = read_json(folder.config)
    now = json.loads(json.dumps(record))
    told = [f"{what}, not {wanted}" for what, wanted in _differing(before, now)]
    if told:
        raise InputError(
            f"{folder.path} holds {'; '.join(told)}: resume it with its own, or give another --out."
        )


def _differing(before: Any, now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Tell what an old record holds and what was wanted, where the two differ."""
    if not isinstance(before, dict) or before.get("job") != "study":
        yield "no study", f"{now['study']}"
    elif before.get("study") != now["study"]:
        yield f"the study {before.get('study')}", f"{now['study']}"
    elif before.get("budget") != now["budget"]:
        yield f"the budget {before.get('budget')}", f"{now['budget']}"
    else:
        old = before.get("settings") or {}
        for name, value in now["settings"].items():
            if old.get(name) != value:
                yield f"{name} = {json.dumps(old.get(name))}", json.dumps(value)


def _missing(folder: Path, files: Mapping[str, Path], *, resume: bool) -> list[str]:
    return [name for name, file in files.items() if not (resume and (folder / file).is_file())]


# Measuring ----------------------------------------------------------------------------------------


def _measured(
    study: Study[Any], config: StudyConfig, settings: Any, rows: Sequence[Row], names: list[str]
) -> Iterator[tuple[str, Result, float]]:
    """Yield name, result and seconds of each row as it ends."""
    jobs = min(config.jobs or _cores(), len(names))
    if jobs <= 1:
        known = {row.name: row for row in rows}
        yield from ((name, *_timed(known[name])) for name in names)
        return
    # Spawned rather than forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = {pool.submit(_apart, study.id, settings, name): name for name in names}
        try:
            for future in as_completed(waiting):
                yield waiting[future], *future.result()
        except BrokenProcessPool as error:
            raise AttrainError(
                "a process that measured a row was killed, probably because the memory was full: "
                "go on with --resume and fewer --jobs."
            ) from error
        except BaseException:
            for worker in active_children():  # what is interrupted is not worth waiting for
                worker.terminate()
            raise


def _apart(study: str, settings: Any, name: str) -> tuple[Result, float]:
    """Measure one row in a process of its own."""
    return _timed(next(row for row in find(study).rows(settings) if row.name == name))


def _timed(row: Row) -> tuple[Result, float]:
    """Measure a row with one thread, so that its figures do not depend on how many run at once."""
    threads, began = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    try:
        return row.run(), time.monotonic() - began
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Concluding ---------------------------------------------------------------------------------------


def _conclude(
    study: Study[Any],
    budget: str,
    settings: Any,
    results: Mapping[str, Result],
    folder: RunFolder,
) -> None:
    found = study.conclude(settings, results, folder.path)
    record = {
        "schema": SCHEMA,
        "kind": "study",
        "id": study.id,
        "budget": budget,
        "title": study.title,
        "source": study.source,
        "deviations": study.deviations,
        "methods": {},
        "rows": found.rows,
        "claims": found.claims,
        "figures": [figure.relative_to(folder.path).as_posix() for figure in found.figures],
    }
    write_json(folder.results, record)
    write_page(folder.path)
    write_report(folder.path)
