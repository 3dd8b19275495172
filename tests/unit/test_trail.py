"""Which folders of a confinement are looked at."""

from __future__ import annotations

from proxy.trail import _outermost


def test_a_root_inside_another_is_looked_at_once():
    assert _outermost(["/w/b", "/w", "/v"], []) == ["/v", "/w"]


def test_a_root_behind_a_closed_folder_is_looked_at_on_its_own():
    assert _outermost(["/w", "/w/shut/own"], ["/w/shut"]) == ["/w", "/w/shut/own"]
