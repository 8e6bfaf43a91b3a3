// What is looked at, chosen, searched and hidden; keys; the page's address.
const waiting = new Map();
function later(name, act) {
  if (waiting.has(name)) { waiting.set(name, act); return; }
  waiting.set(name, act);
  requestAnimationFrame(() => { const now = waiting.get(name); waiting.delete(name); now(); });
}
const drawn = runs.map((run) => new Tracks(run, $("tracks")));
function redraw() { later("lanes", () => { drawn.forEach((one) => one.draw()); overview.draw(); }); }
function arrange() { drawn.forEach((one) => one.layout()); overview.layout(); records.fill(); redraw(); }

function look(from, to) {
  const most = whole.to - whole.from, span = Math.min(Math.max(to - from, 2e-5), most * 1.04), margin = most * 0.02;
  const middle = (from + to) / 2;
  const begin = Math.min(Math.max(middle - span / 2, whole.from - margin), whole.to + margin - span);
  view.from = begin;
  view.to = begin + span;
  document.documentElement.dataset.view = `${view.from} ${view.to}`;
  redraw();
}
function zoom(factor, around) {
  const about = around ?? (chosen.run ? chosen.run.time[chosen.seq] : (view.from + view.to) / 2);
  const at = Math.min(Math.max((about - view.from) / (view.to - view.from), 0), 1), span = (view.to - view.from) * factor;
  look(about - at * span, about + (1 - at) * span);
}
function showTest() {
  const from = Math.min(...runs.map((run) => run.testStart)), margin = (whole.to - from) * 0.02;
  look(from - margin, whole.to + margin);
}
function showAll() { const margin = (whole.to - whole.from) * 0.02; look(whole.from - margin, whole.to + margin); }

