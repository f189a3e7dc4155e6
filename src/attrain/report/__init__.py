"""Draw a run folder as one self-contained HTML page, and its verdict for the terminal."""

from attrain.report.page import write_report
from attrain.report.terminal import verdict_lines

__all__ = ["verdict_lines", "write_report"]
