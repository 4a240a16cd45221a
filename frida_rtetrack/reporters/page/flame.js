
// The flame graph: a tree of functions, as wide as what was allocated below them.

const ROW = 21, BOXES_AT_MOST = 4000, NARROWEST = 0.0008;
const flame = byId("flame");
let tree = null;
let shownBoxes = [];
let at = null;

function newNode(key, name, module, kind, parent) {
  return { key, name, module, kind, parent, depth: parent ? parent.depth + 1 : 0, children: new Map(), value: 0, own: 0, before: 0, after: 0, grew: 0, shrank: 0 };
}

function add(node, figures) {
  node.value += figures.value;
  node.before += figures.before;
  node.after += figures.after;
  if (figures.change > 0) node.grew += figures.change; else node.shrank -= figures.change;
}

function child(node, key, name, module, kind) {
  let found = node.children.get(key);
  if (!found) node.children.set(key, (found = newNode(key, name, module, kind, node)));
  return found;
}

/** The tree of what is chosen. */
function buildTree() {
  const root = newNode("", "all", "", "root", null);
  for (const site of sites) {
    const figures = held(site);
    if (!figures.value && (state.mode !== "live" || !figures.after)) {
      root.before += figures.before; root.after += figures.after;
      if (figures.change < 0) root.shrank -= figures.change;
      continue;
    }
    let node = root;
    add(node, figures);
    if (state.group !== "none") {
      const byType = state.group === "type";
      const number = byType ? site.type : site.thread;
      node = child(node, `g${number}`, byType ? typeName(number) : threadName(number), "", "group");
      add(node, figures);
    }
    const frames = data.stacks[site.stack];
    for (let i = 0; i < frames.length; i++) {
      const number = functionOf(frames[state.reversed ? frames.length - 1 - i : i]);
      node = child(node, `f${number}`, functionName(number), moduleOf(number), kinds[number]);
      add(node, figures);
    }
    node.own += figures.value;
  }
  return root;
}

const sortedChildren = (node) => Array.from(node.children.values()).sort((a, b) => b.value - a.value || (a.name < b.name ? -1 : 1));

function pathOf(node) {
  const keys = [];
  for (; node.parent; node = node.parent) keys.unshift(node.key);
  return keys;
}

/** The node that a path leads to, or as near to it as there is one. */
function follow(path) {
  let node = tree;
  for (const key of path) {
    const next = node.children.get(key);
    if (!next) break;
    node = next;
  }
  return node;
}

function colour(node) {
  if (state.mode === "changed" && node.kind !== "root") {
    const net = (node.grew - node.shrank) / (node.grew + node.shrank || 1);
    const strength = Math.ceil(Math.abs(net) * 3);
    return strength === 0 ? "even" : `${net > 0 ? "grew" : "shrank"}-${strength}`;
  }
  let hash = 0;
  for (let i = 0; i < node.name.length; i++) hash = (31 * hash + node.name.charCodeAt(i)) >>> 0;
  return `${node.kind} shade-${hash % 4}`;
}

function drawFlame() {
  tree = buildTree();
  const zoomed = follow(state.zoom);
  const matches = matcher();
  let boxes = [];
  let deepest = 0;
  function place(node, left, width, passed) {
    boxes.push({ node, left, width, passed });
    deepest = Math.max(deepest, node.depth);
  }
  for (let node = zoomed.parent; node; node = node.parent) place(node, 0, 1, true);
  const waiting = [[zoomed, 0, 1]];
  while (waiting.length && boxes.length < BOXES_AT_MOST) {
    const [node, left, width] = waiting.shift();
    place(node, left, width, false);
    let from = left;
    for (const each of sortedChildren(node)) {
      const part = node.value ? (width * each.value) / node.value : 0;
      if (part >= NARROWEST) waiting.push([each, from, part]);
      from += part;
    }
  }
  if (!tree.value) boxes = [];
  flame.replaceChildren();
  shownBoxes = boxes;
  const drawn = document.createDocumentFragment();
  boxes.forEach((box, number) => {
    box.element = drawBox(box, number, matches);
    drawn.append(box.element);
  });
  if (!tree.value) drawn.append(element("div", { class: "empty" }, state.mode === "live" ? "Nothing is live." : "Nothing grew or shrank."));
  flame.append(drawn);
  flame.style.height = tree.value ? `${(deepest + 1) * ROW}px` : "auto";
  byId("unzoom").hidden = zoomed === tree;
  byId("matches").value = matches ? searchResult(matches) : "";
  moveTo(boxes.find((box) => box.node === zoomed) || null);
}

