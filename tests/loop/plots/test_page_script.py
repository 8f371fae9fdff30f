"""Test the script of the HTML page by running it in node with a minimal fake browser."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest

from ftrain.loop import plots
from tests.loop.plots.test_run_log import write

HERE = pathlib.Path(__file__).parent
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a page of three runs, the second without an evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for name, scale, held_out in (
        ("run-2", 20.0, 0.3),
        ("run-10", 30.0, None),
        ("run-1", 9.0, 0.1),
    ):
        rows: list[dict[str, Any]] = [
            {"step": step, "epoch": 1, "split": "train", "time": step / 10, "loss": scale / step}
            for step in range(0, 101, 10)
            if step
        ]
        if held_out is not None:
            rows.append({"step": 100, "epoch": 1, "split": "eval", "time": 11.0, "loss": held_out})
        runs.append(write(folder / name, rows))
    return plots.page(runs)


def used(page: str, test: str, folder: pathlib.Path) -> Any:
    """Return what `test` prints when it runs after the page's script."""
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert data is not None
    assert len(scripts) == 1
    files = [folder / name for name in ("data.json", "page.js", "test.js")]
    for file, text in zip(files, (data[1], scripts[0], test), strict=True):
        file.write_text(text, encoding="utf-8")
    assert NODE is not None
    ran = subprocess.run(
        [NODE, str(HERE / "page_dom.js"), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_dragging_zooms_all_page_charts_and_a_double_click_resets(
    page: str, tmp_path: pathlib.Path
) -> None:
    found = used(
        page,
        """
        const chart = charts[0], box = chart.box, was = [chart.scale.x0, chart.scale.x1];
        const at = (step) => chart.scale.X(step) + box.getBoundingClientRect().left;
        const drag = (from, to) => {
          box.fire("pointerdown", { button: 0, pointerId: 1, clientX: from, clientY: 60 });
          box.fire("pointermove", { clientX: to, clientY: 60 });
          const brushes = chart.hover.all("rect").length;
          box.fire("pointerup", { clientX: to, clientY: 60 });
          return brushes;
        };
        const ranges = () => charts.map((c) => c.scale && [c.scale.x0, c.scale.x1]);
        const brushes = drag(at(80), at(30));                        // backwards is as good
        const zoomed = ranges(), button = ids.reset.hidden;
        drag(at(50), at(50) + 4);                                    // a click that trembled
        const still = ranges();
        drag(at(40), at(40) + 2000);                                 // out of the chart
        const wide = ranges()[0];
        box.fire("dblclick");
        print({ was, brushes, zoomed, button, still, wide, back: ranges(), hidden: ids.reset.hidden });
        """,
        tmp_path,
    )
    assert found["was"] == [0, 100]
    assert found["brushes"] == 1
    assert found["zoomed"] == [pytest.approx([30, 80])] * len(found["zoomed"])
    assert found["button"] is False
    assert found["still"] == found["zoomed"]
    assert found["wide"] == pytest.approx([40, 80])
    assert found["back"] == [[0, 100]] * len(found["back"])
    assert found["hidden"] is True


def test_a_click_on_a_column_sorts_the_page_table(page: str, tmp_path: pathlib.Path) -> None:
    found = used(
        page,
        """
        const heads = named.table.all("th"), body = named.table.all("tbody")[0];
        const column = (name) => heads.findIndex((th) => th.textContent === name);
        const runs = () => body.children.map((tr) => tr.children[0].textContent);
        const sorted = {};
        for (const name of ["run", "eval/loss", "train/loss"]) {
          heads[column(name)].fire("click");
          const up = runs(), said = heads.map((th) => th.getAttribute("aria-sort"));
          heads[column(name)].fire("keydown", { key: "Enter" });
          sorted[name] = { up, down: runs(), said: said.filter((one) => one) };
        }
        const best = body.all("td").filter((td) => td.getAttribute("class").includes("best"));
        print({ sorted, best: best.map((td) => td.textContent) });
        """,
        tmp_path,
    )
    run, held_out, train = (found["sorted"][name] for name in ("run", "eval/loss", "train/loss"))
    assert run["up"] == ["run-1", "run-2", "run-10"]  # by number, not by letter
    assert run["down"] == ["run-10", "run-2", "run-1"]
    assert held_out["up"] == ["run-1", "run-2", "run-10"]  # a missing value is last
    assert held_out["down"] == ["run-2", "run-1", "run-10"]
    assert train["up"] == ["run-1", "run-2", "run-10"]
    assert all(each["said"] == ["ascending"] for each in (run, held_out, train))
    assert "0.1" in found["best"]


def test_page_buttons_select_runs_and_the_axis(page: str, tmp_path: pathlib.Path) -> None:
    found = used(
        page,
        """
        const button = (holder, text) => holder.all("button").find((b) => b.textContent.includes(text));
        const shown = () => charts[0].scale.curves.map((c) => name(c.s));
        const all = shown();
        button(ids.legend, "run-10").fire("click");
        const fewer = shown();
        button(ids.axis, "time").fire("click");
        print({ all, fewer, reach: [charts[0].scale.x0, charts[0].scale.x1] });
        """,
        tmp_path,
    )
    assert len(found["all"]) == 5
    assert sorted(set(found["all"]) - set(found["fewer"])) == ["run-10 · train"]
    assert found["reach"] == [0, 11]
