"""The explorer's HTML file, opened from disk with the network off."""

import json
import re
from itertools import pairwise
from urllib.parse import quote

import pytest
import torch
from patience import SHOTS
from playwright.sync_api import expect

import gimkit

torch.set_num_threads(1)
SIZES = (0.02, 0.1, 0.3, 0.66)  # the last has some 500 edges


@pytest.fixture(scope="module")
def explorer():
    """Scores of mini-llama on IOI, and their explorer; a role that would be HTML if anything read it so."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=8, seed=0)
    edges = gimkit.score_edges(model, task, method="gim-ig")
    curve, signed = (gimkit.faithfulness(model, task, edges, absolute=absolute, sizes=SIZES)
                     for absolute in (True, False))
    plain = gimkit.score_edges(model, task, method="gradient")
    other = gimkit.faithfulness(model, task, plain, absolute=True, sizes=SIZES[:3])
    roles = {"a2.h1": "suppressor-like", "a2.h2": "suppressor-like", "a0.h0": "<img src=x onerror=alert(1)>"}
    views = {"gim-ig": (edges, [curve, signed]), "gradient": (plain, other)}
    return edges, curve, gimkit.explore(model, task[6:8], views, roles=roles)


@pytest.fixture
def opened(explorer, new_page, tmp_path):
    """opened(address="", **options): the page, offline; a request for more than the file is refused, and fails the test
    as a JavaScript error does.
    """
    wrong = []

    def refuse(route):
        wrong.append(route.request.url)
        route.abort()

    def opened(address="", shown=explorer[2], **options):
        page = new_page(offline=True, accept_downloads=True, **options)
        page.context.route(re.compile("^(?!file:)"), refuse)
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(shown.save(tmp_path / "ioi.html").as_uri() + address)
        page.locator(".edges path").first.wait_for()
        return page

    yield opened
    assert wrong == []


def node(page, name):
    return page.locator(f'.node[data-name="{name}"]')


def printed(score) -> str:
    """A score as the page writes it."""
    return f"{score:+#.3g}".replace("-", "−")


def rows(page, title) -> dict:
    """{(other end, port): (printed score, is it in the circuit?)} of one of the two lists."""
    table = page.locator("table", has=page.locator("caption", has_text=re.compile(f"^{title}")))
    found = table.locator("tr").evaluate_all(
        "rows => rows.map(row => [...[...row.children].map(cell => cell.innerText), row.className])")
    return {(name, port.removeprefix("to ")): (score, out != "outside") for name, port, score, out in found}


def expected(edges, keep, *, into=None, out_of=None) -> dict:
    """What `rows` should be, from the EdgeScores themselves: the page holds the edges of its largest circuit."""
    found, largest = {}, edges.top(int(SIZES[-1] * edges.graph.n_edges), absolute=True).keep
    for i, j in largest.nonzero().tolist():
        owner, _, port = edges.targets[j].partition("<")
        if owner == into or edges.sources[i] == out_of:
            found[edges.sources[i] if into else owner, port.strip(">")] = float(edges.scores[i, j]), bool(keep[i, j])
    return found


def same(shown: dict, wanted: dict) -> None:
    assert shown.keys() == wanted.keys()
    for edge, (score, inside) in wanted.items():
        text, drawn = shown[edge]
        assert float(text.replace("−", "-")) == pytest.approx(score, rel=6e-3) and drawn == inside, edge


def test_a_click_lists_a_nodes_edges_with_their_scores(explorer, opened):
    edges, curve, _ = explorer
    page = opened()
    keep = edges.top(int(SIZES[2] * edges.graph.n_edges), absolute=True).keep
    before = page.locator(".picture").screenshot()
    node(page, "a2.h1").click()
    same(rows(page, "Into"), expected(edges, keep, into="a2.h1"))
    same(rows(page, "Out of"), expected(edges, keep, out_of="a2.h1"))
    strengths = [abs(score) for score, inside in expected(edges, keep, into="a2.h1").values() if inside]
    shown = [abs(float(score.replace("−", "-"))) for score, inside in rows(page, "Into").values() if inside]
    assert shown == sorted(shown, reverse=True) and len(shown) == len(strengths)
    assert page.locator(".edges path:not(.other)").count() == sum(
        inside for side in ("into", "out_of") for _, inside in expected(edges, keep, **{side: "a2.h1"}).values())
    assert page.locator(".picture").screenshot() != before
    page.screenshot(path=SHOTS / "explorer-node.png", full_page=True)
    page.locator("table button", has_text="logits").click()  # a list leads on
    assert node(page, "logits").get_attribute("aria-pressed") == "true"
    assert rows(page, "Out of") == {}


def test_the_slider_changes_picture_and_faithfulness(explorer, opened):
    edges, curve, _ = explorer
    page = opened()
    slider, pictures = page.get_by_label("Size"), []
    slider.press("Home")
    for n, kept in zip(curve.edges, curve.faithfulness):
        assert page.locator(".kept").inner_text() == f"{n} of {edges.graph.n_edges} edges, faithfulness {kept:.2f}"
        assert slider.get_attribute("aria-valuetext") == page.locator(".kept").inner_text()
        assert page.locator(".edges path").count() == n
        pictures.append((page.locator(".picture").screenshot(), page.locator(".curve").screenshot()))
        slider.press("ArrowRight")
    assert all(len(set(kind)) == len(SIZES) for kind in zip(*pictures))
    page.screenshot(path=SHOTS / "explorer-500.png", full_page=True)


def test_blue_solid_lines_help_and_orange_dashed_ones_hurt(explorer, opened):
    edges, curve, _ = explorer
    page = opened()
    page.get_by_label("Size").press("Home")
    kept = edges.scores[edges.top(int(SIZES[0] * edges.graph.n_edges), absolute=True).keep]
    drawn = page.locator(".edges path").evaluate_all(
        "lines => lines.map(l => [l.querySelector('title').textContent, getComputedStyle(l).stroke, "
        "getComputedStyle(l).strokeDasharray])")
    assert len(drawn) == len(kept)
    styles = {title.rpartition(": ")[2][0]: (stroke, dash) for title, stroke, dash in drawn}
    assert styles["+"] == ("rgb(31, 127, 191)", "none")
    page.get_by_label("Size").press("End")
    hurts = page.locator(".edges path.against").first
    assert "7px" in hurts.evaluate("l => getComputedStyle(l).strokeDasharray")


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_a_heads_role_and_attention_appear(explorer, opened, by):
    """By a click or by Enter; pointing elsewhere changes nothing: the panel is about one node."""
    [data, _] = explorer[2].data["prompts"]
    page = opened()
    if by == "pointer":
        node(page, "a2.h2").click()
        node(page, "a2.h1").hover()
    else:
        node(page, "a2.h2").focus()
        page.keyboard.press("Enter")
        node(page, "a2.h1").focus()
    card = page.locator(".card")
    assert card.locator("h3").inner_text() == "a2.h2" and card.locator(".role").inner_text() == "suppressor-like"
    assert rows(page, "Into a2.h2")
    weights = card.locator(".cell").evaluate_all("cells => cells.map(c => Number(c.getAttribute('fill-opacity')))")
    assert weights == [weight / 1000 for row in data["attention"]["a2.h2"] for weight in row]
    last = data["attention"]["a2.h2"][-1]
    assert f"“{data['tokens'][last.index(max(last))]}”" in card.locator(".looks").inner_text()
    card.screenshot(path=SHOTS / f"explorer-card-{by}.png")
    node(page, "a2.h1").press("Escape")
    assert "Click a node" in card.inner_text()


def test_it_opens_with_the_strongest_node_and_the_prompt(explorer, opened):
    edges, curve, shown = explorer
    page = opened()
    middle = edges.top(int(SIZES[len(SIZES) // 2] * edges.graph.n_edges), absolute=True).keep
    sums = {}
    for name, (i, j) in edges.graph.edges.items():
        if middle[i, j]:
            source, _, target = name.partition("->")
            for end in (source, target.partition("<")[0]):
                sums[end] = sums.get(end, 0) + abs(float(edges.scores[i, j]))
    best = max((name for name in sums if name not in ("input", "logits")), key=sums.get)
    assert page.locator(".card h3").inner_text() == best and rows(page, f"Into {best}")
    assert node(page, best).get_attribute("aria-pressed") == "true"
    prompt, scores = shown.data["prompts"][0], shown.data["methods"][0]["attribution"][0]
    tokens = page.locator(".token")
    assert tokens.all_inner_texts() == prompt["tokens"]
    strong = max(range(len(scores)), key=lambda i: abs(scores[i]))
    assert re.fullmatch(rf"token {strong + 1}, “{prompt['tokens'][strong]}”: [+−][\d.]+",
                        tokens.nth(strong).get_attribute("aria-label"))
    grounds = tokens.evaluate_all("all => all.map(t => [t.classList.contains('for'), "
                                  "parseFloat(t.style.getPropertyValue('--share'))])")
    most = max(map(abs, scores))
    assert grounds == [[score > 0, pytest.approx(60 * abs(score) / most, abs=0.06)] for score in scores]
    assert printed(most) in page.locator(".key").inner_text() and page.locator(".ramp").is_visible()
    assert page.locator(".answer").inner_text() == (
        f"Answer “{prompt['answer']}”, not “{prompt['wrong']}”: logit difference {printed(prompt['clean'])}.")
    assert page.locator(".next .word").all_inner_texts() == [token for token, _ in prompt["top"]]
    assert page.locator(".next .share").first.inner_text() == f"{100 * prompt['top'][0][1]:.1f} %"
    assert f"(by {printed(-prompt['effects'][best])})" in page.locator(".card .effect").inner_text()
    page.screenshot(path=SHOTS / "explorer-opened.png", full_page=True)


def test_everything_works_from_the_keyboard(opened):
    page = opened()
    node(page, "logits").click()
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # the prompt is one stop too

    def here():
        return page.evaluate("document.activeElement.dataset.name ?? document.activeElement.type ?? "
                             "document.activeElement.className")

    stops = [here()]
    while stops[-1] != "logits" and len(stops) < 20:
        page.keyboard.press("Tab")
        stops.append(here())
    # Two sliders, the sign; nine tools; the picture is one stop.
    assert stops == ["range", "range", "select-one", *["button"] * 9, "logits"]
    visited = []
    for key in ("ArrowDown", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
        visited.append(here())
    assert visited == ["a4.h2", "a4.h1", "a3.h0", "a2.h0", "a2.h1", "a2.h2", "a3.h1"]
    assert page.locator('.node[tabindex="0"]').count() == 1
    page.keyboard.press("Enter")
    assert node(page, "a3.h1").get_attribute("aria-pressed") == "true" and rows(page, "Into")
    label = node(page, "a2.h1").get_attribute("aria-label")
    assert re.fullmatch(r"a2\.h1, suppressor-like, \d+ in, \d+ out", label)
    page.screenshot(path=SHOTS / "explorer-keyboard.png", full_page=True)
    page.locator(".list").first.focus()
    assert here() == "list"  # the lists scroll from the keyboard too
    node(page, "a3.h1").focus()
    page.keyboard.press("Escape")
    assert page.locator("table").count() == 0 and page.locator(".edges path.other").count() == 0
    unnamed = page.locator("button, input, select, textarea, summary, [role=button], [role=img]").evaluate_all(
        "all => all.filter(x => !(x.getAttribute('aria-label') || x.textContent.trim() || x.labels?.length)).length")
    assert unnamed == 0


def test_ablating_a_node_shows_the_difference_before_and_after(explorer, opened):
    """A file has each single node's effect, and says that several need a notebook."""
    prompt = explorer[2].data["prompts"][0]
    page = opened()
    for name in ("a2.h1", "m1"):  # the second takes the first one's place
        node(page, name).click()
        toggle = page.get_by_role("button", name="Ablate", exact=True)
        toggle.press("Enter")
        after = prompt["clean"] - prompt["effects"][name]
        assert page.locator(".ablation h4").inner_text() == f"Without {name}"
        assert page.locator(".ablation .result").inner_text() == (
            f"Logit difference: {printed(prompt['clean'])} before, {printed(after)} after.")
        assert toggle.get_attribute("aria-pressed") == "true"
        assert "ablated" in node(page, name).get_attribute("aria-label")
        assert page.locator(".node.ablated").count() == 1
    assert "one node at a time. Several nodes and edges" in page.locator(".ablation .hint").inner_text()
    assert page.get_by_role("button", name="cut").count() == 0
    page.screenshot(path=SHOTS / "explorer-ablated.png", full_page=True)
    page.get_by_role("button", name="Restore all").click()
    assert page.locator(".ablation h4").count() == 0 and page.locator(".node.ablated").count() == 0


