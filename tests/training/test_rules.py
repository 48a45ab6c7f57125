"""Rules for names that come from files."""

from pathlib import PureWindowsPath

import pytest

from lambdanets.training import rules


@pytest.mark.parametrize("name", ["", "/a.png", "../a.png", "a/../../b.png", "a\0.png"])
def test_names_that_lead_out_of_a_folder(name):
    assert not rules.is_inside(name)


@pytest.mark.parametrize("name", ["C:/Windows/x.png", "C:x.png", "\\x.png", "..\\..\\x.png", "//host/share/x.png"])
def test_names_that_lead_out_of_a_folder_on_windows(name, monkeypatch):
    monkeypatch.setattr(rules, "PurePath", PureWindowsPath)
    assert not rules.is_inside(name)
    assert rules.is_inside("cat/a b..png")
