"""A comparison as one self-contained HTML page: verdict, drift against depth, every tensor."""

import html
import math

from .compare import Comparison, Row, drift, unshared_stages
from .recording import Recording

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem; color: #1d2430 }
h1 { font-size: 1.5rem }
h2 { font-size: 1.1rem; margin-top: 2rem } small { color: #5b6472 }
.pass { color: #11643a } .fail { color: #a3161b; font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { padding: .2rem .6rem; text-align: right }
td:first-child, th:first-child { text-align: left; font-family: ui-monospace, monospace }
tr:nth-child(even) { background: #f4f6f9 }
svg { width: 100%; height: 190px; background: #f8f9fb; border: 1px solid #dfe3ea }
details { margin: .4rem 0 }
summary { cursor: pointer }
"""


def page(a: Recording, b: Recording, comparison: Comparison, names: tuple[str, str]) -> str:
    """The whole page."""
    verdict = "pass" if comparison.passed else "fail"
    passed = len(comparison.rows) - len(comparison.failed)
    parts = [
        f"<h1>{html.escape(names[0])} against {html.escape(names[1])}: "
        f"<span class={verdict}>{verdict.upper()}</span></h1>",
        f"<p>{passed} of {len(comparison.rows)} tensors agree.</p>",
        *(
            f"<p>only in {s}, not compared: {', '.join(stages)}</p>"
            for s, stages in unshared_stages(a, b).items()
        ),
        _facts(a, b),
    ]
    for stage in dict.fromkeys(row.name.partition("/")[0] for row in comparison.rows):
        parts.append(_stage(stage, comparison))
    body = "\n".join(parts)
    title = f"parity: {verdict}"
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n{body}\n"


FACTS = ("tree", "device", "dtype", "versions", "float32", "modes", "determinism", "commit", "seconds")


def _facts(a: Recording, b: Recording) -> str:
    rows = [
        f"<tr><td>{key}</td><td>{html.escape(str(a.facts.get(key)))}</td><td>{html.escape(str(b.facts.get(key)))}</td></tr>"
        for key in FACTS
    ]
    return f"<table><tr><th></th><th>A</th><th>B</th></tr>{''.join(rows)}</table>"


def _stage(stage: str, comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.name.startswith(f"{stage}/")]
    failed = [row for row in rows if row.verdict != "pass"]
    first = comparison.first_failed(stage)
    state = "pass" if first is None else "fail"
    told = (
        "all agree"
        if first is None
        else f"{len(failed)} differ, first <code>{html.escape(first.name)}</code>"
    )
    shown = sorted(rows, key=lambda row: row.verdict == "pass")  # failures first
    table = "".join(map(_row, shown))
    columns = ("tensor", "largest difference", "of largest value", "allowed", "equal", "")
    head = f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"
    return (
        f"<h2>{stage} <span class={state}>{state}</span> <small>{len(rows)} tensors, {told}</small></h2>"
        f"{_plot(drift(comparison, stage))}"
        f"<details><summary>all tensors</summary><table>{head}{table}</table></details>"
    )


def _row(row: Row) -> str:
    d = row.difference
    largest, equal = (f"{d.max_abs:.1e}", f"{d.share_equal:.0%}") if d else ("", "")
    note = f" title='{html.escape(row.note)}'" if row.note else ""
    return (
        f"<tr{note}><td>{html.escape(row.name)}</td><td>{largest}</td><td>{row.relative:.1e}</td>"
        f"<td>{row.tolerance:.0e}</td><td>{equal}</td><td class={row.verdict}>{row.verdict}</td></tr>"
    )


def _plot(points: list[tuple[str, float]]) -> str:
    """Relative difference of activations against depth, logarithmic, 1e-9 to 1."""
    if len(points) < 2:
        return ""
    width, height, left = 1000, 180, 45

    def place(i: int, value: float) -> tuple[float, float]:
        level = min(max(math.log10(value) if value > 0 else -9.0, -9.0), 0.0)
        return left + i * (width - left - 10) / (len(points) - 1), 10 + -level / 9 * (height - 25)

    marks = []
    for exponent in (0, -3, -6, -9):
        y = place(0, 10.0**exponent)[1]
        marks.append(f"<line x1={left} x2={width} y1={y:.1f} y2={y:.1f} stroke=#dfe3ea />")
        marks.append(f"<text x=4 y={y + 4:.1f} font-size=12>1e{exponent}</text>")
    for i, (name, value) in enumerate(points):
        x, y = place(i, value)
        told = f"<title>{html.escape(name)}: {value:.1e}</title>"
        marks.append(f"<circle cx={x:.1f} cy={y:.1f} r=2.5 fill=#2563c9>{told}</circle>")
    label = "activations in order of execution; relative difference"
    marks.append(f"<text x={left} y={height - 2} font-size=12 fill=#5b6472>{label}</text>")
    return f"<svg viewBox='0 0 {width} {height}' preserveAspectRatio=none>{''.join(marks)}</svg>"
