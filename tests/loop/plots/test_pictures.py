"""Test plots and the HTML page: contents, dependencies, and no network access."""

import html.parser
import json
import re
import subprocess
import sys

import pytest
import torch

from ftrain.core.errors import DataError
from ftrain.loop import plots
from ftrain.loop.plots.page import HUES
from tests.loop.plots.test_run_log import write


@pytest.fixture
def runs(tmp_path):
    def rows(scale):
        for step in range(10, 101, 10):
            yield {
                "step": step,
                "epoch": step // 50,
                "split": "train",
                "time": step / 10,
                "loss": None if step == 50 else scale / step,
                "learning_rate": 1e-3,
                "skipped": 0,
                "layers/first": 0.5,
            }
        yield {
            "step": 100,
            "epoch": 2,
            "split": "eval",
            "time": 11.0,
            "loss": scale / 90,
            "accuracy": 0.9,
        }

    return [write(tmp_path / name, rows(scale)) for name, scale in (("one", 20.0), ("two", 30.0))]


class Elements(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def content(page):
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.S)[1])


def test_plots_page_contains_the_curves_and_is_reproducible(runs, tmp_path):
    page = plots.page(runs, tmp_path / "page.html", title="two runs")
    assert (
        (tmp_path / "page.html").read_text(encoding="utf-8")
        == page
        == plots.page(runs, title="two runs")
    )
    found = content(page)
    assert found["runs"] == ["one", "two"]
    assert [m["name"] for m in found["metrics"]] == [
        "loss",
        "accuracy",
        "learning_rate",
        "skipped",
        "layers/first",
    ]
    series = found["metrics"][0]["series"]
    assert [(s["run"], s["split"]) for s in series] == [
        (0, "eval"),
        (0, "train"),
        (1, "eval"),
        (1, "train"),
    ]
    assert series[1]["step"] == list(range(10, 101, 10))
    assert series[1]["y"][4] is None
    assert series[1]["y"][0] == 2


