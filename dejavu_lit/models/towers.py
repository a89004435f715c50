"""open_clip's towers, computed from only the tokens that their features depend on; equal to open_clip's up to rounding.

In a causal text tower that pools one token, that token does not see what follows it. So captions are encoded as one row of
tokens without padding (T = Σ lengths instead of n · context), and only attention sees them padded to the longest. The last
block computes pooled tokens only. A ViT's patches are embedded by a matrix product instead of a convolution. Towers for which
this would not be exact are not supported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import embedding, normalize, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

BATCH = 16  # captions computed together where they may not affect each other
STEP = 8  # tokens: the lengths of these captions are rounded up to a multiple of it
WIDE = 384  # the least width from which a product by oneDNN saves more than the copies around it cost


class Packing(NamedTuple):
    """The T tokens of n captions, one caption after the other, each up to its pooled token.

    ids, positions: token ids, and positions within the caption, int64 [T]; slots: positions in captions padded to the longest,
    row · length + position, int64 [T]; pooled, ends: the pooled tokens among the T tokens, and within their captions, int64 [n];
    length: tokens of the longest caption.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    pooled: Tensor
    ends: Tensor
    length: int

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Packing":
        """The same elsewhere, as ``move`` returns each tensor: on a device, or in page-locked memory."""
        ids, positions, slots, pooled, ends = map(move, self[:5])
        return Packing(ids, positions, slots, pooled, ends, self.length)


def pack(tokens: Tensor, ends: Tensor, last: Tensor | None = None) -> Packing:
    """Pack captions int64 [n, context] that are pooled at the positions ``ends`` int64 [n].

    Tokens after ``last`` int64 [n] are left out, by default those after the pooled ones, which these do not see.
    """
    last = ends if last is None else last
    length = int(last.max()) + 1
    rows, positions = (torch.arange(length) <= last[:, None]).nonzero(as_tuple=True)
    pooled = (last + 1).cumsum(0) - 1 - last + ends
    return Packing(tokens[rows, positions], positions, rows * length + positions, pooled, ends, length)


