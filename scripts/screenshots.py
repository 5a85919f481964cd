"""Makes the pictures in `docs/images/` with the commands that they show, on models made here.

    python scripts/screenshots.py                 # all of them
    python scripts/screenshots.py plan-80 page    # those whose names begin so

Plans are made for models of 1.1B and 70B shapes: files of the right size with the right headers, and holes instead of data, which take no disk.
Comparisons and merges are of a small model of 16 layers with two changes of it that are drawn at random, from a fixed seed, and differ by layer
and kind of tensor. Needs Chromium with its driver and selenium (`make test` installs the last).
"""

from __future__ import annotations

import html
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[1]
sys.path[:0] = [str(REPO / "benchmarks"), str(REPO / "tests"), str(REPO / "scripts")]

from example_models import write_models  # noqa: E402
from make_checkpoint import PRESETS, make_set  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from support.browser import Browser, found, running  # noqa: E402

IMAGES = REPO / "docs" / "images"
#: The frame of a terminal: no font is fetched, the reader's machine has one.
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #fff; }}
figure {{ display: inline-block; margin: 12px; border-radius: 9px; background: #16191d; color: #d7dbdf; box-shadow: 0 2px 9px #0004; overflow: hidden; }}
figcaption {{ background: #262b31; padding: 7px 14px; font: 13px system-ui, "DejaVu Sans", sans-serif; color: #aab2b9; }}
pre {{ margin: 0; padding: 12px 14px 14px; font: 13px/1.38 "DejaVu Sans Mono", "Liberation Mono", monospace; width: {width}ch; box-sizing: content-box; }}
</style><html data-ready="yes"><figure><figcaption>{title}</figcaption><pre>{code}</pre></figure></html>"""


class Terminal(NamedTuple):
    """A command in a terminal.

    Attributes:
        name: of the picture, without the width.
        command: what is typed, `plait` left out.
        widths: columns.
        rows: lines that are shown at most; all when 0.
    """

    name: str
    command: str
    widths: tuple[int, ...] = (80, 140)
    rows: int = 0


class PageShot(NamedTuple):
    """A page in a window.

    Attributes:
        name: of the picture, without the colours.
        command: that prints it, or writes it to `{file}`.
        act: what is done with it before the picture is taken.
        height: of the window, in pixels.
    """

    name: str
    command: str
    act: Callable[[Browser], None]
    height: int = 1100


def nothing(browser: Browser) -> None:
    """The page as it opens."""


def unfold(browser: Browser) -> None:
    """A way of merging unfolded, and its last pass; the graph at the top of the window."""
    browser.script("const g = document.querySelector('.graph'); g.plaitGraph.toggle('way A'); g.plaitGraph.toggle('way A 1'); g.scrollIntoView()")


def layers(browser: Browser) -> None:
    """The layers of the graph unfolded, and one of them."""
    browser.script("const g = document.querySelector('.graph'); g.plaitGraph.toggle('layers 0'); g.plaitGraph.toggle('layers 0 41'); g.scrollIntoView()")


def timeline(browser: Browser) -> None:
    """Memory over time and the budgets below it, with a readout."""
    browser.script("document.querySelector('.chart').closest('section').scrollIntoView()")
    for over in browser.all(".u-over")[:2]:
        browser.point(over, 60)


def tensors(browser: Browser) -> None:
    """Tensors that a search found."""
    box = browser.all("input[type=search]")[-1]
    box.send_keys("mlp layers.1")
    browser.script("arguments[0].closest('section').scrollIntoView()", box)


def threads(browser: Browser) -> None:
    """What was promised and measured, with a readout of the memory."""
    browser.point(browser.one(".u-over"))


def heat(browser: Browser) -> None:
    """The map of a comparison, with a cell that is read."""
    browser.script("document.querySelector('.heat').closest('section').scrollIntoView()")
    browser.point(browser.all(".heat tbody td")[40])


TERMINALS = (
    Terminal("plan", "plan ties.yml --memory 256MiB"),
    Terminal("plan-70b", "plan ties-70b.yml --memory 1GiB", (140,)),
    Terminal("diff", "inspect math code --base base --rank --quiet"),
    Terminal("report", "report out"),
)
PAGES = (
    PageShot("page", "plan ties-70b.yml --memory 1GiB --format html", nothing),
    PageShot("page-graph", "plan ties-70b.yml --memory 1GiB --format html", unfold, 760),
    PageShot("page-layers", "plan ties-70b.yml --memory 1GiB --format html", layers, 760),
    PageShot("page-memory", "plan ties-70b.yml --memory 1GiB --format html", timeline, 900),
    PageShot("page-tensors", "plan ties-70b.yml --memory 1GiB --format html", tensors, 620),
    PageShot("page-report", "report out --html {file}", threads, 1250),
    PageShot("page-diff", "inspect math code --base base --rank --quiet --html {file}", heat, 760),
)


def family(folder: Path) -> None:
    """The models of the guide, and a recipe for them."""
    write_models(folder)
    entries = [{"model": expert, "parameters": {"weight": 0.5, "density": 0.3}} for expert in ("math", "code")]
    (folder / "ties-small.yml").write_text(json.dumps({"merge_method": "ties", "base_model": "base", "models": entries, "dtype": "bfloat16"}))


def models(folder: Path) -> None:
    """What the commands are run on: a small family with values, and two sets of a base and two experts without; with recipes."""
    family(folder)
    for preset, recipe in (("1.1b", "ties.yml"), ("70b", "ties-70b.yml")):
        base, *experts = make_set(folder / f"models-{preset}", PRESETS[preset], 2, sparse=True)
        places = [path.rename(path.with_name(name)).relative_to(folder) for path, name in zip((base, *experts), ("base", "math", "code"), strict=True)]
        entries = [{"model": str(p), "parameters": {"weight": 0.5, "density": 0.3}} for p in places[1:]]
        (folder / recipe).write_text(json.dumps({"merge_method": "ties", "base_model": str(places[0]), "models": entries, "dtype": "bfloat16"}))


def plait(command: str, folder: Path, width: int = 140) -> str:
    """What a command prints on a terminal of so many columns, colours included."""
    env = {**os.environ, "COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-m", "plait", *command.split()], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def terminal(shot: Terminal, folder: Path, width: int) -> str:
    """Html of a terminal with a command and what it printed."""
    lines = plait(shot.command, folder, width).splitlines()
    if shot.rows and len(lines) > shot.rows:
        lines = [*lines[: shot.rows], f"... {len(lines) - shot.rows} more lines"]
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False)
    console.print(Text.assemble(("$ ", "bold green"), (f"plait {shot.command}", "bold")))
    console.print(Text.from_ansi("\n".join(lines)))
    code = console.export_html(inline_styles=True, code_format="{code}")
    return _TERMINAL.format(width=width, title=html.escape(f"{width} columns"), code=code)


@contextmanager
def stored(text: str) -> Iterator[Path]:
    """A file with the text, for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(text, "utf-8")
        yield path


def picture(browser: Browser, name: str, selector: str = "") -> None:
    """Store the window, or one element of it."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.png"
    shown = browser.one(selector) if selector else browser.driver
    shown.screenshot(str(path)) if selector else shown.save_screenshot(str(path))
    print(f"{path.relative_to(REPO)}: {path.stat().st_size / 1e3:.0f} KB")


def main(wanted: list[str]) -> None:
    """Make the pictures whose names begin with one of `wanted`, or all."""
    if found() is None:
        sys.exit("no Chromium with its driver and selenium here: install the packages chromium and chromium-driver, and selenium into the environment")

    def chosen(name: str) -> bool:
        return not wanted or any(name.startswith(w) for w in wanted)

    with tempfile.TemporaryDirectory() as place, running() as browser:
        folder = Path(place)
        models(folder)
        plait("merge ties-small.yml out --memory 256MiB --quiet", folder)
        for terminals in TERMINALS:
            for width in terminals.widths:
                if chosen(name := f"{terminals.name}-{width}"):
                    with stored(terminal(terminals, folder, width)) as page:
                        browser.open(page, 1600, 4000)
                        picture(browser, name, "figure")
        for shot in PAGES:
            names = {scheme: f"{shot.name}-{scheme}" for scheme in ("light", "dark")}
            if not any(map(chosen, names.values())):
                continue
            text = plait(shot.command.format(file="page.html"), folder)
            with stored((folder / "page.html").read_text("utf-8") if "{file}" in shot.command else text) as page:
                for scheme, name in names.items():
                    browser.open(page, 1280, shot.height, scheme)
                    shot.act(browser)
                    browser.settle()
                    picture(browser, name)


if __name__ == "__main__":
    main(sys.argv[1:])
