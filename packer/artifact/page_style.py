"""How the page of a medium looks: one style sheet, nothing fetched, calm in light and dark."""

from __future__ import annotations

STYLE = """\
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --line: #dfe3e8;
  --paper: #ffffff; --tint: #f5f7f9; --mark: #0b6e4f; --care: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #313a46;
  --paper: #14181e; --tint: #1c222a; --mark: #5cc9a0; --care: #e0b25c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3.2rem 0 0.8rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1.1rem; }
p { margin: 0.7rem 0; }
header p, .guest { color: var(--soft); }
.pack { margin: 1.4rem 0; padding: 1.3rem 1.5rem; background: var(--tint);
  border: 1px solid var(--line); border-radius: 10px; }
.guest { margin: 0.1rem 0 1rem; }
dl { display: grid; grid-template-columns: 9.5rem 1fr; gap: 0.35rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.whole { color: var(--mark); }
.part { color: var(--care); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.86em; }
pre { margin: 0.9rem 0; padding: 0.9rem 1.1rem; overflow-x: auto; background: var(--tint);
  border: 1px solid var(--line); border-radius: 8px; line-height: 1.55; }
details { border-top: 1px solid var(--line); padding: 0.9rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.6rem; }
  main { padding-top: 2rem; } }
@media print { body { font-size: 11pt; } .pack, pre { break-inside: avoid; } }
"""
