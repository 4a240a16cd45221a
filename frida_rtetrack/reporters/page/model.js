
// The contents, and what is chosen of them: nothing here draws.

const data = JSON.parse(document.getElementById("data").textContent);
const momentCount = data.moments.length;

/** The sites, each with what it held at every moment. */
const sites = data.sites.stack.map((stack, index) => {
  const blocks = new Float64Array(momentCount);
  const bytes = new Float64Array(momentCount);
  const changes = data.sites.changes[index];
  let moment = 0, liveBlocks = 0, liveBytes = 0;
  for (let i = 0; i <= changes.length; i += 3) {
    const next = i < changes.length ? moment + changes[i] : momentCount;
    blocks.fill(liveBlocks, moment, next);
    bytes.fill(liveBytes, moment, next);
    moment = next;
    liveBlocks += changes[i + 1];
    liveBytes += changes[i + 2];
  }
  const base = data.sites.base ? data.sites.base[index] : null;
  return {
    index, stack, type: data.sites.type[index], thread: data.sites.thread[index], blocks, bytes,
    baseBlocks: base ? base[0] : 0, baseBytes: base ? base[1] : 0,
  };
});
const hasBase = Boolean(data.sites.base);

/** What is chosen; `from` is null where it is one moment, `to` is the moment or the end of the range. */
const state = {
  from: null, to: data.chosen, mode: hasBase ? "changed" : "live", measure: "bytes", group: "none",
  reversed: false, upward: false, search: "", zoom: [],
};

const listeners = [];
/** Has `listener` called after each change of the state. */
function onChange(listener) { listeners.push(listener); }
/** Changes the state, and draws everything that hangs on it. */
function choose(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(changes);
}

/** Chooses the moment `to`, or the range from `from` to `to`. */
function chooseTime(from, to) {
  const isRange = from !== null && from !== to;
  const range = isRange ? [Math.min(from, to), Math.max(from, to)] : [null, to];
  let mode = state.mode;
  if (!hasBase) mode = !isRange ? "live" : mode === "live" ? "grew" : mode;
  choose({ from: range[0], to: range[1], zoom: [], ...(mode === state.mode ? {} : { mode }) });
}

const compares = () => hasBase || state.from !== null;

/** What a site held before and after, by what is chosen. */
function held(site) {
  const before = hasBase ? [site.baseBlocks, site.baseBytes]
    : state.from !== null ? [site.blocks[state.from], site.bytes[state.from]] : [0, 0];
  const after = momentCount ? [site.blocks[state.to], site.bytes[state.to]] : [0, 0];
  const measure = state.measure === "bytes" ? 1 : 0;
  const change = after[measure] - before[measure];
  const value = state.mode === "live" ? after[measure] : state.mode === "grew" ? Math.max(change, 0) : Math.abs(change);
  return { value, before: before[measure], after: after[measure], change, blocks: after[0], bytes: after[1] };
}

/** All live bytes at each moment. */
const totals = Array.from({ length: momentCount }, (_, moment) => sites.reduce((sum, site) => sum + site.bytes[moment], 0));
const peak = totals.reduce((best, bytes, moment) => (bytes > totals[best] ? moment : best), 0);

// ---- names

const functionOf = (frame) => data.frames[frame][0];
const functionName = (number) => data.functions[number][0];
const moduleOf = (number) => (data.functions[number][1] < 0 ? "" : data.modules[data.functions[number][1]]);
const typeName = (number) => data.types[number];
const threadName = (number) => (number < 0 ? "(not known)" : data.threads[number]);

const DPDK_MODULE = /^(librte_|libdpdk)/, DPDK_FUNCTION = /^_*(rte|eal|malloc_heap|malloc_elem|memzone)_/;
const SYSTEM_MODULE = /^(libc|libm|ld-linux|libpthread|libdl|libstdc\+\+|libgcc_s|linux-vdso)\b/, SYSTEM_FUNCTION = /^(_start|__libc_start|start_thread|__clone|clone)/;
/** Whose code a function is: "own", "dpdk" or "system". */
const kinds = data.functions.map(([name], number) => {
  const module = moduleOf(number);
  if (SYSTEM_MODULE.test(module) || SYSTEM_FUNCTION.test(name)) return "system";
  return DPDK_MODULE.test(module) || DPDK_FUNCTION.test(name) ? "dpdk" : "own";
});

/** The frame that says most about a stack: the innermost of the program's own, else the innermost. */
function tellingFrame(stack) {
  const frames = data.stacks[stack];
  for (let i = frames.length - 1; i >= 0; i--) if (kinds[functionOf(frames[i])] === "own") return frames[i];
  return frames[frames.length - 1];
}

/** `app.c:12`, or "" where it is not known. */
function placeOf(frame, whole) {
  const [, file, line] = data.frames[frame];
  if (file < 0) return "";
  const path = data.files[file];
  return (whole ? path : path.slice(path.lastIndexOf("/") + 1)) + (line ? `:${line}` : "");
}

// ---- numbers as the console shows them

const grouped = (number) => Math.round(number).toLocaleString("en-US");
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];
/** `1,536 bytes`, `1.5 MiB`: exact below 10 KiB. */
function size(bytes) {
  if (Math.abs(bytes) < 10240) return `${grouped(bytes)} byte${bytes === 1 ? "" : "s"}`;
  let unit = 0;
  for (; Math.abs(bytes) >= 1024 && unit < UNITS.length - 1; unit++) bytes /= 1024;
  return `${bytes.toFixed(1)} ${UNITS[unit]}`;
}
const count = (number) => `${grouped(number)} block${number === 1 ? "" : "s"}`;
const measured = (value) => (state.measure === "bytes" ? size(value) : count(value));
const signed = (value, text) => (value > 0 ? "+" : value < 0 ? "−" : "±") + text(Math.abs(value));
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "");
const wholeSpan = momentCount > 1 ? data.moments[momentCount - 1] - data.moments[0] : 1;
/** So that a hundredth of the run can be seen. */
const decimals = Math.min(Math.max(Math.ceil(2 - Math.log10(wholeSpan || 1)), 0), 6);
function time(seconds) {
  if (seconds < 600) return `${seconds.toFixed(Math.max(decimals, seconds < 10 ? 2 : 1))} s`;
  if (seconds < 36000) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** An element. What is a string among its children is text, whatever it holds. */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") made.className = value;
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
const byId = (id) => document.getElementById(id);

/** The words in which a thing is searched for. */
function matcher() {
  const wanted = state.search.trim().toLowerCase();
  return wanted ? (text) => text.toLowerCase().includes(wanted) : null;
}