function choose(run, seq, { address = true } = {}) {
  chosen.run = run;
  chosen.seq = seq;
  const time = run.time[seq], span = view.to - view.from;
  if (time < view.from || time > view.to) look(time - span / 2, time + span / 2);
  if (trackOf.get(run.lane[seq]).hidden) toggle(trackOf.get(run.lane[seq]));
  records.reveal(run, seq);
  const there = `#${name(run)}${seq + run.offset}`, title = element("h2"), link = element("a", "", there);
  link.href = there;
  title.append(element("span", "", head(run, seq)), link);
  const words = element("pre");
  marked(words, run.text[seq]);
  $("detail").replaceChildren(title, words);
  if (run.data[seq]) { const rest = element("pre", "quiet"); marked(rest, pretty(run, seq)); $("detail").append(rest); }
  if (address) history.replaceState(null, "", there);
  redraw();
}
const name = (run) => (two ? run.letter : "r");
function goToAddress() {
  const found = /^#([rab])(\d+)$/.exec(location.hash);
  if (!found) return false;
  const run = found[1] === "b" ? runs[1] : runs[0], seq = Number(found[2]) - (run?.offset ?? 0);
  if (!run || seq < 0 || seq >= run.size) return false;
  const time = run.time[seq], around = Math.min(0.6, (whole.to - whole.from) / 2);
  look(time - around, time + around);
  choose(run, seq, { address: false });
  return true;
}
function step(by) {
  const at = chosen.run ? records.position(chosen.run, chosen.seq) : -1;
  const next = records.at(Math.min(Math.max(at + by, 0), records.shown.length - 1));
  if (next) choose(...next);
}
function nextMatch(by) {
  if (!needle && !records.of) {
    const at = chosen.run ? records.position(chosen.run, chosen.seq) : -1;
    for (let near = at + by; near >= 0 && near < records.shown.length; near += by) {
      if (!records.shown[near].same) { choose(...records.at(near)); return; }
    }
    return;
  }
  step(by);
}
function search(text) {
  const began = performance.now();
  needle = text.trim().toLowerCase();
  for (const run of runs) run.search(needle);
  overview.layout();
  records.box.scrollTop = 0;
  records.fill();
  count();
  redraw();
  document.documentElement.dataset.searched = (performance.now() - began).toFixed(1);
}
function count() {
  const all = records.of ? records.of.size : data.diff.rows.length, unit = records.of ? "records" : "rows";
  $("count").textContent = records.shown.length === all ? `${all} ${unit}` : `${records.shown.length} of ${all}`;
}
function toggle(track, alone = false) {
  const began = performance.now();
  if (alone) {
    const only = tracks.every((one) => one === track ? !one.hidden : one.hidden);
    for (const one of tracks) one.hidden = only ? false : one !== track;
  } else track.hidden = !track.hidden;
  legend();
  arrange();
  count();
  document.documentElement.dataset.filtered = (performance.now() - began).toFixed(1);
}
function legend() {
  const buttons = tracks.map((track, at) => {
    const button = element("button"), dot = element("span", "dot");
    dot.style.background = laneColour(track.number);
    button.append(dot, element("span", "", track.label), element("small", "", `${runs.reduce((sum, run) => sum + (run.byLane.get(track.number)?.length ?? 0), 0)}`));
    button.setAttribute("aria-pressed", String(!track.hidden));
    button.title = `hide or show (${at + 1}); double click: alone`;
    button.addEventListener("click", (event) => toggle(track, event.detail === 2));
    return button;
  });
  const seen = new Set(runs.flatMap((run) => run.bars.flatMap((bar) => bar.stays.map((stay) => stay.state))));
  if (seen.size) {
    const key = element("span", "states");
    const looks = new Map([...seen].map(stateLook).map((look) => [look.variable, look]));
    for (const look of looks.values()) key.append(stateKey(look.variable, look.name.replace(", pending", "").replace("power-on", "new").replace("unusable", "new")));
    if ([...seen].some((state) => stateLook(state).pending)) key.append(stateKey("--state-pending", "QEMU waits for the guest"));
    buttons.push(key);
  }
  $("legend").replaceChildren(...buttons);
}
function stateKey(variable, text) {
  const key = element("span"), dot = element("span", "dot");
  dot.style.background = `var(${variable})`;
  key.append(dot, element("span", "", text));
  return key;
}
function about() {
  document.title = visible(data.title);
  $("title").textContent = visible(data.title);
  const told = two ? [] : Object.entries({ ...runs[0].about, records: String(runs[0].size), seconds: seconds(runs[0].end - runs[0].start, 1) });
  for (const [key, value] of told) { const part = element("span", "", `${key} `); part.append(element("b", "", value)); $("about").append(part); }
  for (const run of runs) {
    if (run.offset) $("about").append(element("span", "odd", `the first ${run.offset} records ${two ? `of ${run.name} ` : ""}are not on this page, but in its timeline.jsonl`));
  }
  document.querySelector("main").classList.toggle("two", two);
  if (data.diff) { parted(); listed(); }
}
// What the list has: what stands side by side, or all records of one of two runs.
function listed() {
  const choice = $("listed");
  choice.hidden = false;
  for (const [at, text] of ["side by side", ...runs.map((run) => `all of ${run.name}`)].entries()) {
    const option = element("option", "", text);
    option.value = at;
    choice.append(option);
  }
  choice.addEventListener("change", () => {
    records.of = [null, ...runs][Number(choice.value)];
    records.box.scrollTop = 0;
    records.fill();
    if (chosen.run && (!records.of || chosen.run === records.of)) records.reveal(chosen.run, chosen.seq);
    count();
    redraw();
  });
}
// Where two runs part, in words.
function parted() {
  const box = $("verdict"), { first, by_track: differences } = data.diff;
  box.hidden = false;
  const link = (run, seq, words) => {
    if (seq === null) return element("span", "quiet", words);
    const made = element("a", "", `${seconds(run.time[seq])}  ${words}`);
    made.href = `#${run.letter}${seq + run.offset}`;
    return made;
  };
  const table = (list) => {
    const made = element("table");
    for (const [where, a, b, one, other] of list) {
      const row = element("tr"), cells = [element("td", "", where), element("td"), element("td")];
      cells[1].append(link(runs[0], a, one));
      cells[2].append(link(runs[1], b, other));
      row.append(...cells);
      made.append(row);
    }
    return made;
  };
  if (!first) { box.className = "same"; box.append(element("p", "", "No divergence: both did the same, in every lane that counts.")); }
  else {
    box.append(element("p", "", `First divergence, in ${first[2]}:`), table(differences.slice(0, 1)));
  }
  const rest = differences.filter(([where]) => !first || where !== first[2]);
  if (rest.length) {
    const more = element("details");
    more.append(element("summary", "", `the first difference in each other lane (${rest.length})`), table(rest));
    box.append(more);
  }
}
const acts = {
  "/": () => $("search").focus(), n: () => nextMatch(1), N: () => nextMatch(-1), j: () => step(1), k: () => step(-1),
  ArrowDown: () => step(1), ArrowUp: () => step(-1), "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1.6), "−": () => zoom(1.6),
  ArrowLeft: () => look(view.from - (view.to - view.from) / 5, view.to - (view.to - view.from) / 5),
  ArrowRight: () => look(view.from + (view.to - view.from) / 5, view.to + (view.to - view.from) / 5),
  t: showTest, 0: showAll, "?": () => $("keys").showModal(),
  Escape: () => { $("search").value = ""; search(""); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target === $("listed")) return;
  if (event.target === $("search")) {
    if (event.key === "Escape") { acts.Escape(); $("search").blur(); } else if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
    return;
  }
  const act = /^[1-9]$/.test(event.key) ? tracks[event.key - 1] && (() => toggle(tracks[event.key - 1])) : acts[event.key];
  if (act && !(event.target.closest("button, a, summary") && ["Enter", " "].includes(event.key))) { event.preventDefault(); act(); }
});
$("search").addEventListener("input", () => later("search", () => search($("search").value)));
for (const [id, act] of Object.entries({ previous: () => nextMatch(-1), next: () => nextMatch(1), in: () => zoom(0.6), out: () => zoom(1.6), test: showTest, all: showAll, help: acts["?"] })) $(id).addEventListener("click", act);
window.addEventListener("hashchange", goToAddress);
window.addEventListener("resize", () => later("arrange", arrange));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", arrange);
overview.listen();
records.listen();
about();
legend();
arrange();
count();
showTest();
if (!goToAddress()) {
  const start = data.diff?.first ? [data.diff.first[0] === null ? runs[1] : runs[0], data.diff.first[0] ?? data.diff.first[1]] : data.focus !== null ? [runs[0], data.focus] : null;
  if (start) choose(...start, { address: false });
  else if (runs[0].size) records.reveal(runs[0], runs[0].text.findIndex((_, seq) => runs[0].time[seq] >= runs[0].testStart));
}
requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = performance.now().toFixed(0); }));
