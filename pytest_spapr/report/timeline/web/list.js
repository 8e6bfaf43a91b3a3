// The records as text. Only those in sight are in the page, so that fifty thousand are as quick as fifty.
const records = {
  box: $("list"),
  shown: [],
  height: 22,
  // The run whose records it has; null for what stands side by side in two.
  of: data.diff ? null : runs[0],
  // What the list has: for two runs what stands side by side, else records. Filled anew after each change of what is chosen.
  fill() {
    const open = new Set(tracks.filter((track) => !track.hidden).map((track) => track.number));
    const passes = (run, seq) => open.has(run.lane[seq]) && (!run.matched || run.matched[seq]);
    if (!this.of) {
      const [a, b] = runs;
      this.shown = data.diff.rows.map(([left, right, same], at) => ({ left, right, same, at }))
        .filter(({ left, right }) => (left !== null && passes(a, left)) || (right !== null && passes(b, right)));
    } else {
      const run = this.of;
      this.shown = [];
      for (let seq = 0; seq < run.size; seq++) if (passes(run, seq)) this.shown.push(seq);
    }
    this.height = !this.of && window.innerWidth <= 760 ? 44 : 22;
    $("space").style.height = `${this.shown.length * this.height}px`;
    this.draw();
  },
  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - 4);
    const last = Math.min(this.shown.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 4);
    const rows = $("rows");
    rows.style.transform = `translateY(${first * this.height}px)`;
    rows.replaceChildren(...this.shown.slice(first, last).map((one) => (this.of ? this.row(this.of, one) : this.pair(one))));
  },
  row(run, seq) {
    const row = element("div", "row");
    row.setAttribute("role", "option");
    row.dataset.seq = seq;
    row.dataset.run = run.letter;
    this.cells(row, run, seq);
    if (run.loud.has(seq)) row.classList.add("loud");
    if (chosen.run === run && chosen.seq === seq) { row.classList.add("picked"); row.setAttribute("aria-selected", "true"); }
    return row;
  },
  cells(parent, run, seq) {
    const lane = element("span", "lane"), dot = element("span", "dot"), track = trackOf.get(run.lane[seq]);
    dot.style.background = laneColour(track.number);
    lane.append(dot, element("span", "name", track.short));
    const words = element("span", "words");
    marked(words, run.text[seq]);
    parent.append(element("span", "time", seconds(run.time[seq])), lane, words);
  },
  pair({ left, right, same, at }) {
    const row = element("div", `row two${same ? "" : " other"}`);
    const first = data.diff.first;
    if (first && ((left !== null && left === first[0]) || (left === null && right === first[1]))) row.classList.add("first");
    row.dataset.at = at;
    for (const [run, seq] of [[runs[0], left], [runs[1], right]]) {
      const half = element("span", "half");
      if (seq !== null) {
        this.cells(half, run, seq);
        half.dataset.seq = seq;
        half.dataset.run = run.letter;
        if (chosen.run === run && chosen.seq === seq) half.classList.add("picked");
      }
      row.append(half);
    }
    return row;
  },
  // The position in the list of a record, or of the next one that is shown.
  position(run, seq) {
    if (!this.of) return this.shown.findIndex((one) => (run === runs[0] ? one.left : one.right) >= seq && (run === runs[0] ? one.left : one.right) !== null);
    let low = 0, high = this.shown.length;
    while (low < high) { const middle = (low + high) >> 1; if (this.shown[middle] < seq) low = middle + 1; else high = middle; }
    return Math.min(low, this.shown.length - 1);
  },
  reveal(run, seq) {
    if (this.of && this.of !== run) { this.draw(); return; }
    const at = this.position(run, seq), top = at * this.height;
    if (at >= 0 && (top < this.box.scrollTop + this.height || top > this.box.scrollTop + this.box.clientHeight - 2 * this.height)) {
      this.box.scrollTop = Math.max(0, top - this.box.clientHeight * 0.35);
    }
    this.draw();
  },
  // The record of a list's row, and its run.
  at(position) {
    const one = this.shown[position];
    if (one === undefined) return null;
    if (this.of) return [this.of, one];
    const other = chosen.run === runs[1] && one.right !== null;
    return other || one.left === null ? [runs[1], one.right] : [runs[0], one.left];
  },
  // From when to when the rows in sight are.
  seen(run) {
    if (this.of !== run || !this.shown.length) return null;
    const first = Math.floor(this.box.scrollTop / this.height), last = Math.floor((this.box.scrollTop + this.box.clientHeight) / this.height);
    return [run.time[this.shown[Math.min(first, this.shown.length - 1)]], run.time[this.shown[Math.min(last, this.shown.length - 1)]]];
  },
  listen() {
    const of = (event) => {
      const half = event.target.closest("[data-seq]");
      return half ? [half.dataset.run === "b" ? runs[1] : runs[0], Number(half.dataset.seq)] : null;
    };
    this.box.addEventListener("scroll", () => { tip.hide(); later("list", () => { this.draw(); if (this.of) drawn.forEach((one) => one.draw()); }); });
    this.box.addEventListener("click", (event) => { const found = of(event); if (found) choose(...found); });
    this.box.addEventListener("pointermove", (event) => {
      const found = of(event);
      if (found && event.pointerType === "mouse") tip.show(event, found[0], { seq: found[1] }); else tip.hide();
    });
    this.box.addEventListener("pointerleave", () => tip.hide());
  },
};
const tip = {
  box: $("tip"),
  show(event, run, { seq, stay, label }) {
    const parts = [];
    if (stay) {
      const look = stateLook(stay.state);
      parts.push(element("b", "", `${label}: ${look.name}${look.pending ? ", QEMU waits for the guest" : ""}`), element("pre", "quiet", `${seconds(stay.from)} to ${seconds(stay.to)} s, ${seconds(stay.to - stay.from)} s long; it began with`));
    }
    parts.push(element("b", "", head(run, seq)), element("pre", "", run.text[seq]));
    const whole = pretty(run, seq);
    if (whole) parts.push(element("pre", "quiet", whole.split("\n").slice(0, 24).join("\n") + (whole.split("\n").length > 24 ? "\n… click for the rest" : "")));
    this.box.replaceChildren(...parts);
    this.box.hidden = false;
    const wide = this.box.offsetWidth, tall = this.box.offsetHeight;
    this.box.style.left = `${Math.max(8, Math.min(event.clientX + 14, window.innerWidth - wide - 8))}px`;
    this.box.style.top = `${event.clientY + 18 + tall > window.innerHeight ? Math.max(8, event.clientY - tall - 12) : event.clientY + 18}px`;
  },
  hide() { this.box.hidden = true; },
};
