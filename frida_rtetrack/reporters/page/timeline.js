
// The time line: live bytes by type, and the moment or range that is chosen in it.

const TYPES_SHOWN = 7;
const SVG = "http://www.w3.org/2000/svg";
const timeline = byId("timeline");

/** The types with the most bytes at any moment, and the others as one: [{name, bytes at each moment}]. */
function typeBands() {
  const bands = data.types.map((name) => ({ name, bytes: new Float64Array(momentCount) }));
  for (const site of sites) for (let i = 0; i < momentCount; i++) bands[site.type].bytes[i] += site.bytes[i];
  for (const band of bands) band.most = band.bytes.reduce((a, b) => Math.max(a, b), 0);
  const sorted = bands.filter((band) => band.most > 0).sort((a, b) => b.most - a.most);
  const shown = sorted.slice(0, TYPES_SHOWN);
  const others = sorted.slice(TYPES_SHOWN);
  if (others.length) {
    const bytes = new Float64Array(momentCount);
    for (const band of others) band.bytes.forEach((value, i) => { bytes[i] += value; });
    shown.push({ name: `${others.length} other types`, bytes });
  }
  return shown;
}

const first = momentCount ? data.moments[0] : 0;
const span = momentCount > 1 ? data.moments[momentCount - 1] - first : 1;
const across = (seconds) => (100 * (seconds - first)) / (span || 1);

function drawTimeline() {
  const highest = Math.max(...totals, 1);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const below = new Float64Array(momentCount);
  typeBands().forEach((band, number) => {
    const point = (i) => `${(10 * across(data.moments[i])).toFixed(2)} ${(100 - (94 * below[i]) / highest).toFixed(2)}`;
    const lower = Array.from(below, (_, i) => point(i)).reverse();
    band.bytes.forEach((value, i) => { below[i] += value; });
    const upper = Array.from(below, (_, i) => point(i));
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", `M${upper.join("L")}L${lower.join("L")}Z`);
    path.style.fill = `var(--type-${number})`;
    svg.append(path);
    const swatch = element("i");
    swatch.style.background = `var(--type-${number})`;
    byId("legend").append(element("li", null, swatch, band.name));
  });
  timeline.append(svg, element("span", { class: "top" }, size(highest)));
  const ticks = 5;
  for (let i = 0; i < ticks; i++) {
    const tick = element("span", { class: i === 0 ? "tick first" : i === ticks - 1 ? "tick last" : "tick" },
      time(first + (span * i) / (ticks - 1)));
    tick.style.left = `${(100 * i) / (ticks - 1)}%`;
    timeline.append(tick);
  }
  let before = -Infinity, row = 0;
  for (const [seconds, text] of data.marks) {
    const place = Math.min(Math.max(across(seconds), 0), 100);
    row = place - before < 16 ? (row + 1) % 4 : 0;
    before = place;
    const mark = element("div", { class: place > 70 ? "mark late" : "mark" }, element("span", null, text));
    mark.style.left = `${place}%`;
    mark.firstChild.style.top = `${20 + 18 * row}px`;
    timeline.append(mark);
  }
  const range = element("div", { class: "range" });
  const chosen = element("div", { class: "chosen" });
  timeline.append(range, chosen);

  onChange((changes) => { if ("to" in changes) showChosen(range, chosen); });
  showChosen(range, chosen);
  listenToPointer();
  timeline.addEventListener("keydown", onTimelineKey);
}

function showChosen(range, chosen) {
  const to = across(data.moments[state.to]);
  chosen.style.left = `${to}%`;
  range.hidden = state.from === null;
  if (state.from !== null) {
    const from = across(data.moments[state.from]);
    range.style.left = `${from}%`;
    range.style.width = `${to - from}%`;
  }
  timeline.setAttribute("aria-valuemin", 0);
  timeline.setAttribute("aria-valuemax", momentCount - 1);
  timeline.setAttribute("aria-valuenow", state.to);
  timeline.setAttribute("aria-valuetext", state.from === null ? time(data.moments[state.to])
    : `${time(data.moments[state.from])} to ${time(data.moments[state.to])}`);
}

/** The moment nearest to a place on the screen. */
function momentAt(x) {
  const box = timeline.getBoundingClientRect();
  const seconds = first + (span * (x - box.left)) / box.width;
  let best = 0;
  data.moments.forEach((moment, i) => { if (Math.abs(moment - seconds) < Math.abs(data.moments[best] - seconds)) best = i; });
  return best;
}

function listenToPointer() {
  let anchor = null;
  timeline.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    anchor = momentAt(event.clientX);
    timeline.setPointerCapture(event.pointerId);
    chooseTime(null, anchor);
  });
  timeline.addEventListener("pointermove", (event) => {
    if (anchor !== null) chooseTime(anchor, momentAt(event.clientX));
  });
  for (const end of ["pointerup", "pointercancel"]) timeline.addEventListener(end, () => { anchor = null; });
}

let anchorKey = null;
function onTimelineKey(event) {
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -momentCount, End: momentCount }[event.key];
  if (event.key === "Escape" && state.from !== null) {
    event.stopPropagation();
    chooseTime(null, state.to);
  }
  if (!step) return;
  event.preventDefault();
  if (!event.shiftKey || state.from === null) anchorKey = state.to;
  const moving = state.from !== null && anchorKey === state.to ? state.from : state.to;
  const next = Math.min(Math.max(moving + step, 0), momentCount - 1);
  chooseTime(event.shiftKey ? anchorKey : null, next);
}