function drawBox(box, number, matches) {
  const { node } = box;
  const classes = ["box", colour(node)];
  if (box.passed) classes.push("passed");
  if (box.width < 0.004) classes.push("thin");
  if (matches && node.kind !== "root" && (matches(node.name) || matches(node.module))) classes.push("found");
  const made = element("div", { class: classes.join(" "), role: "treeitem", id: `box-${number}`, "aria-level": node.depth + 1,
    "aria-label": `${node.name}, ${measured(node.value)}` }, box.width < 0.004 ? "" : node.name);
  made.style.left = `${100 * box.left}%`;
  made.style.width = `${100 * box.width}%`;
  made.style[state.upward ? "bottom" : "top"] = `${node.depth * ROW}px`;
  return made;
}

/** `12 functions match, 45.0 % of the bytes`: what lies below several that match counts once. */
function searchResult(matches) {
  let found = 0, value = 0;
  const walk = (node, inside) => {
    const hit = node.kind !== "root" && (matches(node.name) || matches(node.module));
    if (hit) found += 1;
    if (hit && !inside) value += node.value;
    for (const each of node.children.values()) walk(each, inside || hit);
  };
  walk(tree, false);
  return `${grouped(found)} ${found === 1 ? "box matches" : "boxes match"}, ${share(value, tree.value) || "0.0 %"}`;
}

function zoom(node) {
  choose({ zoom: pathOf(node) });
}

/** Says below the graph what a box is. */
function tell(node) {
  const status = byId("status");
  const title = node.kind === "root" ? "all" : node.name;
  const parts = [element("b", null, title)];
  if (node.module) parts.push(` in ${node.module}`);
  parts.push(`: ${measured(node.value)}, ${share(node.value, tree.value)}`);
  if (node.own && node.own !== node.value) parts.push(`, ${measured(node.own)} of it itself`);
  if (compares()) {
    parts.push(` · ${measured(node.before)} before, ${measured(node.after)} after`);
    parts.push(` (grew ${measured(node.grew)}, shrank ${measured(node.shrank)})`);
  }
  status.replaceChildren(...parts);
}

function moveTo(box) {
  if (at) at.element.classList.remove("at");
  at = box;
  if (!box) {
    flame.removeAttribute("aria-activedescendant");
    byId("status").replaceChildren();
    return;
  }
  box.element.classList.add("at");
  flame.setAttribute("aria-activedescendant", box.element.id);
  tell(box.node);
}

function onFlameKey(event) {
  const outward = state.upward ? "ArrowDown" : "ArrowUp", inward = state.upward ? "ArrowUp" : "ArrowDown";
  if (event.key === "Enter" && at) zoom(at.node);
  else if (at && [outward, inward, "ArrowLeft", "ArrowRight"].includes(event.key)) {
    const { node } = at;
    let wanted = [];
    if (event.key === outward) wanted = [node.parent];
    else if (event.key === inward) wanted = sortedChildren(node);
    else if (node.parent) {
      const row = sortedChildren(node.parent);
      wanted = [row[row.indexOf(node) + (event.key === "ArrowLeft" ? -1 : 1)]];
    }
    const next = wanted[0] && shownBoxes.find((box) => box.node === wanted[0]);
    if (next) moveTo(next);
  } else return;
  event.preventDefault();
}

function listenToFlame() {
  const boxOf = (event) => {
    const hit = event.target.closest(".box");
    return hit ? shownBoxes.find((box) => box.element === hit) : null;
  };
  flame.addEventListener("click", (event) => {
    const box = boxOf(event);
    if (box) zoom(box.node);
  });
  flame.addEventListener("mouseover", (event) => {
    const box = boxOf(event);
    if (box) tell(box.node);
  });
  flame.addEventListener("mouseleave", () => { if (at) tell(at.node); });
  flame.addEventListener("keydown", onFlameKey);
}
