"""SAM's mask decoder as inference on a CPU takes it: one slice at a time, in float32, up to rounding the same function.

What it spares: the projections of the image that its first layer needs are made once for both passes of a conditioned
model and for every changed click (a mask prompt reaches them through sixteen channels); projections of one input are
one product, with the positions' share as their bias; the last attention is asked by the two tokens that are read, which
need no projected image; the upscaling is two products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from SPDSegmentLib.networks.tiny_vit import gelu_

READ = 2
"""Tokens whose output is used: that of the quality and that of the one mask."""


@dataclass(frozen=True, eq=False)
class _ImageSide:
    """What a layer projects an image (N, C) to: keys for the tokens, queries to them, values for the tokens."""

    layer: Any
    weight: Tensor  # (C, 3d)
    bias: Tensor  # (N, 3d)

    @classmethod
    def of(cls, layer: Any, position: Tensor) -> _ImageSide:
        """From a layer of the transformer and the positions (N, C)."""
        asked, asks = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        parts = (asked.k_proj, asks.q_proj, asked.v_proj)
        weight = torch.cat([part.weight for part in parts]).t().contiguous()
        placed = position @ weight
        placed[:, -asked.internal_dim :] = 0  # values know no position
        return cls(layer, weight, placed + torch.cat([part.bias for part in parts]))

    def project(self, image: Tensor, out: Tensor | None = None) -> Tensor:
        """(N, C) to (N, 3d)."""
        return torch.addmm(self.bias, image, self.weight, out=out)


class SliceDecoder:
    """A mask decoder, made once of a merged model's.

    Args:
        decoder, prompt_encoder: SAM's.
        position: the dense positional encoding (1, C, h, w).
    """

    def __init__(self, decoder: Any, prompt_encoder: Any, position: Tensor) -> None:
        self._decoder = decoder
        transformer = decoder.transformer
        self._transformer, self._heads = transformer, transformer.num_heads
        self._channels, self._side = position.shape[1], position.shape[-2:]
        self._position = position[0].flatten(1).t().contiguous()
        self._layers = [_ImageSide.of(layer, self._position) for layer in transformer.layers]
        self._output_tokens = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))

        *self._shrink, last = prompt_encoder.mask_downscaling
        self._no_mask = prompt_encoder.no_mask_embed.weight
        by_mask = torch.cat((last.weight.flatten(1).t(), last.bias - self._no_mask))
        self._by_mask = torch.cat((by_mask, by_mask @ self._layers[0].weight), dim=1)

        final = transformer.final_attn_token_to_image
        self._keys, self._values = (
            part.weight.unflatten(0, (self._heads, -1)) for part in (final.k_proj, final.v_proj)
        )
        up1, self._norm, _, up2, _ = decoder.output_upscaling
        self._up = [(up.weight.permute(0, 2, 3, 1).flatten(1), up.bias.repeat(4)) for up in (up1, up2)]

    def prepare(self, embeddings: Tensor, *adjoining: tuple[Tensor, Tensor]) -> Tensor:
        """What passes begin with, (B, N, C + 3d).

        Args:
            embeddings: (B, C, h, w).
            adjoining: others (B, C, h, w) to be added, and the weights (C, C) that they go through.
        """
        width = self._channels + self._layers[0].weight.shape[1]
        prepared = torch.empty(len(embeddings), len(self._position), width)
        for row, out in enumerate(prepared):
            image = torch.add(self._flat(embeddings[row]), self._no_mask, out=out[:, : self._channels])
            for others, weight in adjoining:
                image.addmm_(self._flat(others[row]), weight.t())
            self._layers[0].project(image, out[:, self._channels :])
        return prepared

    def _flat(self, embedding: Tensor) -> Tensor:
        """(C, h, w) to (N, C) float32."""
        return embedding.permute(1, 2, 0).reshape(-1, self._channels).float()

    def __call__(self, images: Tensor, sparse: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`SPDModel.decode_batch`, one slice after the other.

        Args:
            images: (B, N, C + 3d) of :meth:`prepare`, or embeddings (B, C, h, w).
            sparse: (B, T, C), tokens of the prompts.
            mask: (B, 1, 4h, 4w), SAM's mask prompt.
        """
        found = []
        for row, tokens in enumerate(sparse):
            prepared = self.prepare(images[row : row + 1])[0] if images.dim() == 4 else images[row]
            if mask is not None:
                features = mask[row : row + 1]
                for step in self._shrink:
                    features = step(features)
                features = features[0].flatten(1)
                features = torch.cat((features, torch.ones_like(features[:1])))
                prepared = torch.addmm(prepared, features.t(), self._by_mask)
            found.append(self._decode(prepared, tokens))
        return torch.stack([logits for logits, _ in found]), torch.stack([quality for _, quality in found])

    def _decode(self, prepared: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, 4h, 4w) and the predicted IoU of one slice."""
        image, projected = prepared[:, : self._channels], prepared[:, self._channels :]
        first = tokens = torch.cat((self._output_tokens, sparse))
        for n, side in enumerate(self._layers):
            layer = side.layer
            keys, queries, values = (projected if n == 0 else side.project(image)).chunk(3, dim=1)
            if layer.skip_first_layer_pe:
                tokens = layer.self_attn(tokens[None], tokens[None], tokens[None])[0]
            else:
                placed = (tokens + first)[None]
                tokens = tokens + layer.self_attn(placed, placed, tokens[None])[0]
            tokens = layer.norm1(tokens)
            attention = layer.cross_attn_token_to_image
            asked = self._by_head(attention.q_proj(tokens + first))
            answer = F.scaled_dot_product_attention(asked[None], self._by_head(keys)[None], self._by_head(values)[None])
            tokens = layer.norm2(tokens + attention.out_proj(answer[0].transpose(0, 1).flatten(1)))
            tokens = layer.norm3(tokens + layer.mlp(tokens))

            attention = layer.cross_attn_image_to_token
            known = self._by_head(attention.k_proj(tokens + first))
            shares = ((known * known.shape[-1] ** -0.5) @ self._by_head(queries).transpose(1, 2)).softmax(1)
            answer = (self._by_head(attention.v_proj(tokens)).transpose(1, 2) @ shares).flatten(0, 1)
            image = torch.addmm(image, answer.t(), attention.out_proj.weight.t()).add_(attention.out_proj.bias)
            image = layer.norm4(image)
        read = self._read(tokens[:READ], first[:READ], image)
        quality = self._decoder.iou_prediction_head(read[:1])[0, 0]
        return self._upscaled(image, self._decoder.output_hypernetworks_mlps[0](read[1:])[0]), quality

    def _by_head(self, x: Tensor) -> Tensor:
        """(L, d) to (heads, L, d / heads)."""
        return x.view(len(x), self._heads, -1).transpose(0, 1)

    def _read(self, tokens: Tensor, first: Tensor, image: Tensor) -> Tensor:
        """The last attention of some tokens (R, C) to the image (N, C)."""
        attention = self._transformer.final_attn_token_to_image
        asked = self._by_head(attention.q_proj(tokens + first))
        asked = ((asked * asked.shape[-1] ** -0.5) @ self._keys).flatten(0, 1)  # a key's bias is the same everywhere
        shares = (asked @ image.t() + asked @ self._position.t()).softmax(1)
        seen = (shares @ image).unflatten(0, (self._heads, -1)) @ self._values.transpose(1, 2)
        answer = attention.out_proj(seen.transpose(0, 1).flatten(1) + attention.v_proj.bias)
        normed: Tensor = self._transformer.norm_final_attn(tokens + answer)
        return normed

    def _upscaled(self, image: Tensor, hyper: Tensor) -> Tensor:
        """Logits (1, 4h, 4w) of the image (N, C) and the mask's token as weights of the last channels."""
        (weight1, bias1), (weight2, bias2) = self._up
        norm = self._norm
        wide = torch.addmm(bias1, image, weight1).view(-1, weight2.shape[0])
        wide = gelu_(F.layer_norm(wide, wide.shape[1:], norm.weight, norm.bias, norm.eps))
        wide = gelu_(torch.addmm(bias2, wide, weight2)).view(-1, len(hyper))
        height, width = self._side
        places: Tensor = (wide @ hyper).view(height, width, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5)
        return places.reshape(1, 4 * height, 4 * width)
