"""The page: what is in it adds up, and does in a browser what a user does with it. Real headless Chromium."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from browser import CHROMIUM, Browser
from hypothesis import given
from hypothesis import strategies as st
from made_up import HOSTILE, SECOND, START, MadeUpNames, frame, moment, moments, rows, stack

from frida_rtetrack.reporters.page import contents as page_contents
from frida_rtetrack.reporters.page import document
from frida_rtetrack.reporters.page.contents import Base, Leak, Page, contents
from frida_rtetrack.reports.history import Held, History, Site, by_site, history
from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.summary import CallSite
from frida_rtetrack.symbols.names import Names, Stack, Thread
from frida_rtetrack.tracking.badfree import AllocationEvidence, BadFreeReport, FreeEvidence
from frida_rtetrack.tracking.map import BadFreeKind

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")

APP = Thread(4711, 4711, "app")
WORKER = Thread(4711, 4713, "lcore-worker-1")
NAMES = MadeUpNames(
    {
        1: stack("port_init", "main"),
        2: Stack((frame("rte_zmalloc", "librte_eal.so.23"), frame("flow_create"), frame("main")), None),
        3: stack("session_open", "worker_main"),
        4: stack("session_free", "worker_main"),
    },
    {1: "rx queue", 2: "flow", 3: "session"},
    {1: APP, 2: WORKER},
)
PORTS = [{"size_bytes": 4000, "stack": 1, "label": 1, "thread": 1}]
FLOWS = [{"size_bytes": 100, "stack": 2, "label": 2, "thread": 1} for _ in range(20)]
SESSIONS = [{"size_bytes": 500, "stack": 3, "label": 3, "thread": 2} for _ in range(4)]


def at(second: int) -> Any:
    """What is live then: the port all along, two flows more each second, sessions until second 5."""
    return rows(*PORTS, *FLOWS[: 2 * second], *(SESSIONS if second <= 5 else ()))


def a_page(**more: Any) -> Page:
    """Ten seconds, a moment each."""
    last = moment(at(10), NAMES)
    over_time = history((float(second), at(second)) for second in range(11))
    return Page(**({"run": last.run, "seconds": 10.0, "history": over_time, "names": last.names} | more))


def written(page: Page) -> str:
    file = io.BytesIO()
    document.write(page, file)
    return file.getvalue().decode()


# ---- what is in it


@given(st.lists(moments(), min_size=1, max_size=5), st.one_of(st.none(), moments()))
def test_what_the_page_holds_adds_up_at_every_moment(at_moments: list[Moment], base: Moment | None) -> None:
    over_time = history((float(number), each.rows) for number, each in enumerate(at_moments))
    before = None if base is None else Base(by_site(base.rows), base.names, "before")
    last = at_moments[-1]
    held = contents(Page(last.run, 5.0, over_time, last.names, base=before))
    assert len({len(held["sites"][name]) for name in ("stack", "type", "thread", "changes")}) == 1
    live = [[0, 0] for _ in held["moments"]]
    for changes in held["sites"]["changes"]:
        since = blocks = size_bytes = 0
        for gap, more_blocks, more_bytes in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
            for index in range(since, since + gap):
                live[index][0] += blocks
                live[index][1] += size_bytes
            since, blocks, size_bytes = since + gap, blocks + more_blocks, size_bytes + more_bytes
        for index in range(since, len(live)):
            live[index][0] += blocks
            live[index][1] += size_bytes
    assert live == [[each.rows.size, sum(each.rows["size_bytes"].tolist())] for each in at_moments]
    if base is not None:
        assert sum(blocks for blocks, _ in held["sites"]["base"]) == base.rows.size
        assert sum(size for _, size in held["sites"]["base"]) == sum(base.rows["size_bytes"].tolist())
    for number, each in enumerate(at_moments):
        assert {s: h for s, h in over_time.at(number).items()} == by_site(each.rows)
    assert all(0 <= number < len(held["stacks"]) for number in held["sites"]["stack"])
    assert all(-1 <= number < len(held["threads"]) for number in held["sites"]["thread"])
    assert all(0 <= number < len(held["types"]) for number in held["sites"]["type"])


def test_of_very_many_call_sites_the_smallest_are_shown_as_one_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_contents, "SITES_AT_MOST", 2)
    over_time = History([1.0, 2.0])
    over_time.changes = {
        Site(number, 1, 1): [(0, Held(1, number)), (1, Held(2, 2 * number))] for number in range(1, 6)
    }  # fmt: skip
    held = contents(a_page(history=over_time))
    assert held["sites"]["changes"] == [[0, 1, 5, 1, 1, 5], [0, 1, 4, 1, 1, 4], [0, 3, 6, 1, 3, 6]]
    assert (
        held["functions"][held["frames"][held["stacks"][held["sites"]["stack"][2]][0]][0]][0]
        == "(3 smaller call sites)"
    )


def test_no_name_ends_the_script_and_the_policy_lets_nothing_be_loaded() -> None:
    hostile = replace(NAMES, labels={number: name for number, name in enumerate(HOSTILE)})
    live = rows(*({"label": number} for number in range(len(HOSTILE))))
    html = written(a_page(history=history([(0.0, live)]), names=cast("Names", hostile)))
    assert html.count("</script>") == html.count("<script") == 2
    assert "\x1b" not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1] and "unsafe" not in policy[1] and "http" not in policy[1]
    assert not re.search(r"\b(src|href)=|@import|url\(|https?:", html.replace("http://www.w3.org/2000/svg", ""))
    held = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert "</script><script>alert(1)</script>" in held["types"]


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Shows a page; no script of it may fail, and nothing but the file may be asked for."""

    def show(page: Page, **how: Any) -> Browser:
        path = tmp_path / "page.html"
        path.write_text(written(page))
        browser.open(path, **how)
        return browser

    yield show
    assert browser.complaints() == []
    assert browser.requests() == [(tmp_path / "page.html").as_uri()]


