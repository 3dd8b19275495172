from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks import picture, report
from benchmarks.report import BARE, BEFORE, OURS, Results, Target, of_engine

LATENCY = of_engine(report.LATENCY, "app-server")
THROUGHPUT = of_engine(report.THROUGHPUT, "app-server")


def results(ours: float = 20.0, bare: float = 20.0, before: float = 40.0) -> Results:
    found = Results()
    for product, value in ((OURS, ours), (BARE, bare), (BEFORE, before)):
        found.add(LATENCY, product, value)
    return found


@pytest.mark.parametrize(
    ("limit", "is_least", "value", "is_held"),
    [
        (1.1, False, 1.1, True),
        (1.1, False, 1.11, False),
        (0.9, True, 0.9, True),
        (0.9, True, 0.89, False),
    ],
)
def test_a_target_is_held_up_to_its_limit(
    limit: float, is_least: bool, value: float, is_held: bool
):
    assert Target(limit, BARE, is_least).is_held_by(value) is is_held


def test_a_figure_is_judged_against_each_product_that_its_targets_name():
    assert results().behind() == []
    (behind,) = results(ours=31.0, before=200.0).behind()
    assert behind == "latency, 1 client, median (app-server): 1.55, wanted ≤ 1.15 x bare codex"
    assert len(results(ours=31.0).behind()) == 2


def test_what_was_not_measured_is_not_judged():
    found = Results()
    found.add(LATENCY, OURS, 20.0)
    assert found.judged(LATENCY) == []
    assert "| held" not in report.table(found)


def test_the_best_setting_of_each_product_counts():
    found = Results()
    for product, value, setting in (
        (OURS, 50.0, "1 worker"),
        (OURS, 60.0, "4 workers"),
        (BARE, 60.0, ""),
    ):
        found.add(THROUGHPUT, product, value, setting)
    assert found.best(THROUGHPUT, OURS) == (60.0, "4 workers")
    assert found.behind() == []


def test_the_table_says_which_row_is_behind():
    rows = report.table(results(ours=100.0)).splitlines()
    assert rows[2].rstrip(" |").endswith("behind")
    assert "5.00" in rows[2]


def test_percentiles_of_one_and_of_many_samples():
    assert report.percentile([3.0], 95) == 3.0
    assert report.percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_json_has_the_samples_and_the_verdicts():
    found = report.as_json(results(ours=100.0))
    assert {row["product"]: row["samples"] for row in found["rows"]} == {
        OURS: [100.0], BARE: [20.0], BEFORE: [40.0]
    }  # fmt: skip
    assert [verdict["is_held"] for verdict in found["verdicts"]] == [False, False]


def test_the_picture_is_xml_with_a_bar_for_each_target_and_its_number():
    found = results(ours=100.0)
    for product, value in ((OURS, 60.0), (BARE, 30.0), (BEFORE, 60.0)):
        found.add(THROUGHPUT, product, value)
    root = ElementTree.fromstring(picture.draw(found))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert [bar.get("class") for bar in bars] == ["behind", "behind", "held", "behind"]
    # Twice the throughput is half of the time.
    assert texts[3::2] == ["5.00", "2.50", "0.50", "1.00"]
