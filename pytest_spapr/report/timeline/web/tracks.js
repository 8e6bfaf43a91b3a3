// The lanes of one run, on a canvas: marks, spans from a command to its answer, bars of connectors' states.
const AXIS = 24;
class Tracks {
  constructor(run, parent) {
    this.run = run;
    const box = element("div");
    if (two) box.append(element("h2", "", [run.name, ...Object.values(run.about).filter((value) => !value.startsWith(run.name))].join(", ")));
    this.canvas = element("canvas");
    this.canvas.setAttribute("aria-label", "lanes over time; the list below has the same records as text");
    box.append(this.canvas);
    parent.append(box);
    this.pointers = new Map();
    this.listen();
  }
  layout() {
    this.width = this.canvas.clientWidth || 300;
    this.gutter = this.width < 600 ? 96 : 150;
    this.rows = [];
    let y = AXIS;
    const add = (row) => { this.rows.push({ ...row, y }); y += row.height; };
    for (const track of tracks) {
      const list = this.run.byLane.get(track.number);
      if (!list || track.hidden) continue;
      const named = list.some((seq) => this.run.loud.has(seq)) ? 30 : 20;
      add({ track, list, height: named, label: this.gutter < 100 ? track.short : track.label });
      if (track.label === "DRC states") for (const bar of this.run.bars) add({ track, bar, height: 18, label: this.gutter < 100 ? bar.label.replace(/^(\d+x )?\w+ /, "$1") : bar.label });
    }
    this.height = y + 6;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = `${this.height}px`;
    this.pen = this.canvas.getContext("2d");
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.ink = {};
    for (const name of ["ink", "quiet", "line", "faint", "panel", "pick", "pick-soft", "bad"]) this.ink[name] = colour(`--${name}`);
    for (const track of tracks) this.ink[track.number] = colour(`--track-${track.number}`);
    this.states = data.states.map((_, number) => { const look = stateLook(number); return { ...look, fill: colour(look.variable), wait: colour("--state-pending") }; });
  }
  x(time) { return this.gutter + ((time - view.from) / (view.to - view.from)) * (this.width - this.gutter); }
  time(x) { return view.from + ((x - this.gutter) / (this.width - this.gutter)) * (view.to - view.from); }
  draw() {
    const { pen, ink } = this;
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    this.rows.forEach((row, number) => {
      if (number % 2) { pen.fillStyle = ink.faint; pen.globalAlpha = 0.6; pen.fillRect(0, row.y, this.width, row.height); pen.globalAlpha = 1; }
    });
    this.drawAxis();
    pen.save();
    pen.beginPath();
    pen.rect(this.gutter, AXIS, this.width - this.gutter, this.height);
    pen.clip();
    this.drawSeen();
    for (const row of this.rows) if (row.bar) this.drawBar(row); else this.drawMarks(row);
    this.drawLines();
    pen.restore();
    this.flagged?.();
    for (const row of this.rows) {
      pen.fillStyle = row.bar ? ink.quiet : ink[row.track.number];
      if (!row.bar) pen.fillRect(6, row.y + row.height / 2 - 4, 3, 8);
      pen.fillStyle = row.bar ? ink.quiet : ink.ink;
      pen.font = row.bar ? `11px ${colour("--mono")}` : `12px ${getComputedStyle(document.body).fontFamily}`;
      pen.fillText(this.clipped(row.label, this.gutter - 18), row.bar ? 16 : 14, row.y + row.height / 2);
    }
  }
  clipped(text, width) {
    const { pen } = this;
    if (pen.measureText(text).width <= width) return text;
    let kept = text.length;
    while (kept > 1 && pen.measureText(`${text.slice(0, kept)}…`).width > width) kept--;
    return `${text.slice(0, kept)}…`;
  }
  drawAxis() {
    const { pen, ink } = this;
    const span = view.to - view.from, most = Math.max(3, (this.width - this.gutter) / 90);
    const power = 10 ** Math.floor(Math.log10(span / most));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= most);
    const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    pen.strokeStyle = ink.line;
    pen.fillStyle = ink.quiet;
    pen.font = `11px ${colour("--mono")}`;
    for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
      const x = Math.round(this.x(time)) + 0.5;
      pen.beginPath(); pen.moveTo(x, AXIS - 6); pen.lineTo(x, this.height); pen.stroke();
      if (x + 30 < this.width) pen.fillText(`${seconds(time + 0, digits).replace("−0" + (digits ? "." + "0".repeat(digits) : ""), "0")}${x < this.gutter + 50 ? " s" : ""}`, x + 3, AXIS / 2 - 1);
    }
    if (this.dragging?.select) {
      pen.fillStyle = ink["pick-soft"];
      pen.fillRect(Math.min(this.dragging.x, this.dragging.now), 0, Math.abs(this.dragging.now - this.dragging.x), AXIS);
    }
  }
  // The part that the list shows now.
  drawSeen() {
    const seen = records.seen(this.run);
    if (!seen) return;
    this.pen.fillStyle = this.ink["pick-soft"];
    this.pen.globalAlpha = 0.45;
    this.pen.fillRect(this.x(seen[0]), AXIS, Math.max(2, this.x(seen[1]) - this.x(seen[0])), this.height);
    this.pen.globalAlpha = 1;
  }
  drawBar(row) {
    const { pen } = this;
    for (const stay of row.bar.stays) {
      if (stay.to < view.from || stay.from > view.to) continue;
      const from = Math.max(this.gutter - 2, this.x(stay.from)), to = Math.min(this.width + 2, Math.max(this.x(stay.to), this.x(stay.from) + 1.5));
      const state = this.states[stay.state];
      pen.fillStyle = state.fill;
      pen.fillRect(from, row.y + 3, to - from, row.height - 6);
      if (state.pending) { pen.fillStyle = state.wait; pen.fillRect(from, row.y + row.height - 7, to - from, 4); }
      if (to - from > 46) {
        pen.fillStyle = this.ink.panel;
        pen.font = "600 10.5px system-ui, sans-serif";
        pen.fillText(this.clipped(state.name, to - from - 8), from + 4, row.y + row.height / 2 + 0.5);
      }
    }
  }
  drawMarks(row) {
    const { pen, run } = this;
    const list = row.list, first = Run.from(list, run, view.from), strip = row.height === 30 ? 12 : row.height - 8;
    pen.fillStyle = this.ink[row.track.number];
    // What began before the view's begin and ends within it.
    for (let at = Math.max(0, first - 60); at < first; at++) this.drawSpan(row, list[at], strip);
    let last = -9, lastDim = -9;
    for (let at = first; at < list.length && run.time[list[at]] <= view.to; at++) {
      const seq = list[at], x = this.x(run.time[seq]), hit = !run.matched || run.matched[seq];
      this.drawSpan(row, seq, strip);
      // Marks of one pixel column are one mark.
      if (hit ? x - last < 0.8 : Math.max(x - last, 0) < 0.8 || x - lastDim < 0.8) continue;
      pen.globalAlpha = hit ? 1 : 0.18;
      pen.fillRect(x - 0.75, row.y + 4, run.loud.has(seq) ? 2.5 : 1.5, strip);
      if (hit) last = x; else lastDim = x;
    }
    pen.globalAlpha = 1;
    if (row.height === 30) this.drawWords(row, first);
  }
  drawSpan(row, seq, strip) {
    const reply = this.run.reply.get(seq);
    if (reply === undefined) return;
    const from = this.x(this.run.time[seq]), to = this.x(this.run.time[reply]);
    if (to < this.gutter || to - from < 2) return;
    this.pen.globalAlpha = 0.28;
    this.pen.fillRect(from, row.y + 4, to - from, strip);
    this.pen.globalAlpha = 1;
  }
  // Words beside marks where there is room: the loud ones first.
  drawWords(row, first) {
    const { pen, run } = this, taken = [], list = row.list;
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.fillStyle = this.ink[row.track.number];
    // A verdict is long, and follows from what else is told.
    const rank = (seq) => (chosen.run === run && chosen.seq === seq ? 0 : !run.loud.has(seq) ? 3 : run.text[seq].startsWith("verdict") ? 2 : 1);
    for (const wanted of [0, 1, 2, 3]) {
      for (let at = first, tried = 0; at < list.length && run.time[list[at]] <= view.to && tried < 600; at++) {
        const seq = list[at];
        if (rank(seq) !== wanted) continue;
        tried++;
        const whole = visible(run.text[seq]), text = whole.length > 36 ? `${whole.slice(0, 35)}…` : whole, wide = pen.measureText(text).width + 8;
        // At the right end, words stand before their mark.
        const from = Math.min(this.x(run.time[seq]) - 1, this.width - wide), to = from + wide;
        if (taken.some(([a, b]) => from < b && to > a)) continue;
        taken.push([from, to]);
        pen.fillText(text, from, row.y + 23);
      }
    }
  }
  // Words on the time axis.
  flag(text, time) {
    const { pen } = this;
    this.flagged = () => {
      const x = this.x(time);
      if (x < this.gutter || x > this.width) return;
      pen.font = "600 11px system-ui, sans-serif";
      const wide = pen.measureText(text).width + 10, from = Math.min(x, this.width - wide);
      pen.fillStyle = this.ink.bad;
      pen.fillRect(from, 3, wide, AXIS - 7);
      pen.fillStyle = this.ink.panel;
      pen.fillText(text, from + 5, AXIS / 2 - 0.5);
    };
  }
  drawLines() {
    const { pen } = this;
    const line = (time, style, dash) => {
      const x = Math.round(this.x(time)) + 0.5;
      pen.strokeStyle = style; pen.setLineDash(dash); pen.beginPath(); pen.moveTo(x, AXIS); pen.lineTo(x, this.height); pen.stroke(); pen.setLineDash([]);
    };
    const first = data.diff?.first, parted = first ? first[this.run.letter === "a" ? 0 : 1] : null;
    if (parted !== null && parted !== undefined) {
      line(this.run.time[parted], this.ink.bad, [5, 3]);
      this.flag("first divergence", this.run.time[parted]);
    }
    if (chosen.run === this.run) line(this.run.time[chosen.seq], this.ink.pick, []);
  }
  hit(x, y) {
    const row = this.rows.find((one) => y >= one.y && y < one.y + one.height), run = this.run;
    if (!row || x < this.gutter) return null;
    const time = this.time(x);
    if (row.bar) {
      const stay = row.bar.stays.findLast((one) => one.from <= time && time <= one.to);
      return stay ? { seq: stay.seq, stay, label: row.bar.label } : null;
    }
    const at = Run.from(row.list, run, time);
    let best = -1, least = 8;
    for (const near of [at - 1, at, at + 1]) {
      const seq = row.list[near];
      if (seq === undefined || (run.matched && !run.matched[seq])) continue;
      const far = Math.abs(this.x(run.time[seq]) - x);
      if (far < least) { least = far; best = seq; }
    }
    if (best < 0) {
      const before = row.list[at - 1], reply = run.reply.get(before);
      if (reply !== undefined && run.time[reply] >= time) best = before;
    }
    return best < 0 ? null : { seq: best };
  }
  listen() {
    const at = (event) => { const box = this.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    this.canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (this.pointers.has(event.pointerId)) return this.drag(event, x);
      const hit = this.hit(x, y);
      this.canvas.classList.toggle("hit", hit !== null);
      if (hit) tip.show(event, this.run, hit); else tip.hide();
    });
    this.canvas.addEventListener("pointerleave", () => tip.hide());
    this.canvas.addEventListener("pointerdown", (event) => {
      const [x, y] = at(event);
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, x);
      this.dragging = { x, now: x, y, view: { ...view }, moved: false, select: y < AXIS, apart: null };
      tip.hide();
    });
    const up = (event) => {
      const [x, y] = at(event), dragging = this.dragging;
      this.pointers.delete(event.pointerId);
      this.canvas.classList.remove("drag");
      this.dragging = null;
      if (!dragging || event.type === "pointercancel") return;
      if (dragging.select && Math.abs(x - dragging.x) > 4) look(...[this.time(dragging.x), this.time(x)].sort((a, b) => a - b));
      else if (!dragging.moved) { const hit = this.hit(x, y); if (hit) choose(this.run, hit.seq); }
    };
    this.canvas.addEventListener("pointerup", up);
    this.canvas.addEventListener("pointercancel", up);
    this.canvas.addEventListener("dblclick", (event) => zoom(0.4, this.time(at(event)[0])));
    this.canvas.addEventListener("wheel", (event) => {
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (!event.ctrlKey && !event.metaKey && !sideways) return;
      event.preventDefault();
      const span = view.to - view.from;
      if (sideways && !event.ctrlKey) { const by = ((event.deltaX || event.deltaY) / (this.width - this.gutter)) * span; look(view.from + by, view.to + by); }
      else zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) * 0.006), this.time(at(event)[0]));
    }, { passive: false });
  }
  drag(event, x) {
    const dragging = this.dragging;
    this.pointers.set(event.pointerId, x);
    if (!dragging) return;
    if (this.pointers.size === 2) {
      const [one, other] = [...this.pointers.values()], apart = Math.max(12, Math.abs(one - other));
      if (dragging.apart) zoom(dragging.apart / apart, this.time((one + other) / 2));
      dragging.apart = apart;
      dragging.moved = true;
      return;
    }
    if (Math.abs(x - dragging.x) > 3) dragging.moved = true;
    dragging.now = x;
    if (dragging.select) { this.draw(); return; }
    if (!dragging.moved || dragging.apart) return;
    this.canvas.classList.add("drag");
    const by = ((dragging.x - x) / (this.width - this.gutter)) * (dragging.view.to - dragging.view.from);
    look(dragging.view.from + by, dragging.view.to + by);
  }
}