@dataclass(frozen=True)
class TextTower:
    """A causal text tower of open_clip that pools one token, computed on packed captions.

    tower: the module with token_embedding, positional_embedding, transformer, ln_final and text_projection; eos: it pools at the
    first token with this id, for None at the first token with the largest id.
    """

    tower: Any
    eos: int | None

    def ends(self, tokens: Tensor) -> Tensor:
        """The positions int64 [n] of the pooled tokens, as open_clip finds them."""
        return (tokens if self.eos is None else (tokens == self.eos).int()).argmax(dim=-1)

    def __call__(self, packed: Packing, recompute: bool) -> Tensor:
        """Features [n, d], not normalized; with ``recompute``, blocks are recomputed in the backward pass."""
        tower, (n, length) = self.tower, (len(packed.ends), packed.length)
        dtype = tower.transformer.get_cast_dtype()
        x = embedding(packed.ids, tower.token_embedding.weight).to(dtype)
        x = x + embedding(packed.positions, tower.positional_embedding).to(dtype)

        def padded(vectors: Tensor) -> Tensor:
            empty = vectors.new_zeros(n * length, vectors.shape[-1])
            return empty.index_copy(0, packed.slots, vectors).view(n, length, -1)

        causal = tower.attn_mask[:length, :length]

        def attend(attn: Any, h: Tensor) -> Tensor:
            q, k, v = padded(linear(h, attn.in_proj_weight, attn.in_proj_bias)).chunk(3, dim=-1)
            return attention(q, k, v, attn.num_heads, causal).flatten(0, 1).index_select(0, packed.slots)

        def attend_pooled(attn: Any, h: Tensor) -> Tensor:
            q, kv = queries_and_keys(attn, h.index_select(0, packed.pooled), h)
            k, v = padded(kv).chunk(2, dim=-1)
            mask = causal.index_select(0, packed.ends)[:, None, None]  # [n, 1, 1, length]
            return attention(q[:, None], k, v, attn.num_heads, mask).flatten(0, 1)

        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = run(recompute, residual_block, block, x, x, attend)
        x = run(recompute, residual_block, last, x, x.index_select(0, packed.pooled), attend_pooled)
        return project(tower.ln_final(x), tower.text_projection)

    def separately(self, tokens: Tensor) -> Tensor:
        """Features [n, d] of tokens int64 [n, context], each the same to the last bit whatever the other captions are.

        Rounding depends on the shape of a computation. So captions are computed in batches of one shape, BATCH rows of a
        multiple of STEP tokens, which depends on a caption's own length alone.
        """
        ends = self.ends(tokens)
        lengths = ((ends // STEP + 1) * STEP).clamp(max=tokens.shape[1])
        order: list[Tensor] = []
        features: list[Tensor] = []
        for length in lengths.unique().tolist():
            for rows in (lengths == length).nonzero()[:, 0].split(BATCH):
                batch = torch.cat([rows, rows[:1].expand(BATCH - len(rows))])
                packed = pack(tokens[batch], ends[batch], torch.full_like(batch, length - 1))
                order.append(rows)
                features.append(self(packed, recompute=False)[: len(rows)])
        return torch.cat(features)[torch.cat(order).argsort()]


@dataclass(frozen=True)
class ImageTower:
    """open_clip's VisionTransformer. If the class token is pooled, the last block computes only that token."""

    tower: Any

    def __call__(self, images: Tensor, recompute: bool) -> Tensor:
        """Features [n, d] of images [n, 3, h, w], not normalized; ``recompute`` as in TextTower."""
        tower = self.tower
        patch_height, patch_width = tower.conv1.kernel_size
        n, channels, height, width = images.shape
        patches = images.reshape(n, channels, height // patch_height, patch_height, width // patch_width, patch_width)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * patch_height * patch_width)
        x = linear(patches, tower.conv1.weight.flatten(1))
        x = torch.cat([tower.class_embedding.to(x.dtype).expand(n, 1, -1), x], dim=1)
        x = tower.ln_pre(tower.patch_dropout(x + tower.positional_embedding.to(x.dtype)))

        def attend(attn: Any, h: Tensor) -> Tensor:
            q, k, v = linear(h, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
            return attention(q, k, v, attn.num_heads)

        def attend_pooled(attn: Any, h: Tensor) -> Tensor:
            q, kv = queries_and_keys(attn, h[:, :1], h)
            k, v = kv.chunk(2, dim=-1)
            return attention(q, k, v, attn.num_heads)

        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = run(recompute, residual_block, block, x, x, attend)
        class_token_only = tower.pool_type == "tok"
        outputs, attend_last = (x[:, :1], attend_pooled) if class_token_only else (x, attend)
        x = run(recompute, residual_block, last, x, outputs, attend_last)
        return project(tower._pool(x)[0], tower.proj)


def unit_features(
    tower: ImageTower | TextTower | None, encode: Callable[..., Tensor], inputs: Any, recompute: bool = False
) -> Tensor:
    """L2-normalized features [n, d] of a tower's inputs; without one, of its model's, as ``encode`` gives them."""
    return encode(inputs, normalize=True) if tower is None else normalize(tower(inputs, recompute), dim=-1)


def residual_block(block: Any, x: Tensor, outputs: Tensor, attend: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """open_clip's residual block: attends to all tokens ``x`` [n, l, w], and computes only ``outputs`` [n, m, w] of them."""
    attended: Tensor = outputs + block.ls_1(layer(block.attn.out_proj, attend(block.attn, block.ln_1(x))))
    expand, activation, contract = block.mlp
    hidden = activation(layer(expand, block.ln_2(attended)))
    return attended + cast(Tensor, block.ls_2(layer(contract, hidden)))


def layer(module: Any, x: Tensor) -> Tensor:
    """The output of a linear layer, by ``linear``."""
    return linear(x, module.weight, module.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer; a wide one in float32 by oneDNN if MKL is slow."""
    is_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and is_float32 and min(weight.shape) >= WIDE and mkl_is_slow():
        return cast(Tensor, OneDnnLinear.apply(x, weight, bias))
    return functional.linear(x, weight, bias)


class OneDnnLinear(torch.autograd.Function):
    """A linear layer by oneDNN; torch's own derivative would also keep oneDNN's copies of the input and of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            onednn_product(gradient, weight.t()) if of_x else None,
            onednn_product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., w] times the transposed weight [d, w], plus the bias [d]."""
    return functional.linear(x.to_mkldnn(), weight, bias).to_dense()


@cache
def mkl_is_slow() -> bool:
    """Whether MKL, which torch takes for products in float32 on a CPU, leaves the processor's AVX-512 unused.

    It uses it on Intel's processors only; on AMD's it reaches half of the rate of oneDNN (docs/performance.md).
    """
    info = Path("/proc/cpuinfo")
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and info.is_file() and "AuthenticAMD" in info.read_text()


def run(recompute: bool, step: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``step(*inputs)``, with activations kept, or recomputed in the backward pass."""
    return checkpoint(step, *inputs, use_reentrant=False) if recompute else step(*inputs)


def queries_and_keys(attn: Any, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [..., w] of some tokens, and keys with values [..., 2w] of all tokens."""
    width = queries.shape[-1]
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    return linear(queries, weight[:width], bias[:width]), linear(tokens, weight[width:], bias[width:])


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of queries [n, lq, w] to keys [n, lk, w], with ``mask`` added to the scores.

    On a CPU it uses matrix products: for sequences of tens of tokens they take a fraction of the time of torch's fused
    kernel, above all in the backward pass in bfloat16.
    """
    q, k, v = (vectors.unflatten(-1, (heads, -1)).transpose(1, 2) for vectors in (q, k, v))
    if q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask.to(scores.dtype)
        out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


def project(x: Tensor, projection: Any) -> Tensor:
    """``x`` [n, w] times a matrix [w, d], through a linear layer, or unchanged."""
    if projection is None:
        return x
    return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)


def text_tower(model: nn.Module) -> TextTower | None:
    """The text tower of ``model`` for packed captions; None if its features could differ."""
    tower: Any = (
        model if type(model) is CLIP else getattr(model, "text", None) if type(model) is CustomTextCLIP else None
    )
    if tower is None or (tower is not model and type(tower) is not TextTransformer):
        return None
    pool = tower.text_pool_type if tower is model else tower.pool_type
    eos: Any = tower.text_eos_id if tower is model else tower.eos_id
    mask = tower.attn_mask
    causal = mask is not None and torch.equal(mask.cpu(), torch.full(mask.shape, -torch.inf).triu(1))
    plain = getattr(tower, "cls_emb", None) is None and not getattr(tower, "output_tokens", False)
    if not (causal and plain and pool in ("argmax", "eos") and has_standard_blocks(tower.transformer)):
        return None
    return TextTower(tower, eos if pool == "eos" else None)


def image_tower(model: nn.Module) -> ImageTower | None:
    """The image tower of ``model``; None if it is not a plain ViT of open_clip."""
    tower: Any = getattr(model, "visual", None)
    if type(model) not in (CLIP, CustomTextCLIP) or type(tower) is not VisionTransformer:
        return None
    plain = tower.attn_pool is None and not tower.output_tokens and tower.conv1.bias is None
    # The convolution drops the pixels beyond the last whole patch.
    plain &= all(side % patch == 0 for side, patch in zip(tower.image_size, tower.patch_size, strict=True))
    return ImageTower(tower) if plain and has_standard_blocks(tower.transformer) else None


def has_standard_blocks(transformer: Any) -> bool:
    """Whether there are blocks, each of the kind that ``residual_block`` computes."""
    blocks = list(getattr(transformer, "resblocks", []))
    return bool(blocks) and all(
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and block.attn.in_proj_weight is not None
        and block.attn.in_proj_bias is not None
        and block.attn.bias_k is None
        and not block.attn.dropout
        for block in blocks
    )
