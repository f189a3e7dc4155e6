"""What a person sees while a job runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

WAITING = "waiting"
_LINE_SECONDS = 10.0


@dataclass
class Row:
    """The state of one run: what it does, how far it is (0..1), and what it has reached.

    `learning` shows which neurons learn, where not all do.
    """

    state: str = WAITING
    done: float = 0.0
    accuracy: float | None = None
    seconds: float | None = None
    learning: str = ""


class Display:
    """Shows the runs of a job, each named by a method and a label such as "seed 0".

    Writes to stderr. Used as a context: inside it the table is redrawn a few times a second. On
    something that is no terminal each run prints one line when it ends, and at most one every ten
    seconds while it lasts.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.rows: dict[tuple[str, str], Row] = {}
        self.began = self.spoke = time.monotonic()
        self.live = Live(
            get_renderable=self.table,
            console=self.console,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def plan(self, runs: Iterable[tuple[str, str]]) -> None:
        """Announce runs that are to come, in their order."""
        for run in runs:
            self.rows.setdefault(run, Row())

    def update(
        self,
        run: tuple[str, str],
        state: str,
        done: float,
        accuracy: float | None = None,
        seconds: float | None = None,
        learning: str = "",
    ) -> None:
        """Say what a run does, the share of it that is done and the seconds it still needs."""
        row = self.rows.setdefault(run, Row())
        row.state, row.done, row.seconds, row.learning = state, done, seconds, learning
        row.accuracy = row.accuracy if accuracy is None else accuracy
        now = time.monotonic()
        if not self.console.is_terminal and now - self.spoke >= _LINE_SECONDS:
            self.spoke = now
            which = f", learning: {learning}" if learning else ""
            self.say(f"{_line(run, row)}, {clock(seconds)} left{which}")

    def skip(self, run: tuple[str, str]) -> None:
        """Say that nothing of a run is left to do."""
        self.rows[run] = Row("done before", 1.0)

    def finish(self, run: tuple[str, str], accuracy: float) -> None:
        """Say that a run has ended."""
        row = self.rows.setdefault(run, Row())
        row.state, row.done, row.accuracy, row.seconds = "done", 1.0, accuracy, None
        row.learning = ""
        if not self.console.is_terminal:
            self.spoke = time.monotonic()
            self.say(_line(run, row))

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Estimate the time that the announced runs still need, from what is done."""
        done = sum(row.done for row in self.rows.values())
        if done == 0:
            return None
        return (time.monotonic() - self.began) / done * (len(self.rows) - done)

    def table(self) -> Table:
        """Return the table as it is now."""
        finished = sum(row.done >= 1 for row in self.rows.values())
        table = Table(
            caption=f"{finished} of {len(self.rows)} runs, {clock(self.seconds_left())} left",
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        for name in ("method", "run", "state"):
            table.add_column(name)
        for name in ("accuracy", "time left"):
            table.add_column(name, justify="right")
        shows = any(row.learning for row in self.rows.values())
        if shows:
            table.add_column("neurons that learn", no_wrap=True)
        for (method, label), row in self.rows.items():
            table.add_row(
                method,
                label,
                row.state,
                "" if row.accuracy is None else f"{row.accuracy:.1%}",
                "" if row.seconds is None else clock(row.seconds),
                *([row.learning] if shows else []),
                style="dim" if row.state == WAITING else None,
            )
        return table


def clock(seconds: float | None) -> str:
    """Return a duration as a person says it: 8 s, 2 min 05 s, 3 h 20 min; ? for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _line(run: tuple[str, str], row: Row) -> str:
    accuracy = "" if row.accuracy is None else f", accuracy {row.accuracy:.1%}"
    return f"{run[0]} {run[1]}: {row.state}{accuracy}"
