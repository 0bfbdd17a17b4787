"""torch.nn's transformer layers as the calls of layers that they are.

Their own code asks for the values of a mask, and for conditions of a fused path, which no graph holds.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["transformer_decoder", "transformer_encoder", "transformer_encoder_layer"]


def transformer_encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """b n embed -> b n embed, without the fused inference path"""

    def attend(x: Tensor) -> Tensor:
        out, _ = self.self_attn(
            x,
            x,
            x,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            need_weights=False,
            is_causal=is_causal,
        )
        return self.dropout1(out)

    def feed_forward(x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    if self.norm_first:
        x = src + attend(self.norm1(src))
        return x + feed_forward(self.norm2(x))
    x = self.norm1(src + attend(src))
    return self.norm2(x + feed_forward(x))


def transformer_encoder(
    self: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """b n embed -> b n embed, without nested tensors"""
    for layer in self.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
    return src if self.norm is None else self.norm(src)


def transformer_decoder(
    self: nn.TransformerDecoder,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Tensor:
    """b n embed, b m embed -> b n embed, without a look at the values of a mask for a quicker kernel"""
    for layer in self.layers:
        tgt = layer(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=bool(tgt_is_causal),
            memory_is_causal=memory_is_causal,
        )
    return tgt if self.norm is None else self.norm(tgt)