BOXES = "#flame .box"


@in_a_browser
def test_a_click_zooms_and_escape_comes_back(shown: Any) -> None:
    browser = shown(a_page())
    assert browser.text("#flame-title") == "Live at 10.0 s: 6,000 bytes in 21 blocks"
    assert browser.texts(BOXES) == ["all", "main", "port_init", "flow_create", "rte_zmalloc"]
    browser.click(BOXES, saying="flow_create")
    assert browser.texts(BOXES) == ["main", "all", "flow_create", "rte_zmalloc"]
    assert browser.text("#status") == "flow_create in app: 2,000 bytes, 33.3 %"
    width = (
        "document.querySelector('#box-2').getBoundingClientRect().width / document.querySelector('#flame').clientWidth"
    )
    assert browser.evaluate(width) == pytest.approx(1)
    browser.press("Escape")
    assert len(browser.texts(BOXES)) == 5
    browser.click(BOXES, saying="port_init")
    browser.click("#unzoom")
    assert len(browser.texts(BOXES)) == 5


@in_a_browser
def test_a_search_highlights_and_counts_and_picks_the_rows_that_match(shown: Any) -> None:
    browser = shown(a_page())
    browser.press("/")
    browser.press(*"FLOW")
    assert browser.texts(f"{BOXES}.found") == ["flow_create"]
    assert browser.text("#matches") == "1 box matches, 33.3 %"
    assert browser.text("#sites-title") == "Call sites (1 that match)"
    browser.press("Escape")
    assert browser.texts(f"{BOXES}.found") == [] and browser.text("#matches") == ""
    assert browser.text("#sites-title") == "Call sites (2)"
    browser.press("/")
    browser.press(*"nothing of that kind")
    assert browser.text("#matches") == "0 boxes match, 0.0 %"
    browser.press("Escape", "/")
    browser.press("o")
    assert browser.text("#matches") == "3 boxes match, 100.0 %"  # one of them below another one