def test_threshold_and_sign_filter_the_lines(explorer, opened):
    edges = explorer[0]
    page = opened()
    kept = edges.scores[edges.top(int(SIZES[2] * edges.graph.n_edges), absolute=True).keep]
    shown = edges.scores[edges.top(int(SIZES[-1] * edges.graph.n_edges), absolute=True).keep]
    for value in (20, 60, 0):
        page.get_by_label("Threshold").fill(str(value))
        limit = (value / 100) ** 2 * float(shown.abs().max())
        for sign, count in (("for", kept >= limit), ("against", kept <= -limit), ("both", kept.abs() >= limit)):
            page.locator(".sign").select_option(sign)
            assert page.locator(".edges path").count() == int(count.sum()), (value, sign)
            assert f"{int(count.sum())} edge" in page.locator(".drawn").inner_text()
    assert "228 of 761 edges, faithfulness" in page.locator(".kept").inner_text()  # the circuit itself stays


def test_methods_rankings_and_prompts_are_switched(explorer, opened):
    edges, curve, shown = explorer
    page = opened()
    methods, prompts = shown.data["methods"], shown.data["prompts"]

    def drawn():
        return set(page.locator(".edges title").all_text_contents())

    def wanted(view, size):
        return sum(first <= size for *_, first in view["edges"])

    absolute = drawn()
    page.get_by_label("Ranked by").select_option("1")
    assert page.locator(".edges path").count() == wanted(methods[0]["curves"][1], 2) and drawn() != absolute
    page.get_by_label("Scores").select_option("1")
    assert page.locator(".edges path").count() == wanted(methods[1]["curves"][0], 2)
    assert page.get_by_label("Ranked by").count() == 0  # the gradient has one curve
    assert "by gradient" in page.locator(".key").inner_text()
    page.locator(".switches select").first.select_option("1")
    assert page.locator(".token").all_inner_texts() == prompts[1]["tokens"]
    assert f"“{prompts[1]['answer']}”" in page.locator(".answer").inner_text()
    page.get_by_label("Scores").select_option("0")
    node(page, "a2.h1").click()
    assert printed(prompts[1]["clean"]) in page.locator(".effect").inner_text()


