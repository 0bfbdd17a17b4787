"""What happens in the browser on a click: all that Bokeh does not do by itself, as `CustomJS` texts.

The state is in Bokeh's models: `all_rows.data.open`, `groups.selected`, `search.value_input`.  LAYOUT
derives from it what is seen; the others change the state and call it.
"""

from __future__ import annotations

__all__ = ["CLICK", "FIT", "LAYOUT", "OPEN_ALL"]

LAYOUT = """
const r = all_rows.data, n = r.parent.length, query = search.value_input.trim().toLowerCase()
const hit = Array.from(r.text, (text) => text.includes(query))
for (let i = n - 1; i >= 0; i--) if (hit[i] && r.parent[i] >= 0) hit[r.parent[i]] = true

// What is hidden stands where the row is that hides it: wires and marks then need no case of their own.
const at = [], order = [], seen = [], open = [], end = [], is_seen = []
let y = 0, dots = 0
for (let i = 0; i < n; i++) {
  const p = r.parent[i]
  is_seen[i] = (p < 0 || (is_seen[p] && open[p])) && (!query || hit[i])
  open[i] = r.inner[i] && !!(query || r.open[i])
  at[i] = is_seen[i] ? --y : p < 0 ? NaN : at[p]
  order[i] = is_seen[i] ? (dots += r.dot[i] && !(open[i] && r.frame[i])) : p < 0 ? NaN : order[p]
  if (!is_seen[i]) continue
  seen.push(i)
  for (let a = i; a >= 0; a = r.parent[a]) end[a] = y
}
const take = (data, kept) =>
  Object.fromEntries(Object.entries(data).map(([name, values]) => [name, kept.map((i) => values[i])]))

// Each column ends before the next one begins, whatever the window's width: what is longer ends in "…".
const pen = document.createElement("canvas").getContext("2d")
const fitted = (text, font, room) => {
  pen.font = font
  if (!text || pen.measureText(text).width <= room) return text
  let low = 0, high = text.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (pen.measureText(text.slice(0, middle) + "…").width <= room) low = middle
    else high = middle - 1
  }
  return text.slice(0, low) + "…"
}
const edge = Math.max(plot.inner_width || wide, words_x + 200) - 12, gap = 10
const narrow = edge + 12 < wide
const sizes_x = Math.max(least_sizes_x, words_x + 0.42 * (edge - words_x))
const before_count = Array.from(r.count, (text) => edge - (text ? text.length * small + gap : 0))
const words_end = Array.from(r.size, (text, i) => (text && !narrow ? sizes_x - gap : before_count[i]))
const name_room = (i) => (r.what[i] ? what_x : words_x) - gap - r.x[i] - 14
rows.data = {
  ...take(r, seen),
  shown_name: seen.map((i) => fitted(r.name[i], `${r.style[i]} 12.5px ${sans}`, name_room(i))),
  shown_what: seen.map((i) => fitted(r.what[i], `11px ${sans}`, words_x - gap - what_x)),
  shown_size: seen.map((i) => fitted(r.size[i], `11px ${mono}`, before_count[i] - sizes_x)),
  size_x: seen.map(() => sizes_x),
  y: seen.map((i) => at[i]),
  top: seen.map((i) => (open[i] && r.frame[i] ? at[i] + 0.5 : NaN)),
  bottom: seen.map((i) => end[i] - 0.5),
  arrow: seen.map((i) => (!r.inner[i] ? "" : open[i] ? "▾" : "▸")),
  dot_alpha: seen.map((i) => (r.dot[i] && !(open[i] && r.frame[i]) ? 1 : 0)),
}

const [picked] = groups.selected.indices, none = picked === undefined
const color = none ? "" : groups.data.color[picked]
const own = all_words.data, read = [], cut = new Map()
for (const k of own.row.keys()) {
  const row = own.row[k], last = k + 1 === own.row.length || own.row[k + 1] !== row
  if (!is_seen[row] || cut.get(row) < k) continue
  // One letter more is kept free for the mark of what is left out.
  const end = own.x[k] + letter * (own.text[k].length + (last ? 0 : 2))
  if (end > words_end[row]) cut.set(row, k)
  read.push(k)
}
words.data = {
  ...take(own, read),
  text: read.map((k) => (cut.get(own.row[k]) === k ? "…" : own.text[k])),
  y: read.map((k) => at[own.row[k]]),
  alpha: read.map((k) => (none || own.group[k] === picked ? 1 : 0.38)),
}

const lit = new Map()
sites.data.row.forEach((i, k) => {
  if (sites.data.group[k] !== picked || isNaN(at[i])) return
  if (!lit.has(at[i])) lit.set(at[i], [])
  lit.get(at[i]).push(sites.data.name[k])
})
marks.data = {
  y: [...lit.keys()],
  color: [...lit].map(() => color),
  text: [...lit.values()].map((names) => `${names.length} site${names.length > 1 ? "s" : ""}`),
  names: [...lit.values()].map((names) => names.join("\\n")),
}

// Of the wires that run from one row to another one is drawn, a picked one if there is any.
const w = all_wires.data, drawn = new Map(), carries = (k) => w.groups[k].includes(picked)
w.from.forEach((_, k) => {
  const [a, b] = [at[w.from[k]], at[w.to[k]]], key = `${a} ${b}`
  if (a > b && (!drawn.has(key) || carries(k))) drawn.set(key, k)
})
const kept = [...drawn.values()]
wires.data = {
  y0: kept.map((k) => at[w.from[k]]),
  y1: kept.map((k) => at[w.to[k]]),
  bend: kept.map((k) => {
    const span = order[w.to[k]] - order[w.from[k]]
    return wire_x - (span > 1 ? Math.min(92, 20 + 14 * Math.sqrt(span)) : 0)
  }),
  alpha: kept.map((k) => (none ? 0.55 : carries(k) ? 0.95 : 0.2)),
  color: kept.map((k) => (carries(k) ? color : w.color[k])),
}
const told = () => `<b style="color:${color}">${groups.data.label[picked]}</b> ${groups.data.told[picked]}`
status.text = none ? `${seen.length} rows` : told()

const low = -Math.max(seen.length, height.value) - 1
plot.y_range.bounds = [low, 0]
overview.y_range.setv({ start: low, end: 0 })
const top = Math.min(0, Math.max(plot.y_range.end, low + height.value))
plot.y_range.setv({ end: top, start: top - height.value })
"""

# One unit is one pixel across and one row down, whatever the size of the window.
FIT = """
if (!plot.inner_height) return
height.value = plot.inner_height / row_height
counts.x = { value: plot.inner_width - 12 }
sizes.visible = plot.inner_width >= wide
plot.x_range.setv({ start: 0, end: plot.inner_width })
layout.execute(plot)
"""

# A click on a word selects its group or lets it go, one on a name opens or closes the row.
CLICK = """
const [hit] = cb_data.source.inspected.indices
if (cb_data.source === words) {
  const group = words.data.group[hit]
  if (group >= 0) groups.selected.indices = groups.selected.indices[0] === group ? [] : [group]
} else {
  const row = rows.data.index[hit]
  all_rows.data.open[row] = !all_rows.data.open[row]
  layout.execute(rows)
}
"""

OPEN_ALL = """
all_rows.data.open = all_rows.data.open.map(() => open)
layout.execute(all_rows)
"""