@in_a_browser
def test_a_range_on_the_time_line_shows_what_grew_in_it(shown: Any) -> None:
    browser = shown(a_page())
    browser.drag("#timeline", 0.2, 0.8)
    assert browser.text("#flame-title") == "Grew from 2.00 s to 8.00 s: 1,200 bytes; shrank: 2,000 bytes"
    assert browser.texts(BOXES) == ["all", "main", "flow_create", "rte_zmalloc"]
    assert browser.texts("#table th") == ["Bytes", "Blocks", "Change", "Share", "Type", "Thread", "Call site"]
    assert browser.texts("#table tbody tr:first-child td")[:5] == [
        "1,600 bytes",
        "16",
        "+1,200 bytes",
        "100.0 %",
        "flow",
    ]
    browser.choose("#mode", "changed")
    assert browser.texts(BOXES) == ["all", "worker_main", "main", "session_open", "flow_create", "rte_zmalloc"]
    assert browser.texts(".grew-3") == ["main", "flow_create", "rte_zmalloc", ""]
    assert browser.texts(".shrank-3") == ["worker_main", "session_open", ""]
    browser.click("#timeline", across=0.3)
    assert browser.text("#flame-title") == "Live at 3.00 s: 6,600 bytes in 11 blocks"
    assert browser.evaluate("document.querySelector('#mode').value") == "live"
    browser.click("#to-peak")
    assert browser.text("#flame-title").startswith("Live at 5.00 s: 7,000 bytes")
    browser.click("#whole")
    assert browser.text("#flame-title") == "Grew from 0.00 s to 10.0 s: 2,000 bytes; shrank: 2,000 bytes"


@in_a_browser
def test_the_keyboard_does_what_the_mouse_does(shown: Any) -> None:
    browser = shown(a_page())
    browser.evaluate("document.querySelector('#flame').focus()")
    browser.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert browser.text(f"{BOXES}.at") == "flow_create"
    browser.press("Enter")
    assert browser.texts(BOXES) == ["main", "all", "flow_create", "rte_zmalloc"]
    browser.press("ArrowUp", "Enter")
    assert browser.texts(BOXES)[:2] == ["all", "main"]
    browser.press("Escape")
    browser.evaluate("document.querySelector('#timeline').focus()")
    browser.press("Home", "ArrowRight", "ArrowRight")
    assert browser.text("#flame-title").startswith("Live at 2.00 s")
    browser.press("ArrowRight", "ArrowRight", shift=True)
    assert browser.text("#flame-title").startswith("Grew from 2.00 s to 4.00 s: 400 bytes")
    browser.press("ArrowLeft", "ArrowLeft", "ArrowLeft", shift=True)
    assert browser.text("#flame-title").startswith("Grew from 1.00 s to 2.00 s: 200 bytes")
    browser.press("Escape")
    assert browser.text("#flame-title").startswith("Live at 2.00 s")


@in_a_browser
def test_bytes_or_blocks_by_type_or_thread_reversed_and_upwards(shown: Any) -> None:
    browser = shown(a_page(chosen=5))
    browser.choose("#measure", "blocks")
    browser.choose("#group", "type")
    assert browser.texts(BOXES)[:4] == ["all", "flow", "session", "rx queue"]
    browser.choose("#group", "thread")
    assert browser.texts(BOXES)[:3] == ["all", "app (4711)", "lcore-worker-1 (4713)"]
    browser.choose("#group", "none")
    browser.click("#reversed")
    assert browser.texts(BOXES)[:4] == ["all", "rte_zmalloc", "session_open", "port_init"]
    tops = (
        "Array.from(document.querySelectorAll('#flame .box')).slice(0, 2).map((box) => box.getBoundingClientRect().top)"
    )
    all_top, next_top = browser.evaluate(tops)
    assert all_top < next_top
    browser.click("#upward")
    all_top, next_top = browser.evaluate(tops)
    assert all_top > next_top