def moved(page):
    return page.locator("svg.summed > .zoomed").get_attribute("transform")


def test_zoom_and_pan_move_the_picture_without_drawing_it_anew(opened):
    page = opened()
    page.evaluate("""() => {
      window.added = 0;
      const count = (one) => { window.added += one.addedNodes.length + one.removedNodes.length; };
      new MutationObserver(all => all.forEach(count))
        .observe(document.querySelector("svg.summed"), { childList: true, subtree: true });
    }""")
    svg = page.locator("svg.summed")
    box = svg.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    places = [moved(page)]

    def step(act):
        act()
        places.append(moved(page))

    page.mouse.move(*middle)
    page.mouse.wheel(0, -200)  # without a click first the page scrolls
    assert moved(page) == places[0]
    node(page, "a2.h1").focus()
    for key in ("+", "+", "-", "0", "+", "+"):
        step(lambda key=key: page.keyboard.press(key))
    assert places[1] == places[3] and places[4] == places[0]
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 200)
    step(lambda: page.mouse.wheel(0, -200))
    page.mouse.down()
    step(lambda: page.mouse.move(box["x"] + 130, box["y"] + 230, steps=5))
    page.mouse.up()
    for name in ("Zoom in", "Zoom out", "Show all"):
        step(page.get_by_role("button", name=name).click)
    assert all(before != after for before, after in pairwise(places[6:])) and places[-1] == places[0]
    assert page.evaluate("window.added") == 0
    assert page.locator(".levels text").all_text_contents()[:5] == [f"layer {i}" for i in range(5)]
    page.screenshot(path=SHOTS / "explorer-zoomed.png", full_page=True)


