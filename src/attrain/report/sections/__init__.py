"""The sections of the report, in the order of the page."""

from attrain.report.section import Section
from attrain.report.sections import boundary, checks, curves, saliency, verdict, weights

SECTIONS: tuple[Section, ...] = (
    verdict.SECTION,
    curves.SECTION,
    weights.SECTION,
    boundary.SECTION,
    saliency.SECTION,
    checks.SECTION,
)
