"""Test checkpoints of ranks in commands, in loaded runs and in the snippet of their page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch

from ftrain import checkpoint, config, tree
from ftrain.checkpoint import Store
from ftrain.cli import main
from ftrain.distributed.save import publish
from ftrain.testing import assert_same_bits
from tests.distributed import forked
from tests.distributed.threads import each, layouts, local

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "distributed_checkpoints.md"
CONFIG = """
model: {name: mlp, inputs: 64, outputs: 10, hidden: [8]}
data: digits
max_steps: 6
batch_size: 16
compile: false
progress: false
threads: 1
checkpoint: {every: 3}
"""


def publish_in_pieces(self, collected, step, replace):
    """Publish a checkpoint as two ranks do, each with half of the rows."""
    state = tree.unflatten(collected.structure, collected.leaves)
    shards = layouts(state, 2)

    def one(peers):
        leaves = tree.leaves(local(state, shards[peers.rank]))
        content = dataclasses.replace(collected, leaves=leaves)
        return publish(lambda: content, shards[peers.rank], str(self._numbered.path(step)), peers)

    for result in each(2, one):
        assert isinstance(result, checkpoint.Manifest), result


def test_run_with_checkpoints_of_several_ranks_can_be_compared_loaded_and_resumed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    assert main(["train", "config.yaml", "output_dir=a"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_publish", publish_in_pieces)
        assert main(["train", "config.yaml", "output_dir=b"]) == 0
    assert Store("b/checkpoints").latest().joinpath("rank-00001-00000.safetensors").exists()
    capsys.readouterr()
    assert main(["diff", "a", "b"]) == 0
    assert "checkpoints: equal at all common steps: 3, 6" in capsys.readouterr().out
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    predicted = [config.load_run(name).predict(x) for name in ("a", "b")]
    assert_same_bits(predicted[1], predicted[0])
    assert main(["resume", "b", "max_steps=9"]) == 0
    assert Store("b/checkpoints").steps()[-1] == 9


def snippet(mesh, folder):
    """Run the snippet of the page on checkpoints of ranks, in the directory `folder`."""
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(text.replace('"run"', repr(folder)), "snippet", "exec"), {})


def test_snippet_on_checkpoints_of_ranks_resumes_with_another_number_of_ranks(tmp_path):
    for number, ranks in enumerate((2, 1, 3), 1):
        with forked.ranks(ranks, snippet, str(tmp_path / "run")) as pids:
            assert forked.exit_codes(pids, 60.0) == [0] * ranks
        like = {"w": torch.zeros(10, 3), "step": torch.tensor(0)}
        state, metadata = Store(tmp_path / "run").load(like)
        assert metadata == {"step": 5 * number}
        assert_same_bits(state["w"], torch.full((10, 3), 5.0 * number))
