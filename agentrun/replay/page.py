"""One HTML page about one or more replays: curves as inline SVG, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 260, 56, 24
_COLOURS = ("#1b6ca8", "#c1440e", "#3c8031", "#7b3fa0", "#a8831b", "#0e8f8f", "#8f0e4f", "#555555")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 920px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em .2em 0; text-align: left }
th { border-bottom: 1px solid #999 } svg { width: 100%; height: auto } text { font-size: 12px; fill: #444 }
.bad { color: #b00020; font-weight: 600 }
"""


def page(reports: Sequence[dict[str, Any]]) -> str:
    """The page for reports as report() makes them. Names come from traces and are escaped."""
    body = "\n".join(_section(found) for found in reports)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/><title>agentrun replay</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>agentrun replay</h1>\n{body}\n</body></html>\n"
    )


def _section(found: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in found["settings"].items() if value is not None)
    curves = [(str(s["name"]), s["curve"]) for s in found["sessions"]]
    limit = found["settings"].get("memory")
    return "\n".join(
        (
            f"<h2>{escape(str(found['settings'].get('runtime') or 'runtime of the engine'))}</h2>",
            f"<p>{escape(settings)}</p>",
            chart([*curves, ("all", found["curve"])], limit),
            _sessions(found["sessions"]),
            _figures(found["figures"]),
        )
    )


def chart(curves: Sequence[tuple[str, Sequence[Sequence[float]]]], limit: int | None) -> str:
    """Memory over time, one line a curve, `limit` dashed; a note where nothing was measured."""
    points = [point for _, curve in curves for point in curve]
    if not points:
        return "<p>No memory curves: the sessions had no cgroups that could be read.</p>"
    longest = max(point[0] for point in points) or 1.0
    highest = max([limit or 0, *(point[1] for point in points)]) or 1
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 40}" role="img" aria-label="memory over time">']
    parts += _axes(longest, highest)
    if limit:
        y = _y(limit, highest)
        dashed = 'stroke="#b00020" stroke-dasharray="6 4"'
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" {dashed}/>')
    for number, (name, curve) in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{_x(t, longest)},{_y(used, highest)}" for t, used in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        x, y = LEFT + number % 6 * 130, HEIGHT + 18 + number // 6 * 14
        parts.append(f'<text x="{x}" y="{y}" style="fill:{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _x(t: float, longest: float) -> float:
    return round(LEFT + (WIDTH - LEFT) * t / longest, 1)


def _y(used: float, highest: float) -> float:
    return round((HEIGHT - BOTTOM) * (1 - used / highest) + 8, 1)


def _axes(longest: float, highest: float) -> list[str]:
    parts = []
    for quarter in range(5):
        used, t = highest * quarter / 4, longest * quarter / 4
        y, x = _y(used, highest), _x(t, longest)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="0" y="{y + 4}">{used / 1e6:.0f} MB</text>')
        anchor = "end" if quarter == 4 else "start"
        parts.append(f'<text x="{x}" y="{HEIGHT}" text-anchor="{anchor}">{t:.1f} s</text>')
    return parts


def _row(cells: Sequence[object], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _shown(value: object) -> str:
    return "-" if value is None else escape(str(value))


_HEAD = ("session", "tier", "planned s", "took s", "calls well ended", "P50 ms", "P95 ms", "P99 ms", "agent")


def _sessions(sessions: Sequence[dict[str, Any]]) -> str:
    rows = [_row(_HEAD, "th")]
    for session in sessions:
        outcomes = [call["outcome"] for call in session["calls"]]
        cells = [_shown(session[key]) for key in ("name", "tier", "planned_s", "done_s")]
        cells.append(f"{outcomes.count('ok')} of {len(outcomes)}")
        cells += [_shown(session["latency"][f"p{percent}_ms"]) for percent in (50, 95, 99)]
        cells.append('<span class="bad">killed</span>' if session["agent_killed"] else "alive")
        rows.append(_row(cells))
    return f"<table>{''.join(rows)}</table>"


def _figures(found: dict[str, Any]) -> str:
    rows = [_row((escape(key), _shown(value))) for key, value in found.items() if not isinstance(value, dict)]
    return f"<table>{''.join(rows)}</table>"
