"""A bar per compared row as SVG, for the README: the ratio, its bound, and both sides' figures.

Invariant: the text is legible on a light and on a dark page, because only colours that stand out
from both are used and the background stays clear.
"""

from xml.sax.saxutils import escape

from report import number, ratio_text

WIDTH, LEFT, RIGHT = 960, 390, 240  # of the picture, the labels and the figures
BAR, GAP, TOP, BOTTOM = 16, 10, 58, 42
GREY, TEXT = "#8b949e", "#768390"  # contrast of at least 4 to 1 with white and with #0d1117
FASTER, SLOWER, BOUND = "#2f81b7", "#d1603d", "#b58900"


def shown_ratio(row, value):
    """Below 1 is better for Cairn in every bar, so a rate is turned over."""
    return 1 / value if row["higher_is_better"] else value


def text(x, y, content, anchor="start", size=13, colour=TEXT, weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{colour}">{escape(content)}</text>'
    )


def svg(rows, head):
    rows = [row for row in rows if row["ratio"] is not None and row["peer"] is not None]
    height = TOP + len(rows) * (BAR + GAP) + BOTTOM
    limit = max([1.05, *(1.02 * shown_ratio(row, row["ratio"]) for row in rows)])
    span = WIDTH - LEFT - RIGHT

    def place(value):
        return LEFT + span * value / limit

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        "<title>Cairn and PyTorch side by side</title>",
        text(8, 20, "Cairn / PyTorch: shorter is better for Cairn", size=15, weight="600"),
        text(8, 38, head, size=12),
    ]
    bottom = height - BOTTOM
    ticks = [0.0, 0.25, 0.5, 0.75] + [float(i) for i in range(1, int(limit) + 1)]
    for tick in ticks:
        strong = tick == 1.0
        style = f'stroke="{GREY}" stroke-width="{1.5 if strong else 0.5}"'
        dash = "" if strong else ' stroke-dasharray="2 4"'
        out.append(
            f'<line x1="{place(tick):.1f}" y1="{TOP - 8}" x2="{place(tick):.1f}" y2="{bottom}" '
            f"{style}{dash}/>"
        )
        out.append(text(place(tick), bottom + 16, f"{tick:g}", "middle", 11))
    for i, row in enumerate(rows):
        y = TOP + i * (BAR + GAP)
        value = shown_ratio(row, row["ratio"])
        colour = FASTER if value <= 1 else SLOWER
        out.append(text(LEFT - 8, y + BAR - 3, row["label"], "end"))
        out.append(
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, place(value) - LEFT):.1f}" height="{BAR}" '
            f'rx="2" fill="{colour}"/>'
        )
        if row["must"] is not None:
            x = place(shown_ratio(row, row["must"]))
            out.append(
                f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + BAR + 3}" '
                f'stroke="{BOUND}" stroke-width="2.5"/>'
            )
        figures = f"{number(row['cairn'], 3)} / {number(row['peer'], 3)} {row['unit']}"
        out.append(text(WIDTH - RIGHT + 10, y + BAR - 3, ratio_text(row), weight="600"))
        out.append(text(WIDTH - RIGHT + 66, y + BAR - 3, figures, size=12))
    out.append(text(LEFT, height - 4, "yellow: the bound a row must keep", size=11, colour=BOUND))
    out.append("</svg>")
    return "\n".join(out) + "\n"
