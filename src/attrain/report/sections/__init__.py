"""The sections of the report, in the order of the page."""

from attrain.report.section import Section
from attrain.report.sections import (
    boundary,
    checks,
    curves,
    faithfulness,
    graph,
    robustness,
    saliency,
    spikes,
    study,
    targeted,
    verdict,
    weights,
)

SECTIONS: tuple[Section, ...] = (
    verdict.SECTION,
    study.SECTION,
    curves.SECTION,
    weights.SECTION,
    boundary.SECTION,
    saliency.SECTION,
    faithfulness.SECTION,
    graph.SECTION,
    robustness.SECTION,
    targeted.SECTION,
    spikes.SECTION,
    checks.SECTION,
)
