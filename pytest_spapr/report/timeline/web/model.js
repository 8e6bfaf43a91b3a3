// The records, and what is chosen of them: shared by all that draws.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const tracks = data.tracks.map(([number, label, short]) => ({ number, label, short, hidden: false }));
const trackOf = new Map(tracks.map((track) => [track.number, track]));
const two = data.runs.length > 1;

class Run {
  constructor(raw, letter) {
    Object.assign(this, { letter, name: raw.name, test: raw.test, about: raw.about, text: raw.text, data: raw.data });
    this.size = raw.time.length;
    // Of a flood only the end is in the page; a record's number is that of the whole.
    this.offset = raw.offset;
    // One clock: two runs are aligned where their tests begin.
    const zero = two ? raw.time[raw.begin] : 0;
    this.zero = zero / 1e6;
    this.time = Float64Array.from(raw.time, (micro) => (micro - zero) / 1e6);
    this.lane = Uint8Array.from(raw.lane);
    this.start = this.size ? this.time[0] : 0;
    this.end = this.size ? this.time[this.size - 1] : 0;
    this.testStart = this.size ? this.time[raw.begin] : 0;
    this.loud = new Set(raw.loud);
    this.reply = new Map();
    for (let at = 0; at < raw.pairs.length; at += 2) this.reply.set(raw.pairs[at], raw.pairs[at + 1]);
    this.bars = raw.bars.map(([label, stays]) => ({
      label,
      stays: stays.map(([state, from, to, seq]) => ({ state, from: (from - zero) / 1e6, to: (to - zero) / 1e6, seq })),
    }));
    this.byLane = new Map();
    for (let seq = 0; seq < this.size; seq++) {
      if (!this.byLane.has(this.lane[seq])) this.byLane.set(this.lane[seq], []);
      this.byLane.get(this.lane[seq]).push(seq);
    }
    this.matched = null;
    this.haystacks = null;
  }
  haystack(seq) {
    return this.data[seq] ? `${this.text[seq]}\n${this.data[seq]}`.toLowerCase() : this.text[seq].toLowerCase();
  }
  search(needle) {
    if (!needle) { this.matched = null; return; }
    this.haystacks ??= Array.from({ length: this.size }, (_, seq) => this.haystack(seq));
    this.matched = new Uint8Array(this.size);
    for (let seq = 0; seq < this.size; seq++) if (this.haystacks[seq].includes(needle)) this.matched[seq] = 1;
  }
  // The position, in a list of records, of the first that is not before a time.
  static from(list, run, time) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (run.time[list[middle]] < time) low = middle + 1; else high = middle;
    }
    return low;
  }
}
const runs = data.runs.map((raw, number) => new Run(raw, "ab"[number]));
const whole = { from: Math.min(...runs.map((run) => run.start)), to: Math.max(...runs.map((run) => run.end), 1e-3) };
const view = { from: whole.from, to: whole.to };
const chosen = { run: null, seq: -1 };
let needle = "";

// A character that would be invisible, or change what stands around it, is shown by its number. Guests write what they like.
const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
function visible(text) {
  return text.replace(ODD, (letter) => {
    if (letter === "\n" || letter === "\t") return letter;
    const number = letter.codePointAt(0);
    return number < 256 ? `\\x${number.toString(16).padStart(2, "0")}` : `\\u{${number.toString(16)}}`;
  });
}
function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = visible(text);
  return made;
}
// Text with what is searched for marked; as text, never as HTML.
function marked(parent, text) {
  const shown = visible(text);
  if (!needle) { parent.textContent = shown; return; }
  const low = shown.toLowerCase();
  let at = 0;
  for (let found = low.indexOf(needle); found >= 0 && low.length === shown.length; found = low.indexOf(needle, at)) {
    parent.append(shown.slice(at, found), element("mark", "", shown.slice(found, found + needle.length)));
    at = found + needle.length;
  }
  parent.append(shown.slice(at));
}
function seconds(time, digits = 4) {
  return (time < 0 ? "−" : "") + Math.abs(time).toFixed(digits);
}
function pretty(run, seq) {
  if (!run.data[seq]) return "";
  try { return JSON.stringify(JSON.parse(run.data[seq]), null, 2); } catch { return run.data[seq]; }
}
function head(run, seq) {
  const reply = run.reply.get(seq);
  const took = reply === undefined ? "" : `, answered after ${seconds(run.time[reply] - run.time[seq])} s`;
  const which = two ? `${run.name}, ` : "";
  return `${which}${seconds(run.time[seq])} s, ${trackOf.get(run.lane[seq]).label}, record ${seq + run.offset}${took}`;
}
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const laneColour = (number) => `var(--track-${number})`;
const STATE = { unusable: "new", "power-on": "new", available: "available", unisolated: "unisolated", configured: "configured" };
// Of a state's name: its colour's variable, and whether QEMU waits for the guest in it.
function stateLook(number) {
  const name = data.states[number];
  const pending = name !== null && name.endsWith(", pending");
  const base = name === null ? "unknown" : STATE[name.replace(", pending", "")] || "unknown";
  return { name: name ?? "unknown", variable: `--state-${base}`, pending };
}
