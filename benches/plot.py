"""The distribution of times as SVG: a strip of dots a contender, with quartiles and median."""

import math
from html import escape
from statistics import median, quantiles

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 860, 110, 110, 56, 40, 46


def step(end):
    """A round distance of ticks on an axis from 0 to `end`, for about ten of them."""
    power = 10 ** math.floor(math.log10(end / 10))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= end / 10)


def strips(times, highlight):
    """`times`: in seconds, by contender."""
    rows = {name: sorted(1000 * value for value in values) for name, values in times.items()}
    # A shared machine's outliers would squeeze everything else; they are counted instead.
    end = max(quantiles(values, n=20, method="inclusive")[-1] for values in rows.values()) * 1.05
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value):
        return LEFT + value / end * (WIDTH - LEFT - RIGHT)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">run of /bin/true: each dot one run, box from the first to the'
        " third quartile, line at the median</text>",
    ]
    bottom = TOP + ROW * len(rows)
    for index in range(math.floor(end / step(end)) + 1):
        value = index * step(end)
        svg.append(f'<line x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{bottom}" stroke="#ddd"/>')
        svg.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">ms</text>')

    for index, (name, values) in enumerate(rows.items()):
        color = "#c2410c" if name == highlight else "#3b6ea5"
        middle = TOP + ROW * index + ROW / 2
        low, _, high = quantiles(values, n=4, method="inclusive")
        svg.append(f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
        for number, value in enumerate(value for value in values if value <= end):
            # Spread over the strip evenly, and the same each time: the golden ratio's multiples.
            y = middle - 20 + 40 * (number * 0.618034 % 1)
            svg.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="1.6" fill="{color}" fill-opacity="0.45"/>')
        svg.append(
            f'<rect x="{x(low):.1f}" y="{middle - 14}" width="{x(high) - x(low):.1f}" height="28"'
            f' fill="none" stroke="{color}"/>'
        )
        value = median(values)
        svg.append(
            f'<line x1="{x(value):.1f}" y1="{middle - 20}" x2="{x(value):.1f}" y2="{middle + 20}"'
            f' stroke="{color}" stroke-width="2.5"/>'
        )
        beyond = sum(value > end for value in values)
        more = f" (+{beyond})" if beyond else ""
        svg.append(f'<text x="{WIDTH - RIGHT + 10}" y="{middle + 4}" fill="{color}">{value:.2f} ms{more}</text>')
    svg.append("</svg>\n")
    return "\n".join(svg)
