"""Bar charts with whiskers, as SVG."""

import statistics

COLOURS = {"sluice": "#c2410c", "nginx": "#15803d", "haproxy": "#1d4ed8", "envoy": "#7e22ce", "pingora": "#6b7280",
           "direct": "#a3a3a3", "sluice-two": "#fb923c", "sluice-base": "#fdba74", "sluice-traced-1": "#f59e0b",
           "sluice-traced-100": "#b45309"}
BAR, GAP, LEFT, WIDTH = 13, 16, 330, 900


def bars(title, groups, names, unit, line=None):
    """One group of bars for each of `groups`, a name and values by proxy; the bar is their median, the whisker min to max."""
    values = [v for _, each in groups for one in each.values() for v in one]
    most = max([*values, line or 0]) * 1.05
    scale = (WIDTH - LEFT - 70) / most
    y, shapes = 58, []
    for label, each in groups:
        shown = [name for name in names if each.get(name)]
        middle = y + len(shown) * BAR / 2 + 4
        shapes.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(label)}</text>')
        for name in shown:
            mid, low, high = statistics.median(each[name]), min(each[name]), max(each[name])
            x, centre = LEFT + mid * scale, y + BAR / 2 - 1
            shapes.append(f'<rect x="{LEFT}" y="{y}" width="{mid * scale:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
            ends = f'x1="{LEFT + low * scale:.1f}" x2="{LEFT + high * scale:.1f}" y1="{centre}" y2="{centre}"'
            shapes.append(f'<line {ends} stroke="#000" stroke-width="1.2"/>')
            shapes.append(f'<text x="{max(x, LEFT + high * scale) + 5:.1f}" y="{y + BAR - 3}" class="n">{number(mid)}</text>')
            y += BAR
        y += GAP
    if line:
        at = LEFT + line * scale
        shapes.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="50" y2="{y - GAP + 4}" stroke="#1d4ed8" stroke-dasharray="3 3"/>')
    legend, x = [], LEFT
    for name in names:
        legend.append(f'<rect x="{x}" y="34" width="10" height="10" fill="{COLOURS[name]}"/>')
        legend.append(f'<text x="{x + 14}" y="43">{name}</text>')
        x += 90
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        "<style>text { font: 12px sans-serif; fill: #111 } .n { font-size: 10px } .t { font-weight: bold; font-size: 14px }</style>",
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>',
        f'<text x="10" y="20" class="t">{escape(title)} ({escape(unit)}; line: min to max)</text>',
        *legend, *shapes, "</svg>", "",
    ])


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