@in_a_browser
def test_the_table_is_sorted_by_the_column_that_is_clicked_and_shows_a_stack(shown: Any) -> None:
    browser = shown(a_page(chosen=5))
    column = "#table tbody tr td:nth-child({})"
    assert browser.texts(column.format(1)) == ["4,000 bytes", "2,000 bytes", "1,000 bytes"]
    browser.click("#table th button", saying="Bytes")
    assert browser.texts(column.format(1)) == ["1,000 bytes", "2,000 bytes", "4,000 bytes"]
    browser.click("#table th button", saying="Type")
    assert browser.texts(column.format(4)) == ["flow", "rx queue", "session"]
    browser.click("#table tbody tr:first-child td button")
    stack_lines = "#table tbody tr:first-child ol.stack li"
    assert browser.texts(stack_lines) == ["rte_zmalloc librte_eal.so.23", "flow_create app", "main app"]
    browser.click("#table tbody tr:first-child td button")
    assert browser.texts(stack_lines) == []


def bad_free() -> BadFreeReport:
    allocated = AllocationEvidence(0x1000, 64, "session", APP, NAMES.stack(3), START.monotonic_ns, 1.2, False)
    first = FreeEvidence("rte_free", WORKER, NAMES.stack(4), START.monotonic_ns, 0.012)
    return BadFreeReport(
        number=1, kind=BadFreeKind.DUPLICATE, timestamp_ns=START.monotonic_ns + SECOND, address=0x1000, function="rte_free", thread=APP,
        stack=NAMES.stack(2), allocated=allocated, first_freed=first, detail="The block was already freed.", also=None, element=None,
        site=("duplicate", 2, 3, 4),
    )  # fmt: skip


@in_a_browser
def test_leaks_and_bad_frees_are_shown_with_their_stacks_and_equal_ones_once(shown: Any) -> None:
    leak = Leak("lost", CallSite(3, 192, 0, NAMES.stack(3), ("session",)))
    growing = Leak("growing", CallSite(9, 900, 0, NAMES.stack(2), ()), (0, 100, 900))
    browser = shown(a_page(leaks=[leak, growing], bad_frees=[bad_free(), bad_free()], notes=["12 events were lost."]))
    assert browser.text("#leaks-title") == "Leaks (2)"
    assert browser.texts("#leaks summary") == [
        "lost192 bytes in 3 blocks of type session, by session_open",
        "growing900 bytes in 9 blocks, by flow_create",
    ]
    assert (
        browser.evaluate("document.querySelector('#leaks svg').getAttribute('aria-label')")
        == "from 0 bytes to 900 bytes"
    )
    assert browser.text("#bad-title") == "Bad frees (2)"
    assert browser.texts("#bad-frees h3") == [
        "This free, rte_free by app (4711)",
        "First freed 12 ms before, rte_free by lcore-worker-1 (4713)",
        "Allocated 1.2 s before, 64 bytes of type session, by app (4711)",
    ]
    assert browser.texts("#bad-frees ol")[1].startswith("session_free")
    assert browser.texts("#bad-frees p") == ["The block was already freed. At 1.00 s · 2 times with these stacks."]
    assert browser.texts("#notes li") == ["12 events were lost."]
    assert browser.texts("nav a") == ["Flame graph", "Call sites", "Leaks (2)", "Bad frees (2)"]


@in_a_browser
def test_a_comparison_shows_what_grew_and_shrank_in_two_colours(shown: Any) -> None:
    page = a_page(history=history([(10.0, at(10))]), base=Base(by_site(at(2)), moment(rows(), NAMES).names, "run A"))
    browser = shown(page)
    assert browser.text("#flame-title") == "Grew since run A: 1,600 bytes; shrank: 2,000 bytes"
    assert "main" in browser.texts(f"{BOXES}.grew-3") and "worker_main" in browser.texts(f"{BOXES}.shrank-3")
    assert browser.evaluate("document.querySelector('#time').hidden")
    browser.choose("#mode", "live")
    assert browser.text("#flame-title") == "Live: 6,000 bytes in 21 blocks"


