// The whole run in a strip: how much happened when, and which part the lanes show.
const overview = {
  canvas: $("overview"),
  at: null,
  layout() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth || 300;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(28 * ratio);
    this.pen = this.canvas.getContext("2d");
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const bins = new Float64Array(Math.ceil(this.width / 2) + 1), span = whole.to - whole.from || 1;
    for (const run of runs) for (const track of tracks) {
      if (track.hidden) continue;
      for (const seq of run.byLane.get(track.number) ?? []) if (!run.matched || run.matched[seq]) bins[Math.floor(((run.time[seq] - whole.from) / span) * (bins.length - 1))]++;
    }
    this.bins = bins;
    this.most = bins.reduce((one, other) => Math.max(one, other), 1);
  },
  draw() {
    const { pen, width } = this, x = (time) => ((time - whole.from) / (whole.to - whole.from)) * width;
    pen.clearRect(0, 0, width, 28);
    pen.fillStyle = colour("--quiet");
    // By the root: a boot's flood of kernel messages must not flatten all else.
    this.bins.forEach((count, at) => { if (count) { const tall = 2 + 22 * Math.sqrt(count / this.most); pen.fillRect(at * 2, 27 - tall, 1.5, tall); } });
    pen.fillStyle = colour("--pick");
    pen.globalAlpha = 0.14;
    pen.fillRect(x(view.from), 0, Math.max(3, x(view.to) - x(view.from)), 28);
    pen.globalAlpha = 1;
    pen.strokeStyle = colour("--pick");
    pen.strokeRect(x(view.from) + 0.5, 0.5, Math.max(3, x(view.to) - x(view.from)) - 1, 27);
  },
  listen() {
    const time = (event) => { const box = this.canvas.getBoundingClientRect(); return whole.from + ((event.clientX - box.left) / box.width) * (whole.to - whole.from); };
    this.canvas.addEventListener("pointerdown", (event) => { this.canvas.setPointerCapture(event.pointerId); this.at = time(event); });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.at === null) return;
      const [from, to] = [this.at, time(event)].sort((one, other) => one - other);
      if ((to - from) / (whole.to - whole.from) > 0.003) look(from, to);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const now = time(event), half = (view.to - view.from) / 2;
      if (this.at !== null && Math.abs(now - this.at) / (whole.to - whole.from) <= 0.003) look(now - half, now + half);
      this.at = null;
    });
  },
};
