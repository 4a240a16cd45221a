
// The page: its head, its controls, its keys.

function drawHead() {
  byId("title").textContent = data.title;
  document.title = `${data.title} - rtetrack-frida`;
  byId("command").textContent = data.command;
  const facts = [["Host", data.host], ["Process", String(data.pid)], ["Started", data.started.replace("T", " ").replace("+00:00", " UTC")],
    ["Lasted", time(data.seconds)], ["Engine", data.engine]];
  if (momentCount) {
    facts.push([momentCount > 1 ? "Live at the end" : "Live", size(totals[momentCount - 1])]);
    if (momentCount > 1) facts.push(["Most at once", `${size(totals[peak])} at ${time(data.moments[peak])}`]);
  }
  if (data.base_title) facts.push(["Compared with", data.base_title]);
  byId("facts").append(...facts.map(([name, value]) => element("div", null, element("dt", null, name), element("dd", null, value))));
  byId("notes").append(...data.notes.map((note) => element("li", null, note)));
  const links = [["flame-section", "Flame graph"], ["sites", "Call sites"]];
  if (data.leaks.length) links.push(["leaks", `Leaks (${grouped(data.leaks.length)})`]);
  if (data.bad_frees.length) links.push(["bad-frees", `Bad frees (${grouped(data.bad_frees.reduce((sum, each) => sum + each.count, 0))})`]);
  byId("nav").append(...links.map(([id, text]) => element("a", { href: `#${id}` }, text)));
  byId("made").textContent = `Made by rtetrack-frida ${data.version}.`;
}

/** The line above the graph: what is shown, how much it is. */
function drawTitle() {
  const all = sites.map(held);
  const sum = (part) => all.reduce((total, figures) => total + part(figures), 0);
  const when = momentCount ? time(data.moments[state.to]) : "";
  let title;
  if (state.mode === "live") {
    title = `Live${momentCount > 1 ? ` at ${when}` : ""}: ${size(sum((f) => f.bytes))} in ${count(sum((f) => f.blocks))}`;
  } else {
    const since = hasBase ? `since ${data.base_title || "the other one"}` : `from ${time(data.moments[state.from])} to ${when}`;
    const grew = sum((f) => Math.max(f.change, 0)), shrank = sum((f) => Math.max(-f.change, 0));
    title = `Grew ${since}: ${measured(grew)}; shrank: ${measured(shrank)}`;
  }
  byId("flame-title").textContent = title;
  const colours = state.mode === "changed" ? [["grew-3", "grew"], ["shrank-3", "shrank"], ["even", "both alike"]]
    : [["own", "the program's own"], ["dpdk", "DPDK"], ["system", "system"]];
  byId("colours").replaceChildren(...colours.map(([name, text]) => element("li", null, element("i", { class: name }), text)));
}

function showControls() {
  for (const option of byId("mode").options) option.disabled = option.value !== "live" && !compares();
  for (const name of ["mode", "measure", "group"]) byId(name).value = state[name];
}

function listenToControls() {
  for (const name of ["mode", "measure", "group"]) byId(name).addEventListener("change", (event) => choose({ [name]: event.target.value, zoom: [] }));
  for (const name of ["reversed", "upward"]) byId(name).addEventListener("change", (event) => choose({ [name]: event.target.checked, zoom: name === "upward" ? state.zoom : [] }));
  byId("search").addEventListener("input", (event) => choose({ search: event.target.value }));
  byId("unzoom").addEventListener("click", () => choose({ zoom: [] }));
  byId("more").addEventListener("click", () => { rowsAtMost = Infinity; drawTable(); });
  byId("to-peak").addEventListener("click", () => chooseTime(null, peak));
  byId("to-end").addEventListener("click", () => chooseTime(null, momentCount - 1));
  byId("whole").addEventListener("click", () => chooseTime(0, momentCount - 1));
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement && event.target.type === "search";
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId("search").select();
      byId("search").focus();
    } else if (event.key === "Escape" && typing) {
      event.target.value = "";
      choose({ search: "" });
      flame.focus();
    } else if (event.key === "Escape" && state.zoom.length) choose({ zoom: [] });
  });
  window.addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
}

function listenToTheme() {
  const button = byId("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  show();
}

drawHead();
if (momentCount > 1) drawTimeline(); else byId("time").hidden = true;
drawLeaks();
drawBadFrees();
listenToControls();
listenToFlame();
listenToTheme();
onChange(() => showControls());
onChange(() => drawTitle());
onChange(() => drawFlame());
onChange((changes) => { if (Object.keys(changes).some((name) => !["zoom", "reversed", "upward", "group"].includes(name))) drawTable(); });
choose({ mode: state.mode });
