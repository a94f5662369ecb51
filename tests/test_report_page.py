"""The page of a study: what it leads with, that it is well-formed and needs nothing else, and its charts' numbers."""

import math
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch

import studied
from pages import Page
from querykey.report import figures, heatmaps
from querykey.study.maps import _byte_names, _most_different, attention_maps, head_maps
from querykey.study.plan import TaskChoice
from querykey.study.report import Report, read
from querykey.study.training import load
from studied import CONFIG, GONE, keep, near

DESIGNS = ("q,k,v", "q=k,v", "q=k,v+core=full")


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    return studied.remedied(tmp_path_factory.mktemp("remedied"))


def page(result):
    return Page(result.html())


def test_the_page_is_well_formed_and_loads_nothing(remedied):
    source = remedied.html()
    found = Page(source)
    assert source.startswith("<!doctype html>\n<html lang=")
    assert all(load.startswith("data:image/png;base64,") for load in found.loads)
    assert "@import" not in source
    assert source.count("<script") == 1  # ours, in the page itself
    assert "http" not in source
    assert ("meta", "name", "viewport") in found.attributes
    assert source.count('role="img"') > 6
    for design in DESIGNS:
        assert source.count(f"<code>{design}</code>") >= 4


def test_the_page_leads_with_the_answer_the_tiles_and_the_costs(remedied):
    text = page(remedied).text
    places = [
        text.index(words)
        for words in ("Do they?", "Queries and keys needed", "0.75×", "undertrained", "Learning curves")
    ]
    assert places == sorted(places)
    tiles = re.findall(r'class="tile ([\w-]+)" data-label="(\w+)"><b>([^<]*)</b><small>([^<]*)<', remedied.html())
    assert tiles == [
        ("baseline", "cycle", "0.900", "the baseline"), ("baseline", "swap", "0.900", "the baseline"),
        ("worse", "cycle", "worse", "−0.600"), ("worse", "swap", "worse", "−0.600"),
        ("no-different", "cycle", "no different", "0.000"), ("no-different", "swap", "no different", "0.000"),
    ]  # fmt: skip


def test_the_contents_lead_to_each_part(remedied):
    found = page(remedied)
    links = [value for tag, name, value in found.attributes if tag == "a" and name == "href"]
    assert links == ["#designs", "#differences", "#task-1", "#task-2", "#costs", "#measured", "#again"]
    assert f"querykey explore {remedied.folder}" in found.text


def test_the_page_says_how_it_was_measured(remedied):
    text = page(remedied).text
    made_by = remedied.records["provenance"][0]
    versions = (made_by["python"], made_by["torch"])
    for shown in ("comparisons: 4", "95 %", "Sizes of the models", *versions, "45 s, 1.2 s a cell"):
        assert shown in text, shown
    assert remedied.records["finished_at"].max() in text


def test_the_page_in_chinese(remedied):
    source = remedied.html("zh")
    words = " ".join(Page(source).words)
    assert 'lang="zh-CN"' in source
    assert "查询和键在全部 2 个任务" in words
    assert not re.search(r"\b(worse|verdict|Costs|Method|Learning)\b", words)
    assert page(remedied).text != words


def test_the_same_records_give_the_same_bytes(tmp_path):
    task = TaskChoice("cycle", {}, CONFIG)
    keep(tmp_path, {"q,k,v": [0.5], "q=k,v": [0.25]}, tasks=(task,), weights=True)
    before = torch.get_num_threads()
    first = [form(read(tmp_path)) for form in (Report.html, Report.json, Report.csv)]
    torch.set_num_threads(1)
    try:
        second = [form(read(tmp_path)) for form in (Report.html, Report.json, Report.csv)]
    finally:
        torch.set_num_threads(before)
    assert first == second
    assert read(tmp_path).write_html().read_text(encoding="utf-8") == first[0]
    assert [path.name for path in sorted(tmp_path.glob("report*"))] == ["report.html"]


def test_names_are_escaped(tmp_path):
    result = keep(
        tmp_path, {"q,k,v": [0.5], "q=k,v": [0.5]}, name='<i>"x"&', question="Is <script>a < b</script> & 'so'?"
    )
    found = page(result)
    assert "Is <script>a < b</script> & 'so'?" in found.text
    assert '<i>"x"&' in found.text
    assert result.html().count("<script") == 1
    assert "<i>" not in result.html()
    inside = re.search(r'srcdoc="([^"]*)"', result._repr_html_())
    assert inside is not None
    assert unescape(inside[1]) == result.html()


