
// The call sites as a table; the leaks; the bad frees with their stacks.

const ROWS_FIRST = 100;
const order = { by: "bytes", descending: true };
onChange((changes) => { if ("mode" in changes) Object.assign(order, { by: changes.mode === "live" ? "bytes" : "change", descending: true }); });
let rowsAtMost = ROWS_FIRST;

/** A stack as a list, innermost first. */
function stackList(stack) {
  const list = element("ol", { class: "stack", start: 0 });
  for (const frame of data.stacks[stack].slice().reverse()) {
    const number = functionOf(frame);
    const item = element("li", { class: kinds[number] === "own" ? "" : "dim" }, functionName(number));
    const where = [placeOf(frame, true), moduleOf(number)].filter(Boolean);
    if (where.length) item.append(element("span", { class: "place" }, ` ${where[0]}${where[1] ? ` [${where[1]}]` : ""}`));
    list.append(item);
  }
  return list;
}

const COLUMNS = [
  { key: "bytes", title: "Bytes", number: true, value: (row) => row.figures.bytes, show: (row) => size(row.figures.bytes) },
  { key: "blocks", title: "Blocks", number: true, value: (row) => row.figures.blocks, show: (row) => grouped(row.figures.blocks) },
  { key: "change", title: "Change", number: true, only: compares, value: (row) => row.figures.change,
    show: (row) => signed(row.figures.change, measured) },
  { key: "share", title: "Share", number: true, narrowOut: true, value: (row) => row.figures.value, show: (row, whole) => share(row.figures.value, whole) },
  { key: "type", title: "Type", value: (row) => typeName(row.site.type), show: (row) => typeName(row.site.type) },
  { key: "thread", title: "Thread", narrowOut: true, value: (row) => threadName(row.site.thread), show: (row) => threadName(row.site.thread) },
  { key: "site", title: "Call site", value: (row) => functionName(functionOf(tellingFrame(row.site.stack))) },
];

function drawTable() {
  const columns = COLUMNS.filter((column) => !column.only || column.only());
  const head = element("tr");
  for (const column of columns) {
    const sorted = column.key === order.by ? (order.descending ? "descending" : "ascending") : null;
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      order.descending = column.key === order.by ? !order.descending : Boolean(column.number);
      order.by = column.key;
      drawTable();
    });
    head.append(element("th", { scope: "col", "aria-sort": sorted, class: cellClass(column) }, button));
  }
  const matches = matcher();
  const rows = sites.map((site) => ({ site, figures: held(site) }))
    .filter((row) => row.figures.value || (state.mode === "live" && row.figures.blocks))
    .filter((row) => !matches || siteMatches(row.site, matches));
  const whole = rows.reduce((sum, row) => sum + row.figures.value, 0);
  const column = columns.find((each) => each.key === order.by) || columns[0];
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  rows.sort((a, b) => (order.descending ? -1 : 1) * compare(column.value(a), column.value(b)) || a.site.index - b.site.index);
  const body = rows.slice(0, rowsAtMost).map((row) => drawRow(row, columns, whole));
  byId("table").tHead.replaceChildren(head);
  byId("table").tBodies[0].replaceChildren(...body);
  byId("sites-title").textContent = `Call sites (${grouped(rows.length)}${matches ? " that match" : ""})`;
  byId("more").hidden = rows.length <= rowsAtMost;
  byId("more").textContent = `Show all ${grouped(rows.length)}`;
}

const cellClass = (column) => `${column.number ? "number" : "name"}${column.narrowOut ? " narrow-out" : ""}`;

function siteMatches(site, matches) {
  return matches(typeName(site.type)) || matches(threadName(site.thread))
    || data.stacks[site.stack].some((frame) => matches(functionName(functionOf(frame))) || matches(moduleOf(functionOf(frame))));
}

function drawRow(row, columns, whole) {
  const made = element("tr");
  for (const column of columns) {
    if (column.key === "site") made.append(element("td", { class: "name" }, ...siteButton(row.site)));
    else made.append(element("td", { class: cellClass(column) }, column.show(row, whole)));
  }
  return made;
}

function siteButton(site) {
  const frame = tellingFrame(site.stack);
  const button = element("button", { type: "button", "aria-expanded": "false" }, functionName(functionOf(frame)));
  const place = placeOf(frame, false);
  if (place) button.append(element("span", { class: "place" }, ` ${place}`));
  let list = null;
  button.addEventListener("click", () => {
    if (list) list.remove(); else button.parentElement.append((list = stackList(site.stack)));
    const isOpen = list.isConnected;
    if (!isOpen) list = null;
    button.setAttribute("aria-expanded", String(isOpen));
  });
  return [button];
}

/** A line of live bytes over the run, as high as its highest. */
function curveOf(values) {
  const svg = document.createElementNS(SVG, "svg");
  const highest = Math.max(...values, 1);
  const points = values.map((value, i) => `${(100 * i) / (values.length - 1)},${20 - (19 * value) / highest}`);
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("class", "curve");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `from ${size(values[0])} to ${size(values[values.length - 1])}`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

function drawLeaks() {
  if (!data.leaks.length) return;
  byId("leaks").hidden = false;
  byId("leaks-title").textContent = `Leaks (${grouped(data.leaks.length)})`;
  for (const leak of data.leaks) {
    const frame = tellingFrame(leak.stack);
    byId("leak-list").append(element("details", null,
      element("summary", null, element("span", { class: "kind" }, leak.kind),
        `${size(leak.bytes)} in ${count(leak.blocks)}${leak.types.length ? ` of type ${leak.types.join(", ")}` : ""}, by `,
        element("b", null, functionName(functionOf(frame))), ...(leak.curve.length > 1 ? [curveOf(leak.curve)] : [])),
      stackList(leak.stack)));
  }
  if (data.leaks_not_shown) byId("leak-list").append(element("p", null, `${grouped(data.leaks_not_shown)} smaller ones are not shown.`));
}

function drawBadFrees() {
  if (!data.bad_frees.length) return;
  byId("bad-frees").hidden = false;
  byId("bad-title").textContent = `Bad frees (${grouped(data.bad_frees.reduce((sum, each) => sum + each.count, 0))})`;
  for (const bad of data.bad_frees) {
    const stacks = bad.stacks.map(({ title, stack }) => element("div", null, element("h3", null, title), ...(stack < 0 ? [] : [stackList(stack)])));
    const times = bad.count > 1 ? ` · ${grouped(bad.count)} times with these stacks` : "";
    byId("bad-list").append(element("details", { open: "" },
      element("summary", null, element("span", { class: "kind" }, bad.kind), bad.title),
      element("p", null, `${bad.detail} At ${time(bad.seconds)}${times}.`),
      ...(bad.also ? [element("p", null, bad.also)] : []),
      element("div", { class: "stacks" }, ...stacks)));
  }
  if (data.bad_frees_not_shown) byId("bad-list").append(element("p", null, `${grouped(data.bad_frees_not_shown)} more are not shown.`));
}
