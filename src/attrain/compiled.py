"""What torch.compile has to do with a context: nothing, as long as the context lasts."""

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C._dynamo import eval_frame

Method = TypeVar("Method", bound=Callable[..., Any])


def left_to_python(method: Method) -> Method:
    """Make torch.compile run `method`, and the `with` that calls it, as plain Python."""
    method.__dict__.update(
        _torchdynamo_disable=True,
        _torchdynamo_disable_msg="credit sees torch functions one by one, as they are called, so "
        "what holds `with credit:` cannot be a single graph: compile it without fullgraph=True",
    )
    eval_frame.set_code_exec_strategy(
        method.__code__,
        eval_frame._FrameExecStrategy(
            eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        ),
    )
    return method


class Compiled:
    """Whether what torch.compile made runs compiled: not while any thread is in a context."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.contexts = 0
        self.stance: Any = None

    def run_eagerly(self) -> None:
        """Run compiled code eagerly from now on; called once per context that is entered."""
        with self.lock:
            self.contexts += 1
            # Importing the compiler takes a second, and without it nothing is compiled.
            if self.stance is None and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")

    def run_as_before(self) -> None:
        """Undo one `run_eagerly`."""
        with self.lock:
            self.contexts -= 1
            if self.contexts == 0 and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


COMPILED = Compiled()
