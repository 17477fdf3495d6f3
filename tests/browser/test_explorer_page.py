"""The explorer's HTML file, opened from disk with the network off."""

import re

import pytest
import torch
from patience import SHOTS

import gimkit

torch.set_num_threads(1)
SIZES = (0.02, 0.1, 0.3, 0.66)  # the last has some 500 edges


@pytest.fixture(scope="module")
def explorer():
    """Scores of mini-llama on IOI, and their explorer; a role that would be HTML if anything read it so."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=8, seed=0)
    edges = gimkit.score_edges(model, task, method="gim-ig")
    curve = gimkit.faithfulness(model, task, edges, absolute=True, sizes=SIZES)
    roles = {"a2.h1": "suppressor-like", "a2.h2": "suppressor-like", "a0.h0": "<img src=x onerror=alert(1)>"}
    return edges, curve, gimkit.explore(model, task[7].clean, edges, curve, roles)


@pytest.fixture
def opened(explorer, new_page, tmp_path):
    """opened(**options): the page, offline; a request for more than the file is refused, and fails the test as a
    JavaScript error does.
    """
    wrong = []

    def refuse(route):
        wrong.append(route.request.url)
        route.abort()

    def opened(**options):
        page = new_page(offline=True, **options)
        page.context.route(re.compile("^(?!file:)"), refuse)
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(explorer[2].save(tmp_path / "ioi.html").as_uri())
        page.locator(".edges path").first.wait_for()
        return page

    yield opened
    assert wrong == []


def node(page, name):
    return page.locator(f'.node[data-name="{name}"]')


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
    slider, pictures = page.get_by_role("slider"), []
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
    page.get_by_role("slider").press("Home")
    kept = edges.scores[edges.top(int(SIZES[0] * edges.graph.n_edges), absolute=True).keep]
    drawn = page.locator(".edges path").evaluate_all(
        "lines => lines.map(l => [l.querySelector('title').textContent, getComputedStyle(l).stroke, "
        "getComputedStyle(l).strokeDasharray])")
    assert len(drawn) == len(kept)
    styles = {title.rpartition(": ")[2][0]: (stroke, dash) for title, stroke, dash in drawn}
    assert styles["+"] == ("rgb(31, 127, 191)", "none")
    page.get_by_role("slider").press("End")
    hurts = page.locator(".edges path.against").first
    assert "7px" in hurts.evaluate("l => getComputedStyle(l).strokeDasharray")


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_a_heads_role_and_attention_appear(explorer, opened, by):
    """By a click or by Enter; pointing elsewhere changes nothing: the panel is about one node."""
    data = explorer[2].data
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
    assert weights == [row[j] for i, row in enumerate(data["attention"]["a2.h2"]) for j in range(i + 1)]
    last = data["attention"]["a2.h2"][-1]
    assert f"“{data['tokens'][last.index(max(last))]}”" in card.locator("p").nth(1).inner_text()
    card.screenshot(path=SHOTS / f"explorer-card-{by}.png")
    page.locator(".picture svg").press("Escape")
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
    assert shown.data["prompt"] in page.locator(".prompt").inner_text()
    page.screenshot(path=SHOTS / "explorer-opened.png", full_page=True)


def test_everything_works_from_the_keyboard(opened):
    page = opened()
    node(page, "logits").click()
    page.get_by_label("Search").focus()

    def here():
        return page.evaluate("document.activeElement.dataset.name ?? document.activeElement.type ?? "
                             "document.activeElement.className")

    stops = [here()]
    for _ in range(2):
        page.keyboard.press("Tab")
        stops.append(here())
    assert stops == ["search", "range", "logits"]  # the picture is one stop
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
    page.keyboard.press("Tab")
    assert here() == "list"  # the lists scroll from the keyboard too
    node(page, "a3.h1").focus()
    page.keyboard.press("Escape")
    assert page.locator("table").count() == 0 and page.locator(".edges path.other").count() == 0


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
