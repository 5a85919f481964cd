"use strict";
// A table: rows are searched and sorted as a whole, and a page of them is in the document.
plait.blocks.table = (element, { columns, rows, sort, page }) => {
  const [body, search, count, pages] = ["tbody", "input", ".count", ".pages"].map((s) => element.querySelector(s));
  const heads = [...element.querySelectorAll("thead th")];
  const texts = search ? rows.map((row) => row.map((v, n) => plait.shown(v, columns[n].kind)).join(" ").toLowerCase()) : [];
  const collator = new Intl.Collator("en", { numeric: true });
  let order = rows.map((_, n) => n), first = 0, by = sort;

  function compare(a, b) {
    const [x, y] = [rows[a][by[0]], rows[b][by[0]]];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;  // what is not known comes last either way
    const difference = typeof x === "string" ? collator.compare(x, y) : x - y;
    return (by[1] ? -difference : difference) || a - b;
  }
  function arrange() {
    const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    order = rows.map((_, n) => n).filter((n) => words.every((word) => texts[n].includes(word)));
    if (by) order.sort(compare);
    heads.forEach((head, n) => head.setAttribute("aria-sort", by && by[0] === n ? (by[1] ? "descending" : "ascending") : "none"));
    first = 0;
    show();
  }
  function show() {
    body.replaceChildren(
      ...order.slice(first, first + page).map((n) => {
        const row = plait.make("tr");
        row.append(...rows[n].map((value, k) => plait.make("td", plait.shown(value, columns[k].kind), columns[k].class ? { class: columns[k].class } : {})));
        return row;
      }),
    );
    if (count) count.textContent = order.length === rows.length ? `${rows.length.toLocaleString("en")} rows` : `${order.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    if (!pages) return;
    const last = Math.min(first + page, order.length);
    pages.querySelector("span").textContent = order.length ? `${(first + 1).toLocaleString("en")}\u2013${last.toLocaleString("en")} of ${order.length.toLocaleString("en")}` : "none";
    pages.querySelector(".previous").disabled = first === 0;
    pages.querySelector(".next").disabled = last >= order.length;
  }
  heads.forEach((head, n) =>
    head.firstChild.addEventListener("click", () => {
      by = by && by[0] === n ? [n, !by[1]] : [n, columns[n].kind !== "text"];
      arrange();
    }),
  );
  if (search) search.addEventListener("input", arrange);
  if (pages)
    for (const [name, step] of [[".previous", -page], [".next", page]])
      pages.querySelector(name).addEventListener("click", () => {
        first += step;
        show();
        element.querySelector(".scroll").scrollTop = 0;
      });
  arrange();
};
