"""The pure parts of the benchmark: what is judged, how, and what is shown of it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from benchmarks import figures, picture, report
from benchmarks.asking import Asked, check_pieces
from benchmarks.figures import BARE, BEFORE, FIGURES, LIFTED, OURS, Figure, Targets
from benchmarks.measuring import arrivals
from benchmarks.report import Results

LATENCY = figures.LATENCY["app-server"]
THROUGHPUT = figures.THROUGHPUT_MORE


def results(ours: float = 20.0, bare: float = 20.0, before: float = 40.0) -> Results:
    found = Results()
    for product, value in ((OURS, ours), (BARE, bare), (LIFTED, 10.0), (BEFORE, before)):
        found.add(LATENCY, product, value)
    return found


@pytest.mark.parametrize(
    ("ours", "bare", "before", "verdict"),
    [
        (11.5, 10.0, 20.0, "held"),
        (11.6, 10.0, 20.0, "behind"),
        (10.0, 10.0, 13.0, "behind"),
        (10.0, 10.0, None, "not measured"),
        (12.0, 10.0, None, "behind"),
        (None, 10.0, 20.0, "not measured"),
    ],
)
def test_less_is_held_up_to_its_bounds(
    ours: float | None, bare: float | None, before: float | None, verdict: str
):
    assert LATENCY.verdict(ours, bare, before) == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"), [(99.0, "held"), (90.0, "behind"), (89.0, "behind"), (200.0, "held")]
)
def test_more_is_held_from_its_bounds_on(ours: float, verdict: str):
    assert THROUGHPUT.verdict(ours, 100.0, 90.0) == verdict


def test_a_bound_on_the_value_itself_needs_no_other_product():
    sent = figures.SENT["exec"]
    assert sent.verdict(2048, None, None) == "held"
    assert sent.verdict(2049, 2049, None) == "behind"


def test_a_figure_without_targets_has_no_verdict():
    assert Figure("anything", "ms").verdict(5.0, 1.0, 1.0) == ""


def test_targets_read_as_the_table_shows_them():
    assert LATENCY.target() == "≤ 1.15 x bare, ≤ 0.75 x predecessor"
    assert figures.STREAMS_WHOLE.target() == "≥ 100"
    assert Figure("x", "", targets=Targets(value=2048)).target() == "≤ 2048"


def test_every_figure_is_a_row_of_its_own():
    assert len({(figure.name, figure.engine) for figure in FIGURES}) == len(FIGURES)


def test_a_row_shows_each_product_each_ratio_and_the_verdict():
    row = report.table(results(ours=30.0)).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["30.0", "20.0", "10.0", "40.0"]
    assert cells[6:9] == ["1.50", "3.00", "0.75"]
    assert cells[-1] == "**behind**"


def test_the_best_setting_of_each_product_counts():
    found = Results()
    found.add(THROUGHPUT, BEFORE, 30.0, setting="4 workers")
    found.add(THROUGHPUT, BEFORE, 40.0, setting="16 workers")
    assert found.best(THROUGHPUT, BEFORE) == (40.0, "16 workers")
    assert results().best(LATENCY, OURS) == (20.0, "")
    assert results().best(THROUGHPUT, OURS) is None


def test_the_percentile_of_a_figure_counts():
    assert report.percentile([3.0], 95) == 3.0
    assert report.percentile([1.0, 2.0, 10.0], 50) == 2.0
    assert report.percentile([float(number) for number in range(101)], 95) == 95.0


def test_the_conclusion_is_one_sentence_that_names_what_fell_behind():
    assert report.conclusion(results()) == "No figure fell behind its target: 1 held."
    behind = report.conclusion(results(ours=50.0))
    assert behind == "1 fell behind: latency, 1 client, median (app-server); 0 held."


def test_json_holds_every_sample_and_every_verdict():
    content = json.loads(json.dumps(report.as_json(results(ours=50.0))))
    (row,) = content["rows"]
    assert (row["codexsite"], row["ours_to_bare"], row["verdict"]) == (50.0, 2.5, "behind")
    assert {sample["product"] for sample in content["samples"]} == {OURS, BARE, LIFTED, BEFORE}


def test_the_picture_is_well_formed_and_marks_what_is_behind():
    drawn = picture.draw(report.rows(results(ours=50.0)), "2 cores & a load <of> 1")
    root = ElementTree.fromstring(drawn)
    kinds = [part.get("class") for part in root.iter("{http://www.w3.org/2000/svg}rect")]
    # The legend has one of each kind; both bars of the row are behind.
    assert kinds.count("behind") == 3
    assert "2 cores & a load <of> 1" in "".join(root.itertext())


def test_bars_are_turned_so_that_shorter_is_better():
    found = Results()
    for product, value in ((OURS, 50.0), (BARE, 100.0), (BEFORE, 25.0)):
        found.add(THROUGHPUT, product, value)
    (row,) = report.rows(found)
    bare, before = picture.bars(row)
    assert (bare.length, before.length) == (2.0, 0.5)
    assert (bare.is_behind, before.is_behind) == (True, False)


def test_pieces_must_be_whole_in_order_and_ones_own():
    assert check_pieces("7.0.1.5 7.1.2.5 ", "7", 2) == [1.5, 2.5]
    for wrong in ("7.0.1.5", "7.1.2.5 7.0.1.5", "7.0.1.5 8.1.2.5", "7.0.1.5 7.0.1.5", "no"):
        with pytest.raises(ValueError, match="not the 2 pieces"):
            check_pieces(wrong, "7", 2)


def test_arrivals_tell_single_deltas_delays_and_gaps():
    answer = Asked(0.0, None, [1000.0, 1100.0, 1200.0], [(1.01, "a "), (1.25, "b c ")])
    own, delays, gaps = arrivals([answer])
    assert own == pytest.approx(100 / 3)
    assert delays == pytest.approx([10.0, 150.0, 50.0])
    assert gaps == pytest.approx([240.0, 0.0])