def test_a_drag_that_starts_on_a_node_selects_nothing(opened):
    page = opened()
    node(page, "a2.h1").click()
    page.get_by_role("button", name="Zoom in").click(click_count=3)
    box = node(page, "a2.h2").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 40, steps=4)
    page.mouse.up()
    assert page.locator(".card h3").inner_text() == "a2.h1"


def literal_path(edges, via=None):
    """(share, steps) of the path whose product of shares is largest, by trying every path.

    edges: (source, target, port, |score|).
    """
    into = {}
    for _, target, _, score in edges:
        into[target] = into.get(target, 0) + score
    best, stack = (0.0, None), [("input", 1.0, ("input",), via in (None, "input"))]
    while stack:
        name, share, steps, seen = stack.pop()
        if name == "logits":
            best = max(best, (share, steps)) if seen else best
            continue
        for source, target, port, score in edges:
            if source == name:
                stack.append((target, share * score / into[target], (*steps, target + (f" ({port})" if port else "")),
                              seen or target == via))
    return best


@pytest.mark.parametrize("via", [None, "a2.h1"])
def test_the_strongest_path_is_traced(explorer, opened, via):
    edges = explorer[0]
    page = opened()
    page.get_by_label("Size").press("Home")
    page.get_by_label("Size").press("ArrowRight")  # 76 edges
    keep = edges.top(int(SIZES[1] * edges.graph.n_edges), absolute=True).keep
    shown = []
    for i, j in keep.nonzero().tolist():
        owner, _, port = edges.targets[j].partition("<")
        shown.append((edges.sources[i], owner, port.strip(">"), abs(float(edges.scores[i, j]))))
    share, steps = literal_path(shown, via)
    if via is None:
        page.get_by_role("button", name="Trace from the input").click()
    else:
        if node(page, via).get_attribute("aria-pressed") == "false":
            node(page, via).click()
        page.get_by_role("button", name="Trace through it").click()
    said = page.locator("output.trace").inner_text()
    assert f": {' → '.join(steps)}. " in said and said.endswith(f"{100 * share:.2g} %.")
    assert page.locator(".edges path.on-path").count() == len(steps) - 1
    assert page.locator(".edges path:not(.on-path):not(.other)").count() == 0
    page.screenshot(path=SHOTS / f"explorer-path-{via}.png", full_page=True)
    node(page, "logits").press("Escape")
    assert page.locator(".on-path").count() == 0
    assert page.locator("output.trace").inner_text().startswith("Click a node for its edges")


