"""open_clip's towers computed from no more tokens than their features depend on: the same to rounding, or not offered.

A causal text tower that pools one token sees nothing behind it, so captions are encoded as one row of tokens without
padding (T = Σ lengths instead of n · context), and only attention sees them padded to the longest. Of the last block only
pooled tokens go on. A ViT's patches are embedded by a matrix product instead of a convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


class Packing(NamedTuple):
    """The tokens of n captions up to their pooled ones, one after the other: T tokens."""

    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], within the caption
    slots: Tensor  # int64 [T], in captions padded to the longest: row · length + position
    pooled: Tensor  # int64 [n], which of the T tokens are pooled
    ends: Tensor  # int64 [n], their positions
    length: int  # of the longest

    def pinned(self) -> "Packing":
        """The same in page-locked memory."""
        ids, positions, slots, pooled, ends = (value.pin_memory() for value in self[:5])
        return Packing(ids, positions, slots, pooled, ends, self.length)


def pack(tokens: Tensor, ends: Tensor) -> Packing:
    """Pack captions int64 [n, context] that are pooled at the positions ``ends`` [n]."""
    length = int(ends.max()) + 1
    rows, positions = (torch.arange(length) <= ends[:, None]).nonzero(as_tuple=True)
    return Packing(
        tokens[rows, positions], positions, rows * length + positions, (ends + 1).cumsum(0) - 1, ends, length
    )


@dataclass(frozen=True)
class TextTower:
    """A causal text tower of open_clip that pools one token, on packed captions."""

    tower: Any  # with token_embedding, positional_embedding, transformer, ln_final, text_projection
    eos: int | None  # pools at the first token of this kind; None: at the first of the largest

    def ends(self, tokens: Tensor) -> Tensor:
        """The positions int64 [n] of the pooled tokens, as open_clip finds them."""
        return (tokens if self.eos is None else (tokens == self.eos).int()).argmax(dim=-1)

    def __call__(self, packed: Packing, again: bool) -> Tensor:
        """Features [n, d], not normalised; ``again``: blocks are computed again in the backward pass."""
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
        for one in blocks:
            x = run(again, block, one, x, x, attend)
        x = run(again, block, last, x, x.index_select(0, packed.pooled), attend_pooled)
        return projected(tower.ln_final(x), tower.text_projection)


@dataclass(frozen=True)
class ImageTower:
    """open_clip's ViT. Patches are embedded by a matrix product; a class token that is pooled leaves the last block alone."""

    tower: Any

    def __call__(self, images: Tensor, again: bool) -> Tensor:
        """Features [n, d] of images [n, 3, h, w], not normalised; ``again``: as in TextTower."""
        tower = self.tower
        high, wide = tower.conv1.kernel_size
        n, channels, height, width = images.shape
        patches = images.reshape(n, channels, height // high, high, width // wide, wide)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * high * wide)
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
        for one in blocks:
            x = run(again, block, one, x, x, attend)
        one_token = tower.pool_type == "tok"
        x = run(again, block, last, x, x[:, :1] if one_token else x, attend_pooled if one_token else attend)
        return projected(tower._pool(x)[0], tower.proj)


def block(one: Any, x: Tensor, going_on: Tensor, attend: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """open_clip's residual block: all tokens ``x`` are attended to, and those ``going_on`` are what comes out."""
    attended: Tensor = going_on + one.ls_1(one.attn.out_proj(attend(one.attn, one.ln_1(x))))
    out: Tensor = attended + one.ls_2(one.mlp(one.ln_2(attended)))
    return out


def run(again: bool, step: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``step(*inputs)``, its activations kept or computed again in the backward pass."""
    return checkpoint(step, *inputs, use_reentrant=False) if again else step(*inputs)


def queries_and_keys(attn: Any, queries: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [..., w] of some tokens, keys and values [..., 2w] of all."""
    width = queries.shape[-1]
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    return linear(queries, weight[:width], bias[:width]), linear(others, weight[width:], bias[width:])


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of [n, lq, w] to [n, lk, w], ``mask`` added to the scores.

    On a CPU by matrix products: for sequences of tens of tokens they take a fraction of the time of torch's fused kernel
    there, above all backward in bfloat16.
    """
    q, k, v = (side.unflatten(-1, (heads, -1)).transpose(1, 2) for side in (q, k, v))
    if q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask.to(scores.dtype)
        out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


def projected(x: Tensor, projection: Any) -> Tensor:
    """``x`` times a matrix, through a linear layer, or itself."""
    if projection is None:
        return x
    out: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return out


def text_tower(model: nn.Module) -> TextTower | None:
    """The text tower of ``model`` for packed captions; None where their features could differ."""
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
    if not (causal and plain and pool in ("argmax", "eos") and known_blocks(tower.transformer)):
        return None
    return TextTower(tower, eos if pool == "eos" else None)


def image_tower(model: nn.Module) -> ImageTower | None:
    """The image tower of ``model``; None where it is no plain ViT of open_clip."""
    tower: Any = getattr(model, "visual", None)
    if type(model) not in (CLIP, CustomTextCLIP) or type(tower) is not VisionTransformer:
        return None
    plain = tower.attn_pool is None and not tower.output_tokens and tower.conv1.bias is None
    return ImageTower(tower) if plain and known_blocks(tower.transformer) else None


def known_blocks(transformer: Any) -> bool:
    """Whether every block is the one that ``block`` computes."""
    return all(
        type(one) is ResidualAttentionBlock
        and not hasattr(one, "ln_1_kv")
        and one.attn.in_proj_weight is not None
        and one.attn.in_proj_bias is not None
        and one.attn.bias_k is None
        and not one.attn.dropout
        for one in getattr(transformer, "resblocks", [None])
    )
