"use strict";
// A heat map: the cells of a table, coloured by the view that is chosen; pointer and arrow keys read them.
plait.blocks.heatmap = (element, { rows, columns, views }) => {
  const cells = [...element.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const [about, low, high, readout, caption] = [".about", ".low", ".high", ".readout", "caption"].map((s) => element.querySelector(s));
  const title = element.querySelector("figcaption b").textContent, scroll = element.querySelector(".scroll");
  let view = views[0], at = null;

  function show() {
    const span = view.high - view.low || 1;
    about.textContent = view.about || view.name;
    low.textContent = plait.shown(view.low, view.kind);
    high.textContent = plait.shown(view.high, view.kind);
    caption.textContent = `${title}: ${view.name}`;
    cells.forEach((row, r) =>
      row.forEach((cell, c) => {
        const value = view.values[r][c];
        cell.classList.toggle("none", value === null);
        cell.style.setProperty("--v", value === null ? "" : Math.min(1, Math.max(0, (value - view.low) / span)).toFixed(3));
        cell.replaceChildren(plait.make("span", plait.shown(value, view.kind)));
      }),
    );
    if (at) read(...at);
  }
  function read(r, c) {
    if (at) cells[at[0]][at[1]].classList.remove("at");
    at = [r, c];
    cells[r][c].classList.add("at");
    readout.replaceChildren(`${rows[r]}, ${columns[c]}: `, plait.make("b", plait.shown(view.values[r][c], view.kind)), ` ${view.name}`);
  }
  scroll.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) read(cell.parentElement.sectionRowIndex, cell.cellIndex - 1);
  });
  scroll.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !rows.length || !columns.length) return;
    event.preventDefault();
    const [r, c] = at ? [at[0] + step[0], at[1] + step[1]] : [0, 0];
    read(Math.min(rows.length - 1, Math.max(0, r)), Math.min(columns.length - 1, Math.max(0, c)));
    cells[at[0]][at[1]].scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  for (const choice of element.querySelectorAll("input"))
    choice.addEventListener("change", () => {
      view = views[choice.value];
      show();
    });
  show();
};
