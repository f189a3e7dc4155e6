"""What a person sees while a study runs: a bar with the time left, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from attrain.live import clock


class RowProgress:
    """Counts the rows of a study as they end, on stderr; `done` of them were there before.

    Used as a context. On something that is no terminal each row prints a line.
    """

    def __init__(self, names: Sequence[str], done: int, console: Console | None = None) -> None:
        self.total, self.before, self.done = len(names), done, done
        self.console = console or Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self.began = time.monotonic()
        self.task = self.bar.add_task("rows", total=self.total, completed=done, left="")

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        if self.console.is_terminal:
            self.bar.start()
        elif self.before:
            self._say(f"{self.before} of {self.total} rows were there before")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def finish(self, name: str, seconds: float) -> None:
        """Say that a row has ended, and what it took."""
        self.done += 1
        left = f"{clock(self.seconds_left())} left"
        self.bar.update(self.task, description=name, completed=self.done, left=left)
        if not self.console.is_terminal:
            self._say(f"{name}: {clock(seconds)}; {self.done} of {self.total} rows, {left}")

    def seconds_left(self) -> float | None:
        """Estimate the time that the other rows need, from those that ended here."""
        ended = self.done - self.before
        if ended == 0:
            return None
        return (time.monotonic() - self.began) / ended * (self.total - self.done)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