def test_tables_and_figures_stay_within_a_narrow_page(remedied):
    source = remedied.html()
    tables = re.findall(r"<table[^>]*>", source)
    assert len(re.findall(r'<div class="scroll"[^>]*><table', source)) == len(tables) - tables.count(
        '<table class="tiles">'
    )
    assert not re.search(r"<svg[^>]* (width|height)=", source)


def luminance(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_words_and_figures_have_enough_contrast_in_light_and_in_dark(remedied):
    dark = r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}"
    source = remedied.html()
    blocks = (re.findall(r":root \{(.*?)\}", re.sub(dark, "", source, flags=re.DOTALL), re.DOTALL),)
    blocks += (re.findall(dark, source, re.DOTALL),)
    schemes = [dict(re.findall(r"--([\w-]+): (#\w+);", "".join(scheme))) for scheme in blocks]
    assert schemes[0].keys() == schemes[1].keys()
    assert luminance(schemes[0]["paper"]) > 0.9 > 0.05 > luminance(schemes[1]["paper"])
    for scheme in schemes:
        for ground in ("paper", "raised"):
            for words in ("ink", "muted", "good", "bad"):
                assert contrast(scheme[words], scheme[ground]) >= 4.5, (words, ground)  # WCAG 2.2 AA, text
        tiles = {"good": "good-ground", "bad": "bad-ground", "ink": "open-ground"}
        for words, ground in (tiles | {"ink": "same-ground"}).items():
            assert contrast(scheme[words], scheme[ground]) >= 4.5, (words, ground)
        for number in range(len(figures.COLOURS)):
            assert contrast(scheme[f"d{number}"], scheme["paper"]) >= 3, number  # AA, graphics


def test_a_large_study_draws_some_and_tables_all(tmp_path):
    designs = ["q,k,v", *(f"q,k,v+qkscale={n}" for n in range(2, 16))]
    result = keep(tmp_path, {design: near(0.5, 2) for design in designs})
    source = result.html()
    assert "Charts show the first 12 of 15 designs; tables have all." in source
    assert source.count("<code>q,k,v+qkscale=15</code></th>") == 5  # tiles, designs, the task, costs, matching
    assert source.count(">q,k,v+qkscale=12<") - source.count(">q,k,v+qkscale=13<") > 0


def drawn_by(result, monkeypatch, name, module=figures):
    """What the page gives to a function that draws, as (arguments, options) of each call."""
    seen, draw = [], getattr(module, name)

    def record(*arguments, **options):
        seen.append((arguments, options))
        return draw(*arguments, **options)

    monkeypatch.setattr(module, name, record)
    result.html()
    return seen


def test_curves_are_means_with_the_range_of_the_seeds_that_finished(tmp_path, monkeypatch):
    result = keep(
        tmp_path, {"q,k,v": [0.5, 1.0, 0.75, None], "q=k,v": [0.5, None, None, GONE], "q,k=v": [None] * 4}, rising=True
    )
    ((_, (first, second)), options) = drawn_by(result, monkeypatch, "curves")[0]
    assert (first.label, first.look.colour, first.x, first.y) == ("q,k,v", 0, [1, 2], [0.375, 0.75])
    assert (first.low, first.high) == ([0.25, 0.5], [0.5, 1.0])
    assert (second.label, second.low, second.high) == ("q=k,v", [0.25, 0.5], [0.25, 0.5])
    assert options["levels"] == {"chance": 0.125, "best": 1.0}


def test_long_curves_are_thinned_and_keep_both_ends(tmp_path, monkeypatch):
    result = keep(tmp_path, {"q,k,v": [0.5]}, evaluations=1000)
    ((_, (line,)), _) = drawn_by(result, monkeypatch, "curves")[0]
    assert len(line.x) == len(line.y) == 60
    assert (line.x[0], line.x[-1], line.y[-1]) == (1, 1000, 0.5)


def test_differences_are_paired_with_t_intervals_and_margins(tmp_path, monkeypatch):
    base, design = [0.5, 0.75, 1.0, None], [0.25, 0.75, 0.5, 0.5]
    task = TaskChoice("cycle", {}, CONFIG, margin=0.0625)
    result = keep(tmp_path, {"q,k,v": base, "q=k,v": design}, tasks=(task,))
    ((_, (estimate,)), options) = drawn_by(result, monkeypatch, "intervals")[0]
    half = 4.302652729911275 * 0.25 / math.sqrt(3)  # 97.5 % of t with 2 degrees of freedom, from a table
    assert (estimate.label, estimate.margin) == ("q=k,v", 0.0625)
    assert (estimate.values, estimate.value) == ([-0.25, 0.0, -0.5], -0.25)
    assert (estimate.low, estimate.high) == (pytest.approx(-0.25 - half), pytest.approx(-0.25 + half))
    assert not options["lower_is_better"]