def test_two_runs_are_compared_by_what_their_call_sites_are_called() -> None:
    """Numbers, addresses, lines and thread ids are others in another run, or in another build."""
    of_base = MadeUpNames(
        {7: Stack((frame("port_init", line=99, file="/b.c", offset=5), frame("main", offset=9)), None), 8: stack("gone", "main")},
        {4: "rx queue", 5: "flow"},
        {3: Thread(1, 2, "app")},
    )  # fmt: skip
    before = rows({"size_bytes": 5000, "stack": 7, "label": 4, "thread": 3}, {"stack": 8, "label": 5, "thread": 3})
    base = Base(by_site(before), moment(before, of_base).names, "the other")
    held = contents(a_page(history=history([(0.0, rows(*PORTS))]), base=base))
    assert held["sites"]["changes"] == [[0, 1, 4000], []]
    assert held["sites"]["base"] == [[1, 5000], [1, 64]]


@in_a_browser
def test_names_of_any_kind_stay_text(shown: Any) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    names = MadeUpNames({1: Stack((frame(evil, evil, file=evil), frame("</script><script>document.title='owned'</script>")), None)},
                        {1: evil}, {1: Thread(1, 2, evil)})  # fmt: skip
    live = rows({"stack": 1, "label": 1})
    last = moment(live, names, host=evil)
    run = replace(last.run, argv=(evil, "</title><b>"))
    leak = Leak(evil, CallSite(1, 64, 0, names.stack(1), (evil,)))
    page = Page(
        run,
        1.0,
        history([(0.0, live), (1.0, live)]),
        last.names,
        leaks=[leak],
        marks=[(0.5, evil)],
        notes=[evil],
    )
    browser = shown(page)
    for group in ("type", "thread"):
        browser.choose("#group", group)
    browser.click("#table tbody tr:first-child td button")
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.evaluate("document.querySelectorAll('img, b:not(#status b, summary b), main script').length") == 0
    assert "owned" not in browser.evaluate("document.title.replace(/<.*>/, '')")
    assert evil in browser.texts(BOXES) and evil in browser.text("#table")


@in_a_browser
def test_the_page_cannot_reach_the_network_even_if_it_wanted_to(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(written(a_page()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1.0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        browser.open(path)
        assert browser.requests() == [path.as_uri()]
        tried = browser.evaluate(
            f"fetch('{address}').then(() => 'loaded', () => 'refused').then((what) => new Promise((done) => {{"
            f" const image = new Image(); image.onload = image.onerror = () => done(what); image.src = '{address}'; }}))"
        )
        assert tried == "refused"
        with pytest.raises(TimeoutError):
            server.accept()


@in_a_browser
def test_dark_or_light_follows_the_system_and_the_switch(shown: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser = shown(a_page(), dark=True)
    dark = browser.evaluate(paper)
    browser.click("#theme", saying="Light")
    light = browser.evaluate(paper)
    assert (dark, light) == ("rgb(23, 24, 26)", "rgb(255, 255, 255)")
    browser = shown(a_page())
    assert browser.evaluate(paper) == light
    browser.click("#theme", saying="Dark")
    assert browser.evaluate(paper) == dark


@in_a_browser
def test_a_narrow_window_needs_no_scrolling_sideways(shown: Any) -> None:
    browser = shown(
        a_page(leaks=[Leak("lost", CallSite(3, 192, 0, NAMES.stack(3), ("session",)))], bad_frees=[bad_free()]),
        width=400,
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400


@in_a_browser
def test_on_paper_there_are_no_controls_and_every_stack_is_open(shown: Any) -> None:
    browser = shown(a_page(leaks=[Leak("lost", CallSite(3, 192, 0, NAMES.stack(3), ("session",)))]), dark=True)
    browser.ask("Page.printToPDF")
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.texts("button:not(td button, th button), select, nav a") == []
    assert browser.texts("#leaks ol li") == ["session_open app", "worker_main app"]
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@in_a_browser
def test_a_run_with_nothing_in_it_says_so(shown: Any) -> None:
    browser = shown(a_page(history=history([(0.0, rows())])))
    assert browser.text("#flame") == "Nothing is live." and browser.text("#flame-title") == "Live: 0 bytes in 0 blocks"
