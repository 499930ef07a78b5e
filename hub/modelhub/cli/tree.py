"""Draws a model's lineage for people: what it was made from, and what was made of it. No command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from modelhub.cli import text

if TYPE_CHECKING:
    from modelhub.lineage import Edge, Graph, Node

MARK = "*"
"""Before the model that was asked for."""


def print_lineage(graph: Graph) -> None:
    """Both directions, each from the model on. What is reached in two ways is drawn out once."""
    up, down = graph.parents(0), graph.children(0)
    if not up and not down:
        text.line("nothing is known of where it came from, and nothing was made of it")
        return
    if up:
        _section("made from")
        _draw(graph, graph.parents, lambda edge: edge.parent)
    if down:
        if up:
            sys.stdout.write("\n")
        _section("made into")
        _draw(graph, graph.children, lambda edge: edge.child)
    if graph.truncated:
        text.line("there is more than is shown; begin at a model further off")


def _draw(graph: Graph, follow: Callable[[int], list[Edge]], end: Callable[[Edge], int]) -> None:
    branch, last, through, gap = ("├─ ", "└─ ", "│  ", "   ") if _can_draw() else ("|- ", "`- ", "|  ", "   ")
    room = shutil.get_terminal_size().columns if text.is_terminal() else 0

    def out(lead: str, line: str, bold: bool = False) -> None:
        line = text.escape(line)
        if room:
            line = text.shorten(line, max(20, room - text.width(lead)))
        sys.stdout.write(lead + (text.style(line, text.BOLD) if bold else line) + "\n")

    out(f"{MARK} ", _node(graph.nodes[0]), True)
    seen = {0}

    def below(node: int, indent: str) -> Iterator[tuple[str, str, Edge, bool]]:
        edges = follow(node)
        for number, edge in enumerate(edges):
            ended = number == len(edges) - 1
            yield indent + (last if ended else branch), indent + (gap if ended else through), edge, end(edge) in seen

    # Not recursive: a chain of outputs may be long.
    stack = [below(0, "  ")]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        lead, indent, edge, again = step
        node = end(edge)
        more = "  (see above)" if again and follow(node) else ""
        out(lead, f"{_node(graph.nodes[node])}  {_edge(edge)}{more}")
        if not again:
            seen.add(node)
            stack.append(below(node, indent))


def _node(node: Node) -> str:
    what = " ".join(part for part in (node.format, node.precision) if part)
    state = "" if node.state == "ready" else f"[{node.state}]"
    place = node.path if node.state == "gone" else ""
    return "  ".join(part for part in ((node.id or "")[:8], node.name, what, state, place) if part)


def _edge(edge: Edge) -> str:
    how = edge.how
    recipe = f" with {how['recipe']}" if how.get("recipe") else ""
    by = " ".join(part for part in (how.get("plugin"), how.get("plugin_version")) if part)
    parts = [f"{how.get('kind') or 'conversion'}{recipe}{f' by {by}' if by else ''}"]
    if how.get("rule"):
        parts.append(f"rule {how['rule']}")
    worst = how.get("worst")
    if worst:
        snr = worst.get("snr")
        measured = f"{snr:.1f} dB" if isinstance(snr, (int, float)) else f"rmse {text.number(worst.get('rmse'))}"
        parts.append(f"worst {measured} in {worst.get('tensor')}")
    parts.append(str(how.get("created", ""))[:10])
    if edge.stale:
        parts.append(f"stale: version {edge.parent_version} was replaced" if edge.parent_version else "stale: replaced since")
    return f"({', '.join(parts)})"


def _section(title: str) -> None:
    sys.stdout.write(text.style(title, text.BOLD) + "\n")


def _can_draw() -> bool:
    try:
        "├│└─".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
