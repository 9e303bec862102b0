"""What a notebook shows of a value (``_repr_html_``) shares with the reports: colours for light and dark, and a frame whose style stays inside it."""

from __future__ import annotations

from html import escape

LIGHT = (
    "--page: #ffffff; --ink: #1b1f24; --quiet: #59636e; --rule: #d5dae0; --card: #f6f8fa; "
    "--stable: #0063a8; --candidate: #b84f00; --fail: #b3123b; --pass: #1a6b3c; --open: #7a5b00;"
)
DARK = (
    "--page: #121212; --ink: #e8eaed; --quiet: #a3acb6; --rule: #3a4149; --card: #1d2126; "
    "--stable: #6cb6f5; --candidate: #f5a25d; --fail: #ff7a94; --pass: #6fd08c; --open: #e3c05a;"
)

STYLE = """
.C { background: var(--page); color: var(--ink); font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; max-width: 1180px;
  padding: 4px 12px 12px; }
.C summary { margin: 14px 0 2px; cursor: pointer; } .C summary b { font-size: 15px; font-weight: 650; }
.C p { margin: 2px 0 8px; max-width: 100ch; overflow-wrap: anywhere; }
.C .quiet { color: var(--quiet); } .C .good { color: var(--pass); } .C .bad { color: var(--fail); } .C .open { color: var(--open); }
.C .pill { border: 1.5px solid; border-radius: 999px; padding: 1px 10px; font-size: 13px; font-weight: 600; margin-right: 8px; white-space: nowrap; }
.C .told { border-left: 4px solid currentColor; padding: 8px 12px; background: var(--card); border-radius: 4px; }
.C .told span { color: var(--ink); }
.C table { border-collapse: collapse; width: auto; margin: 10px 0 0; font-size: 13px; border: 0; }
.C tr, .C tbody tr:nth-child(n), .C tbody tr:nth-child(n):hover { background: none; }
.C.C th, .C.C td { padding: 4px 20px 4px 0; border: 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
.C th { color: var(--quiet); font-weight: 550; } .C.C .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.C pre { background: var(--card); color: var(--ink); padding: 8px 0; margin: 6px 0 0; border-radius: 6px; overflow-x: auto; font-size: 12.5px;
  line-height: 1.45; }
.C pre, .C pre span { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.C pre span { display: block; padding: 0 12px; width: max-content; min-width: 100%; box-sizing: border-box;
  white-space: pre; }
.C pre .plus { color: var(--pass); background: color-mix(in srgb, var(--pass) 12%, transparent); }
.C pre .minus { color: var(--fail); background: color-mix(in srgb, var(--fail) 12%, transparent); }
""".replace(".C", ".kfp-serving")


def colours(name: str) -> str:
    """CSS that sets the colours for all of a class, as variables: by the theme of Jupyter or VS Code, where there is none by the browser's."""
    return (
        f".{name} {{ color-scheme: light dark; {LIGHT} }}\n"
        f"@media (prefers-color-scheme: dark) {{ .{name} {{ {DARK} }} }}\n"
        f"[data-jp-theme-light=true] .{name}, .vscode-light .{name} {{ color-scheme: light; {LIGHT} }}\n"
        f"[data-jp-theme-light=false] .{name}, .vscode-dark .{name} {{ color-scheme: dark; {DARK} }}\n"
    )


def framed(html: str) -> str:
    """A piece of HTML with its style, which touches nothing outside it."""
    return f'<div class="kfp-serving"><style>\n{colours("kfp-serving")}{STYLE}</style>\n{html}\n</div>'


def diff(unified: str) -> str:
    """A unified diff, coloured; without the two lines that name its sides."""
    kinds = {"+": "plus", "-": "minus", "@": "quiet"}
    told = [f'<span class="{kinds.get(line[:1], "")}">{escape(line) or " "}</span>' for line in unified.splitlines()[2:]]
    return f"<pre>{''.join(told)}</pre>"


def odds(value: float | None) -> str:
    """Evidence as people say it, ``N : 1``."""
    if value is None:
        return "-"
    return f"{value:,.0f} : 1" if 1000 <= value < 1e7 else f"{value:.3g} : 1"
