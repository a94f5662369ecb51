"""The page of an inspection: which heads it puts first, what it says of the forecast, and how maps are coloured."""

import base64
import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from querykey.inspection import page, tables
from querykey.inspection.columns import ENGLISH, KNOWN, described, shown
from querykey.inspection.ranking import MOST, ranked, ranking_table
from querykey.report.words import Words

CHINESE = Words("inspection", "zh")


def heads(**columns):
    """Four layers of three heads whose measures differ a little, with some of them replaced."""
    count = 12
    frame = {"layer": np.repeat(range(4), 3), "head": np.tile(range(3), 4), "kv_head": np.tile(range(3), 4)}
    frame |= {"dim": [24] * count, "head_dim": [8] * count, "layer_symmetry": [0.1] * count}
    frame |= {"layer_symmetry_null": [0.0] * count, "attention": ["self"] * count}
    frame["module"] = [f"layers.{layer}.attention" for layer in frame["layer"]]
    values = dict.fromkeys(columns, 0.5) | {"symmetry": 0.1, "tied_share": 0.3, "effective_rank": 7.0}
    for name, value in values.items():
        frame[name] = value + 0.01 * np.linspace(-1, 1, count)
        for place, other in columns.get(name, {}).items():
            frame[name][place] = other
        frame[f"{name}_null"] = [0.0] * count
    return pd.DataFrame(frame)


def test_heads_that_stand_out_come_first_with_the_measure_in_which_they_do():
    first, second, *others = ranked(heads(symmetry={7: -0.8}, entropy={2: 0.05}))
    assert {(one.layer, one.head, one.measure) for one in (first, second)} == {
        ("2", 1, "symmetry"),
        ("0", 2, "entropy"),
    }
    assert first.distance >= second.distance > 3 * others[0].distance
    assert second.median == pytest.approx(0.5 if second.measure == "entropy" else 0.1, abs=0.01)


def test_the_distance_is_in_units_of_the_spread():
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 6.0])
    found = ranked(heads(effective_rank=dict(enumerate(values))))
    median = np.median(values)
    spread = max(1.4826 * np.median(np.abs(values - median)), values.std() / 3)
    assert (found[0].layer, found[0].head) == ("3", 2)
    assert found[0].distance == pytest.approx((6.0 - median) / spread)


def test_heads_that_are_all_alike_have_no_interest():
    same = heads()
    for name in ("symmetry", "tied_share", "effective_rank"):
        same[name] = 0.5
    assert [one.distance for one in ranked(same)] == [0.0] * 12


def test_the_ranking_names_the_head_and_its_value():
    table = ranking_table(heads(symmetry={7: -0.8}))
    assert len(table.rows) == min(12, MOST)
    name, measure, value, median, *_ = table.rows[0]
    assert (name, measure, value.text, median.text) == ("layer 2 head 1", "symmetry", "−0.80", "0.10")


def test_a_layer_shows_its_median_and_range_and_random_heads_last():
    table = tables.layer_table(heads(symmetry={7: -0.8}), [KNOWN["symmetry"]], "layers", summed=True)
    layer, cell, summed = table.rows[2]
    assert (layer, cell.text, cell.detail, summed) == ("2", "0.10", "−0.80…0.10", "0.10")
    assert [one.text for one in table.rows[-1]] == ["random", "0.00", "0.00"]


def forecast(cosines, perplexities=(math.nan,) * 5):
    rows = [{"scope": "none", "layer": -1, "head": -1, "replacement": "", "cosine": 1.0, "perplexity": perplexities[0]}]
    for kind, cosine, perplexity in zip(
        ("tied", "signed", "core", "key_value"), cosines, perplexities[1:], strict=True
    ):
        rows.append({"scope": "all", "layer": -1, "head": -1, "replacement": kind} | {"cosine": cosine})
        rows[-1]["perplexity"] = perplexity
    return SimpleNamespace(forecast=pd.DataFrame(rows))


@pytest.mark.usefixtures("unchecked")
def test_the_forecast_says_in_a_word_what_is_kept():
    found = page.forecasts(forecast((0.5, 0.95, 0.99, 0.98)))
    assert [one.word for one in found] == ["lost", "changed", "nearly unchanged", "nearly unchanged"]
    assert [one.perplexity for one in found] == [""] * 4
    found = page.forecasts(forecast((0.5, 0.95, 0.99, 0.98), (7.43, 31480.4, 20.0, 7.6, 8.0)))
    assert found[0].perplexity == "7.43 → 31,480"
    assert page.forecasts(SimpleNamespace(forecast=forecast((1, 1, 1, 1)).forecast.head(1))) == []


def test_rows_of_maps_are_named_where_numbers_are_not_enough():
    assert page._spans(["0", "1", "7"]) == ""
    names = ["encoder 0", "encoder 1", "decoder 0", "decoder 0 cross", "decoder 1 cross", "head.attention"]
    assert page._spans(names) == "encoder 0 to 1, decoder 0, decoder 0 to 1 cross, head.attention"


def test_every_map_has_words_and_other_columns_are_named_by_their_words():
    there = shown(heads(entropy={}), [*KNOWN.values()])
    assert [one.name for one in there] == ["symmetry", "tied_share", "effective_rank", "entropy", "layer_symmetry"]
    assert all(all(described(name, say)) for name in KNOWN for say in (ENGLISH, CHINESE))
    assert described("tied_share")[0] == "tied share"
    assert "K = V" in described("layer_cosine_key_value")[0]
    assert described("some_new_measure") == ("some new measure", "")


@pytest.mark.usefixtures("unchecked")
def test_orange_is_nearer_to_shared_in_every_map():
    """Also where shared heads have the lowest value, as in the distance."""
    for name, nearer in (("symmetry", 0.9), ("distance", 0.1)):
        frame = heads(**{name: {0: nearer}})
        frame[f"{name}_null"] = 1.0 if name == "distance" else 0.0
        (drawn,) = page._maps(KNOWN[name], [SimpleNamespace(heads=frame, name="m")])["drawn"]
        image = pixels(drawn)
        assert image[0, 0, 0] > image[0, 0, 2]  # more red than blue
        assert image[0, 0, 3] > 200


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)\"", source)[1]))))
