"""An attribution graph as one HTML page that opens from disk, and as a frame in a notebook."""

from pathlib import Path

from markupsafe import Markup

from attrain.report.graph_data import (
    MOST_EDGES,
    MOST_EDGES_OF_A_PAGE,
    examples_json,
    graph_json,
    safe_json,
)
from attrain.report.graph_input import ClassGraph, GraphPage, check_page
from attrain.report.graph_svg import graph_svg
from attrain.report.page import environment, installed, policy, source
from attrain.runs import replacing


def write_graph_page(path: Path | str, page: GraphPage) -> Path:
    """Write the page and return its path.

    Raises InputError where its parts do not fit together, AttrainError where it cannot be written.
    """
    text = graph_html(page).encode()
    path = Path(path)
    with replacing(path) as file:
        file.write(text)
    return path


def graph_html(page: GraphPage) -> str:
    """Return the page as HTML; it loads nothing, and runs its own script alone."""
    check_page(page)
    style = "".join(map(source, ("report.css", "graph.css", "graph-svg.css")))
    script = source("graph.js")
    graphs = sum(len(panel.graphs) for panel in page.panels)
    most = min(MOST_EDGES, MOST_EDGES_OF_A_PAGE // graphs)
    index = {
        "panels": [{"name": p.name, "graphs": [_entry(g) for g in p.graphs]} for p in page.panels]
    }
    layers = page.panels[0].graphs[0].layers
    return (
        environment()
        .get_template("graph.html")
        .render(
            title=page.title,
            policy=policy(style, script),
            style=Markup(style),
            script=Markup(script),
            version=installed(),
            panels=[{"name": p.name, "picture": graph_svg(p.graphs[0])} for p in page.panels],
            accuracies=any(g.accuracy is not None for p in page.panels for g in p.graphs),
            example=f"{layers[len(layers) // 2].name}:0",
            source=page.source,
            index=Markup(safe_json(index)),
            examples=Markup(examples_json(page.examples)),
            graphs=[
                (f"graph-{place}-{k}", Markup(graph_json(graph, most)))
                for place, panel in enumerate(page.panels)
                for k, graph in enumerate(panel.graphs)
            ],
        )
    )


def notebook_html(page: GraphPage, height: int = 820) -> str:
    """Return the page in a frame that can reach nothing around it, for `_repr_html_`."""
    return str(
        Markup(
            '<iframe title="{}" sandbox="allow-scripts allow-downloads" srcdoc="{}" '
            'width="100%" height="{}" frameborder="0"></iframe>'
        ).format(page.title, graph_html(page), height)
    )


def _entry(graph: ClassGraph) -> dict[str, object]:
    entry: dict[str, object] = {"name": graph.name}
    if graph.accuracy is not None:
        entry["accuracy"] = round(graph.accuracy, 6)
    return entry
