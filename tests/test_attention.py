import dataclasses
import math

import pytest
import torch
from toys import difference, toy_model

from gptft import attention
from gptft.attention import KVCache, Layout, added_mask, attend, kernel_takes_groups, seen_keys


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
    cache.write(0, k[:, :, :6], v[:, :, :6], cache.begin([3, 6]))
    step = cache.extend()
    assert step.pos.tolist() == [[3], [6]]
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
    cache.begin([1, 2, 3])
    cache.keep([0, 2])
    assert cache.k[:, :, 0, 0, 0].tolist() == [[0, 2], [0, 2]]
    assert cache.lengths.tolist() == [1, 3]


def test_several_queries_against_a_filled_cache():
    """Queries beyond a filled cache are aligned at its end; SDPA's own causal flag aligns at the start."""
    q, k, v = qkv(n_kv=4)
    cache = KVCache(1, 2, 4, 7, 8, "cpu", torch.float64)
    cache.write(0, k[:, :, :4], v[:, :, :4], cache.begin([4, 4]))
    layout = cache.extend(3)
    keys, values = cache.write(0, k[:, :, 4:], v[:, :, 4:], layout)
    whole = written_out(q, k, v, torch.ones(7, 7).tril().bool())
    assert difference(attend(q[:, :, 4:], keys, values, layout), whole[:, :, 4:]) < 1e-14


