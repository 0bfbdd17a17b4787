"""The interactive picture in a real browser: it opens offline and at once, and clicks do what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from browser import Page, chromium
from helpers import images, small_vit

import fxprune
from fxprune import Analysis

SECONDS_TO_LOAD = 3.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        opened.new_page().close()  # its own start does not count
        yield opened


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return fxprune.analyze(small_vit(), example_inputs=images())


@pytest.fixture
def page(browser: Any, analysis: Analysis, tmp_path: Path) -> Iterator[Page]:
    opened = Page(browser, fxprune.draw(analysis, tmp_path / "vit.html"))
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["deit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_large_models_load_at_once_and_light_up_exactly_the_sites(
    browser: Any, name: str, tmp_path: Path
) -> None:
    analysis = fxprune.analyze(timm.create_model(name).eval())
    path = fxprune.draw(analysis, tmp_path / "model.html")

    page = Page(browser, path)
    assert page.seconds < SECONDS_TO_LOAD
    assert page.requests == [path.as_uri()]
    for group in analysis.prunable[:4]:
        page.click_group(group.name)
        lit = page.lit()
        assert sorted(site for sites in lit.values() for site in sites) == sorted(map(str, group.sites))
        assert {*page.lit_on_screen()} == page.within_view(lit)
        for row, sites in lit.items():
            assert all(site.startswith(f"{row}.") or site.partition("[")[0] == row for site in sites)
    page.press("Open all")
    assert page.lit().keys() == {site.name for site in group.sites}
    assert page.complaints == []
    page.close()


def test_every_group_lights_up_its_own_weights_and_no_others(page: Page, analysis: Analysis) -> None:
    page.press("Open all")
    for group in analysis.groups:
        page.click_group(group.name)
        assert page.lit().keys() == {site.name for site in group.sites}
    assert page.complaints == []


def test_a_block_opens_on_a_click_and_closes_on_the_next(page: Page) -> None:
    page.press("Close all")
    page.click_row("blocks")
    closed = page.shown()
    assert "blocks.0" in closed
    assert "blocks.0.attn" not in closed

    page.click_row("blocks.0")
    assert {"blocks.0.attn", "blocks.0.norm1", "blocks.0.mlp"} <= {*page.shown()}
    assert "blocks.1.attn" not in page.shown()

    page.click_row("blocks.0")
    assert page.shown() == closed


def test_a_click_on_a_word_selects_its_group_and_another_one_lets_go(page: Page, analysis: Analysis) -> None:
    page.press("Open all")
    page.click_word("blocks.0.attn.qkv.weight", "heads")
    (group,) = (g for g in analysis.groups if g.name == "blocks.0.attn.heads")
    assert page.lit().keys() == {site.name for site in group.sites}

    page.click_word("blocks.0.attn.qkv.weight", "heads")
    assert page.lit() == {}
    assert page.lit_on_screen() == []


def test_search_shows_what_matches_and_what_it_stands_in(page: Page) -> None:
    before = page.shown()
    page.search("QKV")
    found = page.shown()
    assert {"blocks.0.attn.qkv", "blocks.1.attn.qkv.weight", "blocks.1"} <= {*found}
    assert "blocks.0.mlp" not in found

    page.search("")
    assert page.shown() == before


def test_hovering_over_a_whole_axis_says_why(page: Page) -> None:
    page.press("Open all")
    text = page.hover_word("blocks.0.attn.qkv.weight", "3")
    assert "whole: taken apart element by element at unbind" in text


def test_a_pruned_model_shows_sizes_before_and_after(browser: Any, tmp_path: Path) -> None:
    model = small_vit()
    pruned = fxprune.prune(model, 0.5, example_inputs=images())

    alone = Page(browser, fxprune.draw(pruned, tmp_path / "alone.html"))
    beside = Page(
        browser, fxprune.draw(model, tmp_path / "beside.html", pruned=pruned, example_inputs=images())
    )

    for page in (alone, beside):
        sizes = dict(zip(page.data("groups")["name"], page.data("groups")["size"], strict=True))
        assert sizes["embed"] == "48 → 24"
        assert sizes["blocks.0.mlp.hidden"] == "192 → 96"
        rows = page.data("all_rows")
        shapes = dict(zip(rows["path"], rows["size"], strict=True))
        assert shapes["blocks.0.mlp.fc1.weight"] == "192→96·48→24"
        assert page.complaints == []
        page.close()
