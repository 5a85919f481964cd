"use strict";
// A graph that folds: Cytoscape draws what is unfolded, and dagre places the members of each group from left to right.
plait.blocks.graph = (element, data) => {
  const nodes = new Map(data.nodes.map(([id, label, kind, parent, facts, open]) => [id, { id, label, kind, parent, facts, open, members: [] }]));
  const canvas = element.querySelector(".canvas"), chosen = element.querySelector(".chosen"), top = [];
  for (const node of nodes.values()) (node.parent ? nodes.get(node.parent).members : top).push(node);
  const font = 12, line = 16, pad = 26, title = 18;  // an open group has its name above its box
  const wide = (node) => Math.max(60, 6.8 * Math.max(...node.label.map((l) => l.length)) + 30);
  let cy, at = null;

  const name = (node) => node.label.join(" ");
  const drawnOpen = (node) => node.open && node.members.length > 0;
  // The node that is seen where this one would be.
  function seen(id) {
    let node = nodes.get(id);
    for (let above = node; above; above = nodes.get(above.parent)) if (above.parent && !nodes.get(above.parent).open) node = nodes.get(above.parent);
    return node.id;
  }
  function arrows() {
    const found = new Map();
    for (const [source, target, weight] of data.edges) {
      const [a, b] = [seen(source), seen(target)];
      if (a !== b && !inside(a, b) && !inside(b, a)) found.set(`${a}\n${b}`, [a, b, (found.get(`${a}\n${b}`)?.[2] || 0) + weight]);
    }
    return [...found.values()];
  }
  function inside(a, b) {
    for (let node = nodes.get(a); node; node = nodes.get(node.parent)) if (node.id === b) return true;
    return false;
  }
  // The ancestor of a node that is a member of `group`, if it has one.
  function within(id, group) {
    let node = nodes.get(id);
    while (node && node.parent !== group) node = nodes.get(node.parent);
    return node?.id;
  }
  // Sizes from the inside out, then places from the outside in. Members without arrows among them stand in a grid.
  function place(members, group, edges) {
    const inner = new Map();
    for (const node of members) {
      if (drawnOpen(node)) {
        const box = place(node.members, node.id, edges);
        inner.set(node.id, box);
        [node.w, node.h] = [Math.max(box.w + 2 * pad, wide(node)), box.h + 2 * pad + title];
      } else [node.w, node.h] = [wide(node), line * node.label.length + 14];
    }
    const between = edges.map(([a, b]) => [within(a, group), within(b, group)]).filter(([a, b]) => a && b && a !== b);
    const spots = between.length || group === "" ? layered(members, between, group) : grid(members);
    let [w, h] = [0, 0];
    for (const node of members) {
      const [x, y] = spots.get(node.id);
      [node.x, node.y] = [x, y];
      [w, h] = [Math.max(w, x + node.w / 2), Math.max(h, y + node.h / 2)];
    }
    return { w, h, inner };
  }
  function layered(members, between, group) {
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ rankdir: "LR", nodesep: group ? 12 : 18, ranksep: group ? 32 : 70, marginx: 0, marginy: 0 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const node of members) graph.setNode(node.id, { width: node.w, height: node.h });
    for (const [a, b] of between) graph.setEdge(a, b);
    dagre.layout(graph);
    return new Map(members.map((node) => [node.id, [graph.node(node.id).x, graph.node(node.id).y]]));
  }
  function grid(members) {
    const spots = new Map(), gap = 10, closed = members.filter((n) => !drawnOpen(n));
    const width = Math.max(60, ...closed.map((n) => n.w)), height = Math.max(30, ...closed.map((n) => n.h));
    const across = Math.max(1, Math.round(Math.sqrt((members.length * height * 3) / width)));
    let [column, y] = [0, 0];
    const next = (h) => ([column, y] = [0, y + h + gap]);
    for (const node of members) {
      if (drawnOpen(node)) {  // it has a row of its own
        if (column) next(height);
        spots.set(node.id, [node.w / 2, y + node.h / 2]);
        next(node.h);
      } else {
        spots.set(node.id, [column * (width + gap) + width / 2, y + height / 2]);
        if (++column === across) next(height);
      }
    }
    return spots;
  }
  function settle(members, box, dx, dy, found) {
    for (const node of members) {
      const [x, y] = [node.x + dx, node.y + dy];
      const open = drawnOpen(node);
      found.push({
        data: { id: node.id, parent: node.parent || undefined, w: node.w, h: node.h, label: node.label.join(open ? "  " : "\n") + (node.members.length && !open ? " \u25b8" : open ? " \u25be" : "") },
        classes: `${node.kind}${open ? " open" : ""}${node.members.length ? " folds" : ""}`,
        ...(open ? {} : { position: { x, y } }),
      });
      const held = box.inner.get(node.id);
      if (open) settle(node.members, held, x - held.w / 2, y - node.h / 2 + title + pad, found);
    }
  }
  function draw(fit = "") {
    const edges = arrows(), found = [];
    const box = place(top, "", edges);
    settle(top, box, 0, 0, found);
    const heaviest = Math.max(1, ...edges.map((e) => e[2]));
    for (const [a, b, weight] of edges) found.push({ data: { id: `${a}\n${b}`, source: a, target: b, width: 1 + 4 * Math.sqrt(weight / heaviest) }, classes: nodes.get(a).parent || nodes.get(b).parent ? "" : "outer" });
    cy.batch(() => {
      cy.elements().remove();
      cy.add(found);
    });
    if (at) cy.getElementById(at).addClass("at");
    show(fit);
  }
  // A group that was opened, or everything: large enough to be read, from its upper left corner where it is larger than the window.
  function show(id) {
    const what = id ? cy.getElementById(id) : cy.elements();
    cy.fit(what, id ? 40 : 24);
    if (cy.zoom() > 1.3) {
      cy.zoom(1.3);
      cy.center(what);
    } else if (id && cy.zoom() < 0.7) {
      cy.zoom(0.7);
      const box = what.boundingBox();
      cy.pan({ x: 24 - 0.7 * box.x1, y: Math.max(24, (canvas.clientHeight - 0.7 * box.h) / 2) - 0.7 * box.y1 });
    }
  }
  function style() {
    const of = { input: "c0", pass: "c1", op: "c1", group: "soft", output: "c2" };
    const ink = plait.colour("ink"), text = { "font-family": "system-ui, sans-serif", "font-size": font, color: ink };
    return [
      { selector: "node", style: { ...text, shape: "round-rectangle", width: "data(w)", height: "data(h)", label: "data(label)", "text-wrap": "wrap", "text-valign": "center",
        "text-halign": "center", "line-height": 1.25, "border-width": 1.25, "background-color": plait.colour("card"), "border-color": plait.colour("soft") } },
      ...Object.entries(of).map(([kind, c]) => ({ selector: `node.${kind}`, style: { "border-color": plait.colour(c) } })),
      { selector: "node.folds", style: { "border-width": 2 } },
      { selector: "node.open", style: { "text-valign": "top", "text-margin-y": -4, "text-wrap": "none", padding: `${pad}px`, "background-color": plait.colour("wash"), "compound-sizing-wrt-labels": "exclude" } },
      { selector: "edge", style: { width: "data(width)", "curve-style": "bezier", "line-color": plait.colour("soft", 1), "line-opacity": 0.5, "target-arrow-shape": "triangle",
        "target-arrow-color": plait.colour("soft", 1), "arrow-scale": 0.9 } },
      { selector: "edge.outer", style: { "z-compound-depth": "bottom" } },
      { selector: ".at", style: { "border-color": plait.colour("accent"), "border-width": 3 } },
    ];
  }
  function choose(id) {
    if (at) cy.getElementById(at).removeClass("at");
    at = id;
    const node = nodes.get(id);
    cy.getElementById(id).addClass("at");
    const list = plait.make("dl");
    for (const [term, value] of node.facts) {
      const pair = plait.make("div");
      pair.append(plait.make("dt", term), plait.make("dd", value));
      list.append(pair);
    }
    chosen.replaceChildren(plait.make("b", name(node)), list);
  }
  function toggle(id) {
    const node = nodes.get(id);
    if (!node.members.length) return;
    node.open = !node.open;
    draw(node.open ? id : node.parent);
    choose(id);
  }
  cy = cytoscape({ container: canvas, elements: [], style: style(), minZoom: 0.05, maxZoom: 4, userZoomingEnabled: false, boxSelectionEnabled: false, autoungrabify: true, layout: { name: "preset" } });
  cy.on("tap", "node", (event) => {
    choose(event.target.id());
    toggle(event.target.id());
  });
  cy.on("mouseover", "node", (event) => choose(event.target.id()));
  const zoom = (by, where = { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 }) => cy.zoom({ level: cy.zoom() * by, renderedPosition: where });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;  // the page goes on scrolling
    event.preventDefault();
    zoom(1.0015 ** -event.deltaY, { x: event.offsetX, y: event.offsetY });
  }, { passive: false });
  const deeds = {
    fit: () => cy.fit(undefined, 24), in: () => zoom(1.3), out: () => zoom(1 / 1.3),
    fold: () => {
      for (const node of nodes.values()) node.open = false;
      draw();
    },
  };
  element.querySelector(".tools").addEventListener("click", (event) => deeds[event.target.dataset.do]?.());
  canvas.addEventListener("keydown", (event) => {
    const order = cy.nodes().map((n) => n.id()), here = order.indexOf(at), move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (move) choose(order[(here + move + order.length) % order.length]);
    else if ((event.key === "Enter" || event.key === " ") && at) toggle(at);
    else if (event.key === "+" || event.key === "-") deeds[event.key === "+" ? "in" : "out"]();
    else return;
    event.preventDefault();
  });
  // The same as nested lists, made when it is opened.
  const outline = element.querySelector(".outline");
  function listed(members) {
    const list = plait.make("ul");
    for (const node of members) {
      const item = plait.make("li");
      const words = [name(node), ...node.facts.map(([term, value]) => `${term} ${value}`)].join(" \u00b7 ");
      if (node.members.length) {
        const details = plait.make("details");
        details.append(plait.make("summary", words));
        details.addEventListener("toggle", () => details.children.length === 1 && details.append(listed(node.members)));
        item.append(details);
      } else item.textContent = words;
      list.append(item);
    }
    return list;
  }
  outline.addEventListener("toggle", () => outline.children.length === 1 && outline.append(listed(top)));
  element.plaitGraph = { cy, toggle };  // for scripts that drive the page
  draw();
  plait.onTheme(() => cy.style(style()));
};
