"use strict";
// What all blocks share: their data, how numbers are shown, colours, and the choice of light or dark.
const plait = (() => {
  const blocks = {}, redraws = [];
  const NONE = "\u2013";

  function size(bytes) {
    for (const [unit, scale] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
      if (bytes >= scale) {
        const value = bytes / scale;
        return `${value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
      }
    return `${Math.trunc(bytes)} B`;
  }
  function duration(seconds) {
    if (seconds && seconds < 0.0995) return seconds < 0.00095 ? "<1 ms" : `${(1000 * seconds).toFixed(0)} ms`;
    if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 120) return `${whole} s`;
    return whole < 7200 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }
  const kinds = {
    bytes: size,
    seconds: duration,
    count: (v) => v.toLocaleString("en"),
    percent: (v) => `${(100 * v).toFixed(1)} %`,
    number: (v) => String(Number(v.toPrecision(4))),
    text: String,
  };
  const shown = (value, kind) => (value === null || value === undefined ? NONE : kinds[kind](value));

  // Colours for drawings on a canvas, which knows no custom properties: what the style sheet makes of them now.
  function colour(name, alpha = 1) {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
    probe.remove();
    return `rgba(${r}, ${g}, ${b}, ${alpha})`;
  }
  function make(tag, text, attributes = {}) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  function themed() {
    document.getElementById("theme").textContent = theme() === "dark" ? "Light" : "Dark";
    for (const redraw of redraws) redraw();
  }
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      themed();
    });
    dark.addEventListener("change", themed);
    for (const element of document.querySelectorAll("[data-block]"))
      blocks[element.dataset.block](element, JSON.parse(document.getElementById(`${element.id}-data`).textContent));
    themed();
    root.dataset.ready = "yes";
  });
  return { blocks, shown, colour, make, onTheme: (redraw) => redraws.push(redraw) };
})();
