"""The interactive picture in a real browser: it opens offline and at once, and clicks do what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from browser import HEIGHT, Page, chromium
from helpers import images, small_vit
from torch import Tensor, nn

import fxprune
from fxprune import Analysis
from fxprune.show.pictures.html import MEASURES

SECONDS_TO_LOAD = 3.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        opened.new_page().close()  # its own start does not count
        yield opened


@pytest.fixture
def page(browser: Any, vit_analysis: Analysis, tmp_path: Path) -> Iterator[Page]:
    opened = Page(browser, fxprune.draw(vit_analysis, tmp_path / "vit.html"))
    yield opened
    opened.close()


@pytest.mark.slow
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


def test_every_group_lights_up_its_own_weights_and_no_others(page: Page, vit_analysis: Analysis) -> None:
    page.press("Open all")
    for group in vit_analysis.groups:
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


def test_a_click_on_a_word_selects_its_group_and_another_one_lets_go(
    page: Page, vit_analysis: Analysis
) -> None:
    page.press("Open all")
    page.click_word("blocks.0.attn.qkv.weight", "heads")
    (group,) = (g for g in vit_analysis.groups if g.name == "blocks.0.attn.heads")
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
    assert "frozen: taken apart element by element at unbind" in text


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


# ---------------------------------------------------------------- legible, in windows of every width


class Wordy(nn.Module):
    """Names, classes and labels that are longer than the columns are wide."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(8, 6) for _ in range(8))
        if depth:
            self.a_module_with_a_name_of_many_letters = Wordy(depth - 1)
        self.an_even_longer_name_of_a_projection_back_to_the_input = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "a_module_with_a_name_of_many_letters", nn.Identity())(x)
        wide = torch.cat([branch(x).relu() for branch in self.branches], -1)
        return x + self.an_even_longer_name_of_a_projection_back_to_the_input(wide)


class AClassWithANameThatIsTooLongForItsColumn(Wordy):
    pass


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a wordy model that was pruned, all of it open."""
    model = nn.Sequential(nn.Linear(4, 8), AClassWithANameThatIsTooLongForItsColumn(), nn.Linear(8, 3))
    x = torch.zeros(2, 4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    path = tmp_path_factory.mktemp("wordy") / "wordy.html"
    return fxprune.draw(model, path, pruned=pruned, example_inputs=x)


WIDTHS = pytest.mark.parametrize("width", [1280, 1400, 1920])


@WIDTHS
def test_columns_do_not_run_into_each_other(browser: Any, wordy: Path, width: int) -> None:
    """By the measure of every text, and in the picture: nothing is drawn where one column ends."""
    page = Page(browser, wordy, width)
    page.press("Open all")
    what_x, words_x, small = (MEASURES[name] for name in ("what_x", "words_x", "small"))
    sans, mono = (f"11px {MEASURES[name]}" for name in ("sans", "mono"))
    rows, words = page.data("rows"), page.data("words")
    ends = dict.fromkeys(rows["index"], 0.0)
    for row, x, text in zip(words["row"], words["x"], words["text"], strict=True):
        ends[row] = max(ends[row], x + page.width_of(text, f"12px {MEASURES['mono']}"))
    sized = width - 440 > MEASURES["wide"]  # the column of sizes needs room
    right = page.box["width"] - 12
    for i, row in enumerate(rows["index"]):
        count = right - page.width_of(rows["count"][i], mono)
        style = f"{rows['style'][i]} 12.5px {MEASURES['sans']}"
        name_end = what_x if rows["what"][i] else words_x
        assert rows["x"][i] + 14 + page.width_of(rows["shown_name"][i], style) < name_end
        assert what_x + page.width_of(rows["shown_what"][i], sans) < words_x
        assert ends[row] < (rows["size_x"][i] if sized and rows["size"][i] else count)
        if sized:
            assert rows["size_x"][i] + page.width_of(rows["shown_size"][i], mono) < count
    assert any(name.endswith("…") for name in rows["shown_name"])  # the model is wordy enough
    assert any(what.endswith("…") for what in rows["shown_what"])
    assert "…" in words["text"] or width == 1920
    assert page.inked(what_x - 8, what_x - 2) == page.inked(words_x - 8, words_x - 2) == []
    assert page.inked(what_x, words_x) != []  # else the picture would prove nothing
    longest = max(len(count) for count in rows["count"]) * small
    assert page.inked(right - longest - 6, right - longest - 2) == []
    assert page.complaints == []
    page.close()


@WIDTHS
def test_the_legend_is_seen(browser: Any, wordy: Path, width: int) -> None:
    """All of it, below the list of groups and beside the plot."""
    page = Page(browser, wordy, width)
    list_of_groups, plot = page.tab.locator(".bk-DataTable").first.bounding_box(), page.box
    for words in (
        "an op or a module",
        "a wire",
        "a group, in its colour",
        "frozen; hovering",
        "a product of axes",
    ):
        box = page.tab.get_by_text(words).last.bounding_box()
        assert box["y"] >= list_of_groups["y"] + list_of_groups["height"], words
        assert box["y"] + box["height"] <= HEIGHT, words
        assert box["x"] + box["width"] <= plot["x"], words
    page.close()