def test_attention_is_in_fp32_under_autocast_on_the_cpu():
    """16-bit attention would be slower there, and its probabilities would have 8 bits."""
    q, k, v = (x.float() for x in qkv(n_kv=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(q, k, v), attend(q.float(), k.float(), v.float()))
        assert attend(q, k, v).dtype == torch.float32


def record_kernels(monkeypatch):
    """What torch's attention is asked for: a list of (is_causal, has a mask, groups), filled as it is called."""
    asked, real = [], torch.nn.functional.scaled_dot_product_attention

    def record(q, k, v, mask=None, dropout=0.0, causal=False, enable_gqa=False):
        asked.append((causal, mask is not None, q.size(1) != k.size(1)))
        return real(q, k, v, mask, dropout, causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", record)
    return asked


def band(T, sliding_window):
    """(T, T) True where a causal query sees a key with a sliding window, written out."""
    return torch.tensor(
        [[t - s >= 0 and (not sliding_window or t - s < sliding_window) for s in range(T)] for t in range(T)]
    )


@pytest.mark.parametrize("sliding_window", [1, 3, 6, 7, 8])
def test_a_sliding_window_is_its_formula(sliding_window, monkeypatch):
    """And one that is as long as the row, or longer, hides nothing: it must not cost the causal kernel."""
    asked = record_kernels(monkeypatch)
    q, k, v = qkv()
    out = attend(q, k, v, Layout.of_rows(7, "cpu"), sliding_window=sliding_window)
    assert difference(out, written_out(q, k, v, band(7, sliding_window))) < 1e-14
    assert asked == [(True, False, True)] if sliding_window >= 7 else [(False, True, True)]


def test_layers_that_see_everything_keep_the_causal_kernel(monkeypatch):
    """A model with a sliding window in some layers gave all of them a mask."""
    asked = record_kernels(monkeypatch)
    model = toy_model(window=5, full_layers=(1,))
    idx = torch.arange(12)[None]
    logits = model(idx)
    assert [causal for causal, _, _ in asked] == [False, True]
    assert difference(logits, model(idx, Layout(torch.arange(12)[None]))) < 1e-10  # all by masks


def test_heads_are_repeated_where_a_kernel_does_not_take_groups(monkeypatch):
    """The same result and gradients as with groups, masked and causal: CUDA's masked kernel takes no groups."""
    results = []
    layouts = (None, Layout(torch.arange(7)[None], torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))
    for takes in (True, False):
        monkeypatch.setattr(attention, "kernel_takes_groups", lambda *args, takes=takes: takes)
        asked = record_kernels(monkeypatch)
        tensors = [x.requires_grad_() for x in qkv(nh=6, n_kv=2)]
        out = torch.cat([attend(*tensors, layout) for layout in layouts])
        out.square().sum().backward()
        results.append(torch.cat([out.flatten(), *(x.grad.flatten() for x in tensors)]))
        assert [grouped for _, _, grouped in asked] == [takes, takes]
    assert difference(*results) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("S", [7, 8, 9])
def test_the_added_mask_says_what_the_boolean_one_does(dtype, S):
    """In the dtype of the queries, rows at multiples of 8 numbers: else CUDA's kernel copies it at every layer."""
    q, k, v = qkv(T=S, n_kv=4)
    visible = seen_keys(torch.arange(S)[None], torch.arange(S)[None], 3, torch.arange(S)[None] // 5)
    mask = added_mask(visible, dtype)
    assert mask.shape == visible.shape and mask.dtype == dtype
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1
    assert torch.equal(mask == 0, visible) and torch.equal(mask == -torch.inf, ~visible)
    layout = Layout(torch.arange(S)[None])
    layout._masks[3] = mask.double()
    assert difference(attend(q, k, v, layout, sliding_window=3), written_out(q, k, v, visible)) < 1e-14


def test_masks_are_made_for_every_reach_before_the_first_layer(monkeypatch):
    """A layer that makes one changes what compiled blocks have seen; the form is the device's."""
    monkeypatch.setattr(attention, "as_the_kernels_take_it", added_mask)
    layout = Layout(torch.arange(9)[None])
    layout.make_masks({0, 4}, torch.float32)
    monkeypatch.setattr(Layout, "visible", None)  # would fail if asked once more
    assert layout.mask(0).dtype == layout.mask(4).dtype == torch.float32


@pytest.mark.parametrize("sliding_window", [0, 4])
@pytest.mark.parametrize("lengths", [(6, 6), (3, 6)])
def test_one_query_of_a_group_is_its_formula(lengths, sliding_window, monkeypatch):
    """Decoding: the queries of a group stand in a column beside their key head, masked or not, with no groups left."""
    q, k, v = qkv(nh=6, n_kv=2)
    cache = KVCache(1, 2, 2, 10, 8, "cpu", torch.float64)
    cache.k.fill_(1e3), cache.v.fill_(1e3)
    cache.write(0, k[:, :, :6], v[:, :, :6], cache.begin(lengths))
    step = cache.extend()
    keys, values = cache.write(0, k[:, :, 6:], v[:, :, 6:], step)
    asked = record_kernels(monkeypatch)
    out = attend(q[:, :, 6:], keys, values, step, sliding_window=sliding_window)
    assert asked == [(False, lengths != (6, 6) or sliding_window > 0, False)]
    for row, length in enumerate(lengths):
        chosen = [*range(length), 6][-sliding_window:]
        visible = torch.ones(1, len(chosen)).bool()
        one = written_out(q[row : row + 1, :, 6:], k[row : row + 1, :, chosen], v[row : row + 1, :, chosen], visible)
        assert difference(out[row], one[0]) < 1e-14


def test_rows_that_have_ended_do_not_lengthen_the_cache():
    """The growing rows alone decide how many keys are looked at; the others may stand anywhere within."""
    cache = KVCache(1, 3, 1, 8, 2, "cpu", torch.float32)
    cache.begin([5, 2, 3])
    step = cache.extend(growing=[1, 2])
    assert step.end == 4 and step.pos.tolist() == [[3], [2], [3]] and not step.even
    cache.keep([1, 2])
    assert cache.extend().pos.tolist() == [[3], [4]]


def test_on_cuda_groups_go_to_flash_attention_alone(monkeypatch):
    """The kernels for masks, for fp32 and for cards before compute capability 8.0 take no groups."""
    cuda = torch.device("cuda")
    for capability, takes in (((9, 0), True), ((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert kernel_takes_groups(cuda, torch.bfloat16, masked=False) == takes
        assert kernel_takes_groups(cuda, torch.float16, masked=False) == takes
        assert not kernel_takes_groups(cuda, torch.bfloat16, masked=True)
        assert not kernel_takes_groups(cuda, torch.float32, masked=False)
    assert kernel_takes_groups(torch.device("cpu"), torch.float32, masked=True)


@pytest.mark.parametrize("changes", [{"n_kv_head": 2}, {"n_kv_head": 2, "window": 5, "full_layers": (1,)}])
def test_a_model_computes_the_same_with_masks_and_heads_as_cuda_has_them(monkeypatch, changes):
    """Training rows, packed rows, and decoding: added masks and repeated heads are the booleans and groups."""
    model, idx = toy_model(**changes), torch.arange(24).view(2, 12)
    packed = Layout(torch.arange(12).expand(2, -1) % 7, torch.arange(12).expand(2, -1) // 7)

    def compute():
        cache = model.new_cache(2, 12)
        logits = [model(idx), model(idx, dataclasses.replace(packed, _masks={}))]
        logits.append(model(idx[:, :9], cache.begin([9, 4]), cache))
        logits += [model(idx[:, n : n + 1], cache.extend(), cache) for n in (9, 10)]
        return torch.cat([each.flatten() for each in logits])

    plain = compute()
    monkeypatch.setattr(attention, "as_the_kernels_take_it", added_mask)
    monkeypatch.setattr(attention, "kernel_takes_groups", lambda device, dtype, masked: not masked)
    assert difference(compute(), plain) < 1e-10


@pytest.mark.parametrize("changes", [{"n_kv_head": 2}, {"n_kv_head": 2, "window": 5, "full_layers": (1,)}])
def test_a_compiled_model_is_one_graph_a_block(changes):
    """Whether a kernel takes groups is asked of the driver, which the compiler could not follow."""
    model, idx = toy_model(torch.float32, **changes), torch.arange(24).view(2, 12)
    plain = model(idx)
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    assert difference(model(idx), plain) < 1e-6
    torch.compiler.reset()