def test_a_token_is_traced_through_the_node_that_scores_most_there(explorer, opened):
    _, _, shown = explorer
    page = opened()
    scores, sources = shown.data["methods"][0]["positions"][0], shown.data["sources"]
    page.locator(".token").nth(12).click()
    best = max(sources[1:], key=lambda name: abs(scores[sources.index(name)][12]))
    said = page.locator("output.trace").inner_text()
    assert f"(13), where {best} scores most" in said and f" → {best}" in said
    assert page.locator(".token").nth(12).get_attribute("aria-pressed") == "true"
    page.locator(".token").nth(1).click()  # before the prompts differ
    assert "(2), where no node shown has a score" in page.locator("output.trace").inner_text()
    page.locator(".token").nth(1).click()
    assert page.locator(".on-path").count() == 0


def test_the_position_view_has_a_mark_for_each_score(explorer, opened):
    _, _, shown = explorer
    page = opened()
    scores, sources = shown.data["methods"][0]["positions"][0], shown.data["sources"]
    page.get_by_role("button", name="By position").click()
    spots = page.locator(".spot").evaluate_all(
        "all => all.map(s => [s.dataset.name, Number(s.dataset.position), s.classList.contains('for'), "
        "Number(s.querySelector('circle').getAttribute('r')), s.getAttribute('transform')])")
    wanted = {(name, i): score for name, row in zip(sources, scores) for i, score in enumerate(row) if score}
    assert {(name, i): on for name, i, on, *_ in spots} == {place: score > 0 for place, score in wanted.items()}
    most = max(map(abs, wanted.values()))
    assert all(r == pytest.approx(1.5 + 6 * (abs(wanted[name, i]) / most) ** 0.5, abs=0.006)
               for name, i, _, r, _ in spots)
    assert len({place for *_, place in spots}) == len(spots)  # none covers another
    assert f"{len(wanted)} of {len(wanted)} scores" in page.locator("output.trace").inner_text()
    page.get_by_label("Threshold").fill("50")
    page.locator(".sign").select_option("against")
    assert page.locator(".spot").count() == sum(score <= -most / 4 for score in wanted.values())
    page.locator(".sign").select_option("both")
    page.locator(".spot[tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    name = page.evaluate("document.activeElement.dataset.name")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(rf"{re.escape(name)} at “.+” \(\d+\): [+−][\d.]+", label)
    page.keyboard.press("Enter")
    assert page.locator(".card h3").inner_text() == name and page.locator(".spot.mine").count() > 0
    row = scores[sources.index(name)]
    assert f"(sum {printed(sum(row))})" in page.locator(".card .where").inner_text()
    page.screenshot(path=SHOTS / "explorer-positions.png", full_page=True)
    page.get_by_role("button", name="Summed over positions").click()
    assert page.locator("svg.summed").is_visible() and not page.locator("svg.positions").is_visible()


def test_nodes_are_pinned_named_grouped_and_noted(opened):
    page = opened()
    node(page, "a2.h1").click()
    page.get_by_role("button", name="Pin").click()
    page.locator("summary").click()
    for field, text in (("Name", "<b>mover"), ("Group", "movers"), ("Note", "copies the name")):
        page.locator(".mark").get_by_label(field).fill(text)
    node(page, "m1").click()
    page.locator("summary").click()
    page.locator(".mark").get_by_label("Group").fill("movers")
    assert node(page, "a2.h1").locator(".name").text_content() == "<b>mover"
    assert node(page, "a2.h1").locator(".pin").is_visible() and not node(page, "m1").locator(".pin").is_visible()
    assert "<b>mover" in node(page, "a2.h1").get_attribute("aria-label") and page.locator("b").count() == 0
    assert page.get_by_role("list", name="Pinned").inner_text() == "a2.h1 <b>mover copies the name"
    assert page.get_by_role("list", name="Group movers").get_by_role("listitem").count() == 2
    assert page.locator(".node.grouped").count() == 2
    page.screenshot(path=SHOTS / "explorer-marked.png", full_page=True)
    page.get_by_label("Search").fill("copies")
    assert page.locator(".node.hit").evaluate_all("n => n.map(x => x.dataset.name)") == ["a2.h1"]


def test_the_address_keeps_the_state(opened):
    page = opened()
    page.get_by_label("Size").press("Home")
    page.get_by_label("Scores").select_option("1")
    node(page, "a2.h1").click()
    page.get_by_role("button", name="Ablate", exact=True).click()
    page.get_by_role("button", name="Pin").click()
    page.get_by_role("button", name="Zoom in").click()
    expect(page).to_have_url(re.compile("zoom%22%3A%5B1.3.*pin%22%3Atrue"))
    address, before = page.evaluate("location.hash"), moved(page)
    again = opened(address)
    assert again.locator(".card h3").inner_text() == "a2.h1" and moved(again) == before
    assert again.get_by_label("Size").input_value() == "0" and again.get_by_label("Scores").input_value() == "1"
    assert again.locator(".ablation h4").inner_text() == "Without a2.h1" and again.locator(".node.pinned").count() == 1


@pytest.mark.parametrize("state", [
    "nonsense", "{", "[]", "null", "7",
    '{"size": 99, "method": -1, "curve": 5, "prompt": "x", "selected": "a9.h9", "trace": "<img>", "zoom": ["a", 1, 2]}',
    '{"marks": {"a0.h0": {"label": "<img src=x onerror=alert(1)>", "pin": 3}, "nobody": {"pin": true}, "m0": 5}}',
    '{"marks": 3, "ablated": [3, "nobody", {}], "view": "none", "sign": "constructor", "threshold": 1e9}'])
def test_an_address_of_nonsense_opens_the_page(opened, state):
    page = opened(f"#{quote(state)}")
    assert page.locator(".edges path").count() == 228 and page.locator(".node.pinned").count() == 0
    assert page.locator("img").count() == 0


def test_svg_png_and_json_are_saved(opened, tmp_path):
    page = opened()
    files = {}
    page.get_by_role("button", name="Zoom in").click()  # the whole picture is saved all the same
    for kind in ("SVG", "PNG", "JSON"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[kind])
        waiting.value.save_as(SHOTS / f"explorer-saved.{kind.lower()}")
    assert files["SVG"].name == "ioi-gim-ig-gradient.svg"
    drawing = page.context.new_page()
    drawing.goto(files["SVG"].as_uri())
    lines = drawing.locator("path").evaluate_all("all => all.map(line => getComputedStyle(line).stroke)")
    assert len(lines) == 228 and "rgb(31, 127, 191)" in lines
    assert files["PNG"].read_bytes().startswith(b"\x89PNG") and files["PNG"].stat().st_size > 20_000
    saved = json.loads(files["JSON"].read_text("utf-8"))
    assert len(saved["edges"]) == saved["edges_in_circuit"] == 228
    assert {"name": "a2.h1", "role": "suppressor-like"}.items() <= next(
        one for one in saved["nodes"] if one["name"] == "a2.h1").items()


def test_the_size_curve_has_a_logarithmic_axis(explorer, opened):
    _, curve, _ = explorer
    page = opened()
    plot = page.locator(".curve")
    x = [float(x) for x in plot.locator("circle:not(.point)").evaluate_all("all => all.map(c => c.getAttribute('cx'))")]
    logs = torch.tensor(curve.edges).double().log10()
    want = x[0] + (logs - logs[0]) / (logs[-1] - logs[0]) * (x[-1] - x[0])
    assert x == pytest.approx(want.tolist(), abs=0.01)
    assert "logarithmic axis" in plot.get_attribute("aria-label") and "100" in plot.locator("text").all_text_contents()


@pytest.mark.parametrize("width", [1400, 900])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_page_to_the_side(opened, width, scheme):
    page = opened(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 950})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("tr").last.scroll_into_view_if_needed()  # the picture must not stand before the lists
    assert page.locator("tr .score").last.evaluate("""cell => {
      const { x, y } = cell.getBoundingClientRect();
      return document.elementFromPoint(x + 3, y + 3) === cell;
    }""")
    page.screenshot(path=SHOTS / f"explorer-{width}-{scheme}.png", full_page=True)


