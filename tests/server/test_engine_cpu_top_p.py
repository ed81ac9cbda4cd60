"""Top-p keeps what the stock code keeps, without sorting the vocabulary."""

from __future__ import annotations

import pytest
import torch

VOCABULARY = 5000


@pytest.mark.parametrize("spread", [0.1, 1.6, 4.0, 30.0])
def test_it_keeps_what_sorting_keeps(spread: float) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    from server.engine_cpu_top_p import apply_top_p

    torch.manual_seed(0)
    p = torch.tensor([1.0, 0.9, 0.5, 0.05, 1e-6, 0.999])
    logits = torch.randn(len(p), VOCABULARY, dtype=torch.float64) * spread
    kept = apply_top_p(logits.float(), p)
    stock = apply_top_k_top_p_pytorch(logits.clone(), None, p.double(), allow_cpu_sync=True)  # exact at the edge
    assert torch.equal(kept[0], logits[0].float())
    differ = (kept.isfinite() != stock.isfinite())[1:].sum(-1)
    assert differ.max() <= 1  # the last one, where float32 rounds its mass
    assert torch.equal(kept[kept.isfinite()], logits.float()[kept.isfinite()])
    assert kept[4].isfinite().sum() == 1
    assert kept[4].argmax() == logits[4].argmax()


def test_equals_share_a_bucket_and_no_more_of_them_than_needed_are_kept() -> None:
    from server.engine_cpu_top_p import apply_top_p

    kept = apply_top_p(torch.zeros(1, 8), torch.tensor([0.5]))
    assert kept.isfinite().sum() == 4


def test_what_is_forbidden_stays_so_and_what_is_no_number_harms_nobody() -> None:
    from server.engine_cpu_top_p import apply_top_p

    logits = torch.tensor([[1.0, -torch.inf, 1.0], [torch.nan, 0.0, 1.0], [3.0, 0.0, 0.0]])
    kept = apply_top_p(logits, torch.tensor([0.999, 0.5, 0.5]))
    assert kept[0].isfinite().tolist() == [True, False, True]
    assert kept[2].isfinite().tolist() == [True, False, False]