def test_plots_page_loads_no_external_resources(runs):
    page = plots.page(runs)
    parser = Elements()
    parser.feed(page)
    policy = next(a["content"] for tag, a in parser.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for tag, attributes in parser.found:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed")
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    addresses = set(re.findall(r"https?://[^\s\"'`]+", page))
    assert addresses <= {
        "http://www.w3.org/2000/svg"
    }  # an XML namespace, which browsers do not fetch
    assert "@import" not in page
    assert "url(" not in re.search(r"<style>(.*?)</style>", page, re.S)[1]


def test_plots_page_escapes_names_from_logs(tmp_path):
    evil = "</script><script>alert(1)</script>"
    folder = write(tmp_path / "run", [{"step": 1, "split": evil, "loss": 1.0, evil: 2.0}])
    page = plots.page(folder, title=evil)
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert content(page)["title"] == evil


def test_curves_draws_a_chart_for_each_metric(runs, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plots.curves(runs, tmp_path / "curves.png", smooth=0.5, title="two", dark=True)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == ["loss", "accuracy", "learning rate"]
    assert len({ax.get_xlim() for ax in shown}) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "train", "eval"]
    one = plots.curves(runs[0], metrics=["layers/first"], x="time")
    (line,) = one.axes[0].get_lines()
    assert list(line.get_xdata()) == [float(n) for n in range(1, 11)]


@pytest.mark.parametrize("value", [1e300, 1e301, 1e308, 1.7e308])
def test_curves_draws_a_loss_near_the_limit_of_float(tmp_path, value):
    """Values beyond 1e300, which overflow matplotlib's axes, are drawn as gaps, like infinity."""
    rows = [
        {"step": i, "epoch": 0, "split": "train", "time": i, "loss": value * (-1) ** i}
        for i in range(5)
    ]
    write(tmp_path / "run", [*rows, {"step": 6, "epoch": 0, "split": "train", "loss": 1.0}])
    plots.curves([tmp_path / "run"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def many(folder, n=20):
    names = [f"a-rather-long-name-of-a-run-with-learning-rate-{i:02}" for i in range(n)]
    rows = [{"step": s, "split": split, "loss": 1.0} for s in (1, 2) for split in ("train", "eval")]
    return [write(folder / name, rows) for name in names]


def test_curves_gives_many_runs_a_legend_and_distinct_colours(tmp_path):
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    runs = many(tmp_path)
    figure = plots.curves(runs)
    (legend,) = figure.legends
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    box, page = legend.get_window_extent(renderer), figure.bbox
    assert page.x0 <= box.x0 <= box.x1 <= page.x1
    assert page.y0 <= box.y0
    assert box.y1 <= figure.axes[0].get_tightbbox(renderer).y0
    lines = legend.get_lines()
    assert len({line.get_color() for line in lines}) == 20 + 1  # 20 runs, and grey for the splits
    assert len({text.get_text() for text in legend.get_texts()}) == 20 + 2
    page = plots.page(runs)
    assert content(page)["title"] == "a-rather-long-name-of-a-run-with-learning-rate-00 and 19 more"
    hues = re.findall(r"--s\d+:(#\w+);", page.partition("@media")[0])
    assert len(set(hues)) == len(hues) == HUES
    assert f"const HUES = {HUES};" in page


def shown_ticks(folder, metric, values):
    rows = [{"step": 10**5 * (i + 1), "split": "train", metric: v} for i, v in enumerate(values)]
    ax = plots.curves(write(folder / metric, rows), folder / "curves.png").axes[0]
    low, high = sorted(ax.get_ylim())
    where = zip(ax.get_yticks(), [text.get_text() for text in ax.get_yticklabels()], strict=True)
    across = [text.get_text() for text in ax.get_xticklabels()]
    assert not ax.yaxis.get_offset_text().get_text()  # no factor beside the axis
    assert not ax.xaxis.get_offset_text().get_text()
    return ax, [text for place, text in where if low <= place <= high], across


def test_curves_labels_axes_with_short_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    ax, ticks, across = shown_ticks(tmp_path, "samples_per_second", [40.0, 2e6, 2.1e6])
    # Speeds start at 0, because the first one includes compilation.
    assert (ax.get_yscale(), ax.get_ylim()[0]) == ("linear", 0)
    assert ticks[0] == "0"
    assert "1M" in ticks
    assert {"100k", "200k", "300k"} <= set(across)
    _, ticks, _ = shown_ticks(tmp_path, "learning_rate", [1e-5, 3e-5])
    assert {"0", "1e-5", "2e-5"} <= set(ticks)
    ax, ticks, _ = shown_ticks(tmp_path, "loss", [2.0, 1.0, 0.02])
    assert ax.get_yscale() == "log"
    assert ticks == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]
    ax, ticks, _ = shown_ticks(tmp_path, "accuracy", [None, None])
    assert not ticks
    assert [text.get_text() for text in ax.texts] == ["no finite value"]
    rows = [{"step": 10, "split": "train", "loss": 1.0, "time": 7200.0}]
    rows += [{"step": 20, "split": "train", "loss": 1.0, "time": 36000.0}]
    folder = write(tmp_path / "run", rows)
    ax = plots.curves(folder, x="time").axes[0]
    assert ax.get_xlabel() == "time (h)"
    assert list(ax.get_lines()[0].get_xdata()) == [2.0, 10.0]
    write(tmp_path / "run", rows[:1])
    ax = plots.curves(folder, tmp_path / "one.png").axes[0]
    # There is no tick between two steps.
    assert [text.get_text() for text in ax.get_xticklabels()] == ["9", "10", "11"]


def test_plots_refuse_invalid_arguments(runs):
    pytest.importorskip("matplotlib")
    with pytest.raises(DataError, match="expected one of accuracy, .*got 'los'"):
        plots.curves(runs, metrics=["los"])
    with pytest.raises(ValueError, match="x: expected one of step, epoch, time"):
        plots.curves(runs, x="samples")
    with pytest.raises(ValueError, match=r"smooth: expected a number in \[0, 1\)"):
        plots.curves(runs, smooth=1.0)


def test_image_grid_marks_wrong_predictions_and_refuses_invalid_input(tmp_path):
    pytest.importorskip("matplotlib")
    scores = torch.eye(3)[[0, 1, 1]]
    figure = plots.image_grid(
        torch.rand(3, 3, 8, 8) * 5 - 2,
        scores,
        torch.tensor([0, 1, 2]),
        tmp_path / "grid.png",
        names=["cat", "dog", "owl"],
    )
    assert (tmp_path / "grid.png").exists()
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == [
        "cat",
        "dog",
        "dog (is owl)",
    ]
    long = ["a golden retriever dog", "a Siberian husky"]
    figure = plots.image_grid(torch.rand(2, 8, 8), [0, 0], [0, 1], names=long, title="long " * 20)
    assert [ax.get_title() for ax in figure.axes] == [
        "a golde…etriever dog",
        "a golde…etriever dog\n(is a Siberian husky)",
    ]
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    words = [figure._suptitle, *(ax.title for ax in figure.axes)]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in words]
    assert all(0 <= box.x0 <= box.x1 <= figure.bbox.x1 for box in boxes)
    assert boxes[1].x1 < boxes[2].x0
    for shape in ((3, 8, 8), (3, 1, 8, 8), (3, 8, 8, 4)):
        plots.image_grid(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: expected shape.*got \(3, 5, 8, 8\)"):
        plots.image_grid(torch.rand(3, 5, 8, 8))
    with pytest.raises(ValueError, match="predictions: expected 3 entries, one per image, got 2"):
        plots.image_grid(torch.rand(3, 8, 8), [1, 2])


def test_plots_page_works_without_matplotlib_and_plots_curves_requires_it(runs):
    code = f"""
import sys
from ftrain.loop import plots
from ftrain.loop.plots.page import HUES
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
plots.page({str(runs[0])!r})
try:
    plots.curves({str(runs[0])!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'ftrain[examples]'" in done.stdout


def test_plots_accept_names_with_formulas_line_ends_and_surrogates(tmp_path):
    metrics = {"loss": 1.0, "$\\sqrt{^": 2.0, "\ud800": 3.0, "x\ny": 4.0}
    rows = [{"step": step, "split": "train", **metrics} for step in (1, 2)]
    logs = [write(tmp_path / name, rows) for name in ("$\\frac{", "$2", "a\nb")]
    figure = plots.curves(logs, tmp_path / "curves.png")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert {"loss", "$\\sqrt{^", "\\ud800", "x\\ny"} == set(titles)
    assert "a\\\\nb" in plots.page(logs, tmp_path / "page.html")