def test_search_finds_names_and_roles(opened):
    page = opened()
    search = page.get_by_label("Search")
    search.fill("SUPPRESSOR")
    assert page.locator(".node.hit").evaluate_all("n => n.map(x => x.dataset.name)") == ["a2.h1", "a2.h2"]
    assert page.locator(".found").inner_text() == "2 nodes"
    page.screenshot(path=SHOTS / "explorer-search.png", full_page=True)
    search.fill("m3")
    search.press("Enter")
    assert page.evaluate("document.activeElement.dataset.name") == "m3" and rows(page, "Out of")
    search.fill("nothing of the kind")
    search.press("Enter")
    assert page.locator(".found").inner_text() == "0 nodes" and page.locator(".node.hit").count() == 0
    search.fill("")
    assert page.locator(".node.missed").count() == 0


def test_texts_are_shown_as_they_are(opened):
    page = opened()
    node(page, "a0.h0").click()
    assert page.locator(".card .role").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.locator("img").count() == 0


def contrast(colour, other) -> float:
    """WCAG's contrast of two CSS colours."""
    def light(text):
        parts = [int(x) / 255 for x in re.findall(r"\d+", text)[:3]]
        return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
                   for w, c in zip((0.2126, 0.7152, 0.0722), parts))

    low, high = sorted((light(colour), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(opened, scheme):
    page = opened(color_scheme=scheme)
    node(page, "a2.h1").click()

    def css(selector, name):
        return page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name)

    back = css("#explorer", "backgroundColor")
    assert contrast(back, "rgb(255, 255, 255)") < 1.1 if scheme == "light" else contrast(back, "rgb(0, 0, 0)") < 1.4
    assert contrast(css("#explorer", "color"), back) > 7 and contrast(css("footer", "color"), back) > 4.5
    assert contrast(css(".node text", "fill"), css(".node rect", "fill")) > 7
    assert contrast(css(".edges .for", "stroke"), back) > 3 and contrast(css(".edges .against", "stroke"), back) > 3
    page.screenshot(path=SHOTS / f"explorer-{scheme}.png", full_page=True)
