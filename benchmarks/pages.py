"""How fast the page of a large plan is made, opens and answers, in headless Chromium.

    python benchmarks/pages.py                        # 80 layers of a 70B model, TIES of a base and two experts
    python benchmarks/pages.py --preset moe-100k      # 100,298 tensors

The models are sparse files: right headers and no data. Opening is measured from navigation until every block of the page is drawn, in a new
browser with an empty profile each time; a search, unfolding the layers and a readout from the event to the next frame. Exits 1 when a page
of 80 layers takes 1.5 s to open, or has 5 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import machine
from make_checkpoint import PRESETS, make_set
from recipes import text_of
from report import save, table_of

import plait
from plait.plan_page import plan_page
from support.browser import found, running

MOST_BYTES, MOST_SECONDS = 5_000_000, 1.5
#: Each takes the time from now until the frame after what it does is painted.
_FRAME = (
    "const done = arguments[arguments.length - 1], begun = performance.now();{}; requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)))"
)
DEEDS = {
    "search": "const box = [...document.querySelectorAll('input[type=search]')].at(-1); box.value = 'layers.7 q_proj'; box.dispatchEvent(new Event('input'))",
    "sort": "[...document.querySelectorAll('.table')].at(-1).querySelector('thead button').click()",
    "unfold the layers": "document.querySelector('.graph').plaitGraph.toggle('layers 0')",
    "fold all": "document.querySelector('[data-do=fold]').click()",
    "readout": "document.querySelector('.plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))",
    "light to dark": "document.getElementById('theme').click()",
}


def measured(page: Path, repeat: int) -> dict[str, float]:
    """Medians of seconds, over new browsers."""
    runs: list[dict[str, float]] = []
    for _ in range(repeat):
        with running() as browser:
            browser.open(page)
            times = {"open": browser.script("return performance.timing.loadEventEnd - performance.timing.navigationStart")}
            browser.driver.set_script_timeout(60)
            times |= {name: browser.driver.execute_async_script(_FRAME.format(deed)) for name, deed in DEEDS.items()}
            assert browser.requests() == []
            assert browser.complaints() == []
            runs.append(times)
    return {name: median(run[name] for run in runs) / 1000 for name in runs[0]}


def shown(data: dict[str, Any]) -> str:
    """The figures as a table."""
    rows = [[data["preset"], name, f"{1000 * seconds:.0f} ms"] for name, seconds in data["seconds"].items()]
    rows += [[data["preset"], "size of the page", f"{data['bytes'] / 1e6:.2f} MB"], [data["preset"], "tensors of the plan", f"{data['tensors']:,}"]]
    notes = [f"{data['method']}; medians of {data['repeat']} new browsers, opening with an empty profile", machine.line(data["machine"])]
    return table_of("Page of a plan", ["model", "what", "takes"], rows, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="70b")
    parser.add_argument("--method", default="ties")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the results, instead of benchmarks/results")
    args = parser.parse_args()
    if found() is None:
        sys.exit("no Chromium with its driver and selenium here")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        facts = machine.describe(folder)
        models = make_set(folder / "set", PRESETS[args.preset], 2, sparse=True)
        (folder / "recipe.yml").write_text(text_of(args.method, models))
        plan = plait.plan(folder / "recipe.yml", plait.Options(memory=args.memory, device="cpu"))
        begun = time.perf_counter()
        text = plan_page(plan).render()
        making = time.perf_counter() - begun
        page = folder / "plan.html"
        page.write_text(text, "utf-8")
        nbytes = page.stat().st_size
        seconds = {"make the page": making, **measured(page, args.repeat)}
    data = {
        "machine": facts,
        "preset": args.preset,
        "method": args.method,
        "tensors": len(plan.components),
        "bytes": nbytes,
        "seconds": seconds,
        "repeat": args.repeat,
    }
    save("pages" if args.preset == "70b" else f"pages_{args.preset}", data, shown(data), args.folder)
    if args.preset == "70b" and (nbytes >= MOST_BYTES or seconds["open"] >= MOST_SECONDS):
        sys.exit("too large, or too slow to open")


if __name__ == "__main__":
    main()
