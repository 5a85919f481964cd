"use strict";
// A chart of lines and steps, drawn by uPlot; marks are lines of one value, and a readout follows pointer and arrow keys.
plait.blocks.chart = (element, data) => {
  const plot = element.querySelector(".plot"), readout = element.querySelector(".readout");
  const stepped = uPlot.paths.stepped({ align: 1 });
  const colourOf = (n) => plait.colour(`c${n % 6}`);
  const axes = [...new Set(data.series.map((s) => s.kind))];
  const columns = [data.x, ...data.series.map((s) => s.values), ...data.marks.map((m) => data.x.map(() => m.value))];
  const word = (i) => (data.labels.length ? data.words[data.labels[i]] : "");
  let chart;

  function read(u) {
    const at = u.cursor.idx;
    if (at === null || at === undefined) return;
    readout.replaceChildren(plait.make("b", `${data.xName} ${plait.shown(data.x[at], data.xKind)}`));
    if (data.stacked) readout.append(" \u00b7 together ", plait.make("b", plait.shown(data.series[0].values[at], data.series[0].kind)));
    data.series.forEach((s, n) => {
      const value = s.values[at], below = data.stacked && n + 1 < data.series.length ? data.series[n + 1].values[at] : 0;
      readout.append(plait.make("i", "", { style: `background: var(--c${n % 6})` }), `${s.name} `, plait.make("b", plait.shown(value === null ? null : value - below, s.kind)));
    });
    if (word(at)) readout.append(` \u00b7 ${data.labelName} `.replace("  ", " "), plait.make("b", word(at)));
  }
  // Splits at round numbers of the unit that is shown: of MiB or GiB, not of bytes.
  function rounded(u, axis, low, high, increment) {
    const unit = 1024 ** Math.floor(Math.log(Math.max(high, 1)) / Math.log(1024));
    const wanted = increment / unit, scale = 10 ** Math.floor(Math.log10(wanted));
    const step = unit * scale * [1, 2, 5, 10].find((f) => f * scale >= wanted * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
    return found;
  }
  // Few words on an axis: `90 s`, `2 min`, `2:30`.
  function brief(value, kind, increment) {
    if (value === null || value === undefined) return "";
    if (kind !== "seconds" || value < 120 && increment < 60) return value === 0 ? "0" : kind === "seconds" ? `${Number(value.toPrecision(3))} s` : plait.shown(value, kind);
    if (!value) return "0";
    if (increment % 60) return `${Math.floor(value / 60)}:${String(Math.round(value % 60)).padStart(2, "0")}`;
    return increment % 3600 ? `${value / 60} min` : `${value / 3600} h`;
  }
  const clock = [0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000, 72000, 144000];
  // A mark far above all lines would press them flat: it is named at the upper edge instead.
  const tallest = Math.max(0, ...data.series.filter((s) => s.kind === axes[0]).flatMap((s) => s.values.map((v) => v || 0)));
  const near = (mark) => mark.value <= 2.5 * tallest;
  const top = (kind, high) => (kind === axes[0] ? Math.max(tallest, ...data.marks.filter(near).map((m) => m.value)) * (data.marks.every(near) ? 1.06 : 1.2) || 1 : (high || 1) * 1.06);
  function draw() {
    const grid = { stroke: plait.colour("line"), width: 1 }, ink = plait.colour("soft");
    const axis = (kind, scale, side) => ({
      scale, side, stroke: ink, grid: side === 3 || side === 2 ? grid : { show: false }, ticks: grid, size: side === 2 ? 34 : 76, font: "12px system-ui, sans-serif",
      space: side === 2 ? 70 : 36, values: (_, splits, n, space, increment) => splits.map((v) => brief(v, kind, increment)),
      ...(kind === "seconds" ? { incrs: clock } : {}), ...(kind === "bytes" && !(side === 2 && data.logX) ? { splits: rounded } : {}),
    });
    const options = {
      width: plot.clientWidth || 800, height: data.height,
      scales: {
        x: { time: false, distr: data.logX ? 3 : 1, log: 2 },
        ...Object.fromEntries(axes.map((kind) => [kind, { range: (_, low, high) => [0, top(kind, high)] }])),
      },
      axes: [axis(data.xKind, "x", 2), ...axes.map((kind, n) => axis(kind, kind, n ? 1 : 3))],
      series: [
        {},
        ...data.series.map((s, n) => ({
          label: s.name, scale: s.kind, stroke: colourOf(n), width: 1.75, fill: s.fill ? plait.colour(`c${n % 6}`, 0.14) : undefined,
          paths: s.step ? stepped : undefined, points: { show: s.points, size: 7, fill: colourOf(n) }, spanGaps: false,
        })),
        ...data.marks.map(() => ({ scale: axes[0], stroke: plait.colour("warn"), width: 1.5, dash: [7, 5], points: { show: false } })),
      ],
      cursor: { y: false, points: { size: 7 } },
      legend: { show: false },
      hooks: { setCursor: [read], draw: [names] },
    };
    chart?.destroy();
    chart = new uPlot(options, columns, plot);
  }
  // The name of each mark on its line.
  function names(u) {
    const { ctx, bbox } = u, ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = plait.colour("warn");
    ctx.textAlign = "right";
    for (const mark of data.marks) {
      const y = near(mark) ? u.valToPos(mark.value, axes[0], true) : bbox.top, above = y - 6 * ratio > bbox.top + 12 * ratio;
      const text = near(mark) ? mark.name : `\u2191 ${mark.name}`, right = bbox.left + bbox.width - 6 * ratio, foot = above ? y - 6 * ratio : y + 16 * ratio;
      ctx.fillStyle = plait.colour("card", 0.8);
      ctx.fillRect(right - ctx.measureText(text).width - 4 * ratio, foot - 12 * ratio, ctx.measureText(text).width + 8 * ratio, 16 * ratio);
      ctx.fillStyle = plait.colour("warn");
      ctx.fillText(text, right, foot);
    }
    ctx.restore();
  }
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const at = Math.min(data.x.length - 1, Math.max(0, (chart.cursor.idx ?? 0) + step));
    chart.setCursor({ left: chart.valToPos(data.x[at], "x"), top: 10 });
  });
  const key = plait.make("p", undefined, { class: "readout key" });
  data.series.forEach((s, n) => key.append(plait.make("i", "", { style: `background: var(--c${n % 6})` }), s.name));
  if (data.series.length > 1) plot.before(key);
  new ResizeObserver(() => chart && plot.clientWidth && chart.setSize({ width: plot.clientWidth, height: data.height })).observe(plot);
  plait.onTheme(draw);
};
