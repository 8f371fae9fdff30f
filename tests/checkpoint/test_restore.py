"""Test that `restore` copies the matching leaves and reports the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain import checkpoint, optim, tree
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import train_state, trees


@given(
    saved=st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 3), st.sampled_from(
        [torch.float32, torch.bfloat16, torch.int64]))),
    wanted=st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 3), st.sampled_from(
        [torch.float32, torch.bfloat16, torch.int64]))),
)  # fmt: skip
def test_report_of_restore_lists_every_leaf_by_its_outcome(memory_path_factory, saved, wanted):
    source = {name: torch.full((n,), 2, dtype=dtype) for name, (n, dtype) in saved.items()}
    like = {name: torch.full((n,), 5, dtype=dtype) for name, (n, dtype) in wanted.items()}
    path = memory_path_factory()
    checkpoint.save(path, source)
    for given_source in (path, source):
        new, report = checkpoint.restore(given_source, like)
        fits = {
            name for name in saved.keys() & wanted.keys()
            if saved[name][0] == wanted[name][0]
            and (saved[name][1] == wanted[name][1]
                 or torch.int64 not in (saved[name][1], wanted[name][1]))
        }  # fmt: skip
        at = {name: f"[{name!r}]" for name in "abcdef"}
        assert set(report.loaded) == {at[name] for name in fits}
        assert set(report.converted) == {at[n] for n in fits if saved[n][1] != wanted[n][1]}
        assert set(report.missing) == {at[name] for name in wanted.keys() - saved.keys()}
        assert set(report.different) == {at[n] for n in (wanted.keys() & saved.keys()) - fits}
        assert set(report.unused) == {at[name] for name in saved.keys() - wanted.keys()}
        assert report.complete == (fits == wanted.keys())
        for name, leaf in new.items():
            assert leaf.dtype == like[name].dtype
            assert leaf.tolist() == [2 if name in fits else 5] * len(leaf)
            if name in fits:
                assert leaf.data_ptr() != source[name].data_ptr()
        str(report)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@given(state=trees())
def test_restore_from_the_same_state_is_complete(state):
    new, report = checkpoint.restore(state, like=state)
    assert report.complete
    assert not report.unused
    assert_same_bits(new, state)


def fine_tuned(classes: int):
    def model():
        return torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, classes)
        )

    init_state, *_ = ftrain.make_steps(
        model, lambda m, x: m(x).square().mean(), optim.sgd(0.1, momentum=0.9)
    )
    return init_state


def test_restore_into_a_model_with_another_head_and_optimizer_keeps_the_body(tmp_path):
    init_state, *_ = ftrain.make_steps(
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)),
        lambda m, x: m(x).square().mean(), optim.adamw(1e-3),
    )  # fmt: skip
    pretrained = init_state(0)
    checkpoint.save(tmp_path / "one", pretrained)
    like = fine_tuned(3)(1)
    state, report = checkpoint.restore(tmp_path / "one", like)
    assert_same_bits(state.params["0.weight"], pretrained.params["0.weight"])
    assert_same_bits(state.params["2.weight"], like.params["2.weight"])
    assert set(report.different) == {".params['2.weight']", ".params['2.bias']"}
    text = str(report)
    assert "float32[10] in the source, float32[3] in `like`" in text
    assert ".opt_state.mu['0.bias']" in text
    # Restore the parameters alone, from a checkpoint of a whole state.
    params, report = checkpoint.restore(
        tmp_path / "one", like.params, where=lambda path: None if "2." in path else ".params" + path
    )
    assert report.left == ("['2.bias']", "['2.weight']")
    assert report.complete
    assert_same_bits(params["0.bias"], pretrained.params["0.bias"])


def test_restore_keeps_the_layout_and_dtype_of_the_state_passed_as_like(tmp_path):
    checkpoint.save(tmp_path / "one", {"w": torch.arange(6.0).reshape(2, 3).t()})
    like = {"w": torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)}
    new, report = checkpoint.restore(tmp_path / "one", like)
    assert new["w"].stride() == (2, 1)
    assert new["w"].requires_grad
    assert new["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert report.converted == {"['w']": "float32[3, 2] to float64[3, 2]"}


def test_restore_copies_one_source_leaf_into_two_leaves(tmp_path):
    checkpoint.save(tmp_path / "one", {"w": torch.ones(2)})
    new, _ = checkpoint.restore(
        tmp_path / "one", {"a": torch.zeros(2), "b": torch.zeros(2)}, where=lambda path: "['w']"
    )
    assert new["a"].data_ptr() != new["b"].data_ptr()


def test_restore_report_truncates_long_lists():
    source = {str(i): torch.zeros(1) for i in range(30)}
    _, report = checkpoint.restore(source, train_state(0))
    assert "... and 20 more" in str(report)
    assert len(tree.leaves(source)) == len(report.unused)
