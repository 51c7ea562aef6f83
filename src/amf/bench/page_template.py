"""The report page's HTML, and the head that every page has, for jinja2 with autoescape on."""

# Until the end of the style that all pages share; a page adds its own, and `</style>`.
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1320px;padding:0 1rem;color:#1c1c1c;background:#fff}
h1{font-size:1.5rem}
h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
h3{font-size:1rem;margin:1rem 0 .3rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap}
.scroll{overflow-x:auto}
.charts{display:flex;flex-wrap:wrap;gap:1rem}
.charts>div{flex:1 1 420px;max-width:640px}
p.note{color:#555;margin:.2rem 0}
@media (prefers-color-scheme:dark){
body{background:#151515;color:#e6e6e6}
th,td{border-color:#333}
p.note{color:#aaa}
.charts svg{background:#f4f4f4;border-radius:6px}
}
"""

# A macro: the HTML of a `TextTable`, and the style that it wants.
TABLE_STYLE = "th.text,td.text{text-align:left}\n"
TEXT_TABLE = """{% macro text_table(table) %}<div class="scroll"><table>
<thead><tr>{% for head in table.heads %}<th{% if loop.index <= table.texts %} class="text"{% endif %}>{{ head }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}
<td{% if loop.index <= table.texts %} class="text"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endmacro %}"""

TEMPLATE = (
    HEAD
    + """table{width:100%}
th:first-child,td:first-child{text-align:left}
.waterfall{width:100%;max-width:1100px;font:11px system-ui,sans-serif}
.waterfall .tick{fill:#666}
.gap{fill:#9a9a9a}.wait{fill:#d98a00}.decode{fill:#0a6fc2}.late{fill:#c23b3b}
.legend span{margin-right:1.2rem}
.legend i{display:inline-block;width:.9em;height:.9em;margin-right:.3em;vertical-align:-.1em}
.i-gap{background:#9a9a9a}.i-wait{background:#d98a00}.i-decode{background:#0a6fc2}.i-late{background:#c23b3b}
p.said{white-space:pre-wrap;font:13px/1.4 ui-monospace,monospace;overflow-x:auto}
details{margin:.5rem 0}
summary{font-weight:600;cursor:pointer}
@media (prefers-color-scheme:dark){.waterfall text{fill:#ddd}}
</style></head><body>
<h1>{{ title }}</h1>
{% for line in summary %}<p class="said">{{ line }}</p>
{% endfor %}
{% if charts %}<div class="charts">{% for chart in charts %}<div>{{ chart }}</div>{% endfor %}</div>
{% endif %}{% for section in sections %}<h2>{{ section.workload }}</h2>
<div class="scroll"><table>
<thead><tr>{% for head in section.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<div class="charts">{% for chart in section.charts %}<div>{{ chart }}</div>{% endfor %}</div>
<h3>Slowest completed pipelines</h3>
<p class="legend">
{% for kind, meaning in legend %}<span><i class="i-{{ kind }}"></i>{{ meaning }}</span>{% endfor %}
</p>
{% for item in section.slowest %}<details{% if loop.index <= 4 %} open{% endif %}><summary>{{ item.title }}</summary>
{{ item.svg }}</details>
{% endfor %}{% endfor %}
<h2>How to read this</h2>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
</body></html>
"""
)