def test_scores_by_difficulty_are_drawn_where_there_are_any(tmp_path, monkeypatch):
    result = keep(tmp_path, {"q,k,v": [0.5, 0.75], "q=k,v": [0.5, None]}, **{"test@3": 0.25, "test@10": 0.125})
    _, ((_, (first, second)), options) = drawn_by(result, monkeypatch, "curves")
    assert (first.x, first.y, first.low) == ([3, 10], [0.25, 0.125], [0.25, 0.125])
    assert (second.label, second.y, options["x_label"]) == ("q=k,v", [0.25, 0.125], "difficulty")


# Attention maps


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Weights of two designs on cycle, and on bytes."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_bytes(b"0123456789 <&>\n\x01\x7f" * 200)
    small = replace(CONFIG, layers=2, heads=3, dim=6)
    tasks = (TaskChoice("cycle", {}, small), TaskChoice("text", {"paths": [str(text)], "length": 41}, small))
    return keep(folder / "run", {"q,k,v": [0.5], "q=k,v": [0.5]}, tasks=tasks, weights=True)


def test_maps_are_the_formula_on_the_expanded_weights(small_run):
    model, example = load(small_run.weights("cycle", "q=k,v"))[:2]
    layer = model.attentions[0]
    with torch.no_grad():
        x = model.blocks[0].attention_norm(model.embedding(example).sum(-2))[0]
        weights = layer.weights()
        q, k = x @ weights.W_Q, x @ weights.W_K
        expected = (q @ k.transpose(1, 2) / math.sqrt(2)).softmax(-1)
    maps = attention_maps(model, example)
    assert maps.shape == (2, 3, 12, 12)
    np.testing.assert_allclose(maps[0], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)
    assert all(not layer._forward_pre_hooks for layer in model.attentions)


def test_the_head_that_differs_most_is_found():
    maps = {name: np.full((2, 3, 5, 5), 0.2) for name in "abc"}
    maps["b"][1, 2] = np.eye(5)
    layer, head, distance = _most_different(maps)
    assert (layer, head) == (1, 2)
    assert distance == pytest.approx(0.8 * 2 / 3)  # two of three pairs; 1/5 of each query's attention is common
    assert _most_different({"a": maps["a"]}) == (0, 0, 0.0)


def test_maps_of_text_are_named_by_bytes_and_cropped(small_run):
    found = head_maps(small_run, "text", small_run.study.designs)
    assert found is not None
    assert found.names is not None
    model, example = load(small_run.weights("text", "q,k,v"))[:2]
    assert (len(found.names), found.length, found.maps["q=k,v"].shape) == (32, 41, (32, 32))
    signs = {10: "⏎", 32: "␣", 1: "·", 127: "·"}
    assert found.names == [signs.get(byte, chr(byte)) for byte in example[0, :32, 0].tolist()]
    whole = attention_maps(model, example)[found.layer, found.head, :32, :32]
    np.testing.assert_allclose(found.maps["q,k,v"], whole, atol=1e-6)  # causal: what is cut off changes nothing
    source = small_run.html()
    Page(source)
    assert source.count("data:image/png") == 2 * 2 + 2  # and a scale for each task
    assert f"Layer {found.layer + 1} of 2, head {found.head + 1} of 3" in source
    assert "Of 41 positions the first 32 are shown" in source


def test_bytes_are_named_by_the_characters_that_they_end():
    assert _byte_names(list("a 注\n".encode())) == ["a", "␣", "", "", "注", "⏎"]
    assert _byte_names([0xFF, 0x41, 0]) == ["·", "A", "·"]
    assert _byte_names(list("注".encode())[1:]) == ["·", "·"]  # the beginning is cut off


def test_maps_of_one_task_share_their_scale(small_run, monkeypatch):
    seen = [(arguments[1], options) for arguments, options in drawn_by(small_run, monkeypatch, "heatmap", heatmaps)]
    for task in (seen[:2], seen[2:]):
        assert len({options["limits"] for _, options in task}) == 1
        assert task[0][1]["limits"] == (0.0, max(float(values.max()) for values, _ in task))


def test_missing_and_torn_weights_are_left_out_with_a_sentence(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5], "q=k,v": [0.5], "q,k=v": [0.5]}, weights=True)
    result.weights("cycle", "q=k,v").unlink()
    result.weights("cycle", "q,k=v").write_bytes(b"torn")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", result.html()))
    assert "No weights can be read for q=k,v and q,k=v." in text
    result.weights("cycle", "q,k,v").unlink()
    assert "No weights are kept beside these records, so there are no attention maps." in result.html()
