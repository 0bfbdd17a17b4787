"""Draw the pictures of README.md again: `make pictures`, after the page has changed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import timm
from browser import Page, chromium

import fxprune

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
# File -> model, the module that is open, the group that is lit.
DRAWN = {
    "deit.png": ("deit_base_patch16_224", "blocks.0", "blocks.0.attn.heads"),
    "swin.png": ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", "layers.0.blocks.0.attn.heads"),
}


def main() -> None:
    with chromium() as browser, TemporaryDirectory() as folder:
        for file, (name, opened, lit) in DRAWN.items():
            model = timm.create_model(name).eval()
            pruned = fxprune.prune(model, 0.5)
            page = Page(
                browser, fxprune.draw(model, Path(folder) / "page.html", pruned=pruned, modules=opened)
            )
            page.click_group(lit)
            page.tab.wait_for_timeout(500)
            page.picture().save(PICTURES / file, optimize=True)
            page.close()


if __name__ == "__main__":
    main()
