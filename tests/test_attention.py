import math

import pytest
import torch
from toys import difference

from gptft.attention import KVCache, Layout, attend


def written_out(q, k, v, visible):
    """Attention by its formula: softmax(q k^T / sqrt(hs)) v over the visible keys."""
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


def qkv(B=2, nh=4, n_kv=2, T=7, hs=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, n, T, hs, generator=g, dtype=torch.float64) for n in (nh, n_kv, n_kv)]


@pytest.mark.parametrize("n_kv", [1, 2, 4])
def test_causal_attention_is_its_formula(n_kv):
    q, k, v = qkv(n_kv=n_kv)
    assert difference(attend(q, k, v), written_out(q, k, v, torch.ones(7, 7).tril().bool())) < 1e-14


def test_documents_of_a_row_do_not_see_each_other():
    """Packing across documents was the most common packing bug elsewhere."""
    q, k, v = qkv(B=1)
    pos, doc = torch.tensor([[0, 1, 2, 0, 1, 0, 1]]), torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    visible = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(2, 2)).tril().bool()
    assert difference(attend(q, k, v, Layout(pos, doc)), written_out(q, k, v, visible)) < 1e-14


def test_cache_rows_have_their_own_lengths():
    """Rows of 3 and 6 tokens, then one more each: every query sees its own row up to itself and no stale key."""
    q, k, v = qkv(n_kv=4)
    cache = KVCache(1, 2, 4, 10, 8, "cpu", torch.float64)
    cache.k.fill_(1e3), cache.v.fill_(1e3)  # what was never written must never be seen
    first = Layout(torch.arange(6).expand(2, -1), end=6, fresh=True)
    cache.write(0, k[:, :, :6], v[:, :, :6], first)
    step = Layout(torch.tensor([[3], [6]]), end=7)
    keys, values = cache.write(0, k[:, :, 6:], v[:, :, 6:], step)
    out = attend(q[:, :, 6:], keys, values, step)
    for row, length in enumerate((3, 6)):
        chosen = [*range(length), 6]
        one = written_out(
            q[row : row + 1, :, 6:],
            k[row : row + 1, :, chosen],
            v[row : row + 1, :, chosen],
            torch.ones(1, length + 1).bool(),
        )
        assert difference(out[row], one[0]) < 1e-14


def test_keep_drops_the_other_rows():
    cache = KVCache(2, 3, 1, 4, 2, "cpu", torch.float32)
    cache.k += torch.arange(3)[:, None, None, None]
    cache.keep(torch.tensor([0, 2]))
    assert cache.k[:, :, 0, 0, 0].tolist() == [[0, 2], [0, 2]]


def test_several_queries_against_a_filled_cache():
    """Queries beyond a filled cache are aligned at its end; SDPA's own causal flag aligns at the start."""
    q, k, v = qkv(n_kv=4)
    cache = KVCache(1, 2, 4, 7, 8, "cpu", torch.float64)
    cache.write(0, k[:, :, :4], v[:, :, :4], Layout(torch.arange(4).expand(2, -1), end=4, fresh=True))
    layout = Layout(torch.arange(4, 7).expand(2, -1), end=7)
    keys, values = cache.write(0, k[:, :, 4:], v[:, :, 4:], layout)
    whole = written_out(q, k, v, torch.ones(7, 7).tril().bool())
    assert difference(attend(q[:, :, 4:], keys, values, layout), whole[:, :, 4:]) < 1e-14


def test_attention_is_in_fp32_under_autocast_on_the_cpu():
    """16-bit attention would be slower there, and its probabilities would have 8 bits."""
    q, k, v = (x.float() for x in qkv(n_kv=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(q, k, v), attend(q.float(), k.float(), v.float()))
        assert attend(q, k, v).dtype == torch.float32
