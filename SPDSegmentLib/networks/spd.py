"""The SPD model: LoRA-adapted SAM encoder, saliency head, LoRA-adapted mask decoder; and the losses it learns by.

Segmentation loss (Dice and focal) and Pairwise Slice Consistency are those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from SPDSegmentLib.errors import ModelCorrupt
from SPDSegmentLib.networks.adapters import (
    ClickConditioning,
    SaliencyHead,
    TokenBatch,
    add_decoder_lora,
    add_encoder_lora,
    decoder_lora_layers,
    encoder_lora_layers,
    merge_adapter_tensors,
)
from SPDSegmentLib.networks.backbones import build_sam
from SPDSegmentLib.networks.config import NetworkConfig, SegmentationLossConfig
from SPDSegmentLib.networks.slice_decoder import SliceDecoder
from SPDSegmentLib.networks.tiny_vit import LayerNorm2d, TinyViTEncoder, collapse_gray_input
from SPDSegmentLib.settings import shorten

# Parts of the prompt encoder and decoder that learn with the decoder: clicks never occurred in LiteMedSAM's training.
PROMPT_PARAMETERS = ("point_embeddings.1.", "not_a_point_embed.", "mask_downscaling.")
CONDITIONED_PROMPT_PARAMETERS = (*PROMPT_PARAMETERS, "no_mask_embed.")
LOGIT_BOUND = 10.0
EPSILON = 1.0


class SPDModel(nn.Module):
    """Saliency-guided Prompt Distillation on one SAM.

    Args:
        config: architecture.
        weights: base weights of the backbone, ``None`` for random ones.
        adapters: inject LoRA through peft (training); without them use :meth:`merge_adapter_state`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    saliency_head: SaliencyHead  # of an image saliency only
    conditioning: ClickConditioning  # of a conditioned one only

    def __init__(self, config: NetworkConfig, weights: str | Path | None = None, adapters: bool = True) -> None:
        super().__init__()
        sam = build_sam(config, weights)
        self.config = config
        self.stride = sam.stride
        self.image_encoder = sam.image_encoder
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.register_buffer("pixel_mean", sam.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", sam.pixel_std, persistent=False)
        channels: int = self.prompt_encoder.embed_dim  # type: ignore[assignment]
        self.channels = channels
        self._takes_gray = False
        self._dense_position: Tensor | None = None
        self.decoder_pass: Callable[..., tuple[Tensor, ...]] | None = None  # what runs in place of decode_batch
        self.slice_decoder: SliceDecoder | None = None
        if config.conditioned:
            self.conditioning = ClickConditioning(channels)
        else:
            self.saliency_head = SaliencyHead(channels, config.saliency_slice_context)
        self.requires_grad_(False)
        if adapters:
            self._add_adapters()
        self.eval()

    def _add_adapters(self) -> None:
        config = self.config
        add_encoder_lora(self.image_encoder, config.lora_rank, config.lora_alpha, config.lora_encoder_blocks)
        if config.decoder == "lora":
            rank = config.decoder_lora_rank
            add_decoder_lora(self.mask_decoder, rank, float(rank))

    def train(self, mode: bool = True) -> SPDModel:
        """Keep evaluation mode: the network has no dropout, and its batch norms are frozen."""
        return super().train(False)

    def stage1_parameters(self) -> list[nn.Parameter]:
        """Trainable in stage I: the encoder's LoRA and the saliency head (paper, stage I)."""
        head = [] if self.config.conditioned else list(self.saliency_head.parameters())
        return self.encoder_lora_parameters() + head

    def encoder_lora_parameters(self) -> list[nn.Parameter]:
        """The encoder's LoRA."""
        return [p for name, p in self.image_encoder.named_parameters() if "lora_" in name]

    def stage2_parameters(self) -> list[nn.Parameter]:
        """Trainable in stage II: the decoder's LoRA, or all of it, with the point embeddings and the quality head.

        Of a frozen decoder nothing; a conditioned model's tokens learn all the same.
        """
        full, frozen = self.config.decoder == "full", self.config.decoder == "frozen"
        chosen = [
            p
            for name, p in self.mask_decoder.named_parameters()
            if not frozen and (full or "lora_" in name or name.startswith("iou_prediction_head"))
        ]
        conditioned = self.config.conditioned
        conditioning = list(self.conditioning.parameters()) if conditioned else []
        names = CONDITIONED_PROMPT_PARAMETERS if conditioned else PROMPT_PARAMETERS if full else ()
        prompts = [p for name, p in self.prompt_encoder.named_parameters() if names and name.startswith(names)]
        return chosen + prompts + conditioning

    def encode(self, images: Tensor) -> Tensor:
        """Embed slices (B, 1 or 3, S, S) with values in [0, 1]: (B, C, S / stride, S / stride)."""
        if self._takes_gray:
            maps: Tensor = self.image_encoder(images)
        else:
            images = (images.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std
            maps = self.image_encoder(images.to(next(self.image_encoder.parameters()).dtype))
        return maps

    def prepare_for_inference(self, precision: torch.dtype) -> SPDModel:
        """Bring the encoder into its fastest form, in place; adapters must be merged before. Returns self."""
        if isinstance(self.image_encoder, TinyViTEncoder) and not self._takes_gray and not self.config.conditioned:
            collapse_gray_input(self.image_encoder)
            self._takes_gray = True
        self.image_encoder.to(dtype=precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in (self.mask_decoder.output_upscaling, self.prompt_encoder.mask_downscaling):
            for name, module in part.named_children():  # type: ignore[union-attr]
                if type(module).__name__ == "LayerNorm2d" and not isinstance(module, LayerNorm2d):
                    setattr(part, name, LayerNorm2d.like(module))
        self._dense_position = position = self.prompt_encoder.get_dense_pe()  # type: ignore[operator]
        self.requires_grad_(False)
        if position.device.type == "cpu" and precision == torch.float32:
            self.slice_decoder = SliceDecoder(self.mask_decoder, self.prompt_encoder, position)
        return self

    @property
    def sees_neighbors(self) -> bool:
        """Whether the saliency of a slice rests on the embeddings of the two adjoining ones as well."""
        return self.config.conditioned or self.saliency_head.uses_slice_context

    def saliency_logits(
        self, embeddings: Tensor, previous: Tensor | None = None, following: Tensor | None = None
    ) -> Tensor:
        """Saliency logits at image size, (B, 1, S, S); S_t is their sigmoid."""
        return self._at_image_size(self.saliency_head(embeddings, previous, following))

    def decode_clicks(
        self, embeddings: Tensor, tokens: TokenBatch, saliency_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One pass of the decoder of a conditioned model.

        Args:
            embeddings: (B, C, h, w) that know their neighbors, of :meth:`ClickConditioning.with_context`.
            tokens: pass one: all clicks near each slice; pass two: the consensus.
            saliency_logits: pass two: (B, 1, S, S), those of pass one, as SAM's mask prompt.

        Returns:
            Logits (B, 1, S, S), the saliency's in pass one and the mask's in pass two, and the predicted IoU (B,).
        """
        prompt: Any = self.prompt_encoder
        size = self.config.image_size
        positions = prompt.pe_layer.forward_with_coords(tokens.xy.float() + 0.5, (size, size))
        points = positions + prompt.point_embeddings[1].weight + self.conditioning.token_offsets(tokens)
        padding = prompt.not_a_point_embed.weight[None]
        sparse = torch.where(tokens.valid[..., None], points, padding)
        if saliency_logits is None:
            return self._pass(embeddings, sparse)
        sparse = torch.cat((sparse, self.conditioning.second_pass_token(len(sparse))), dim=1)
        return self._pass(embeddings, sparse, self._mask_prompt(saliency_logits, LOGIT_BOUND))

    def with_context(self, embeddings: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """What :meth:`decode_clicks` takes of embeddings (B, C, h, w) and those of the two adjoining slices."""
        if self.slice_decoder is None:
            return self.conditioning.with_context(embeddings, previous, following)
        sides = ((previous, self.conditioning.previous), (following, self.conditioning.following))
        return self.slice_decoder.prepare(embeddings, *((maps, layer.weight.flatten(1)) for maps, layer in sides))

    def _pass(self, embeddings: Tensor, sparse: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The decoder's, with tokens (B, T, C) and SAM's mask prompt (B, 1, 4h, 4w): logits (B, 1, S, S), IoU (B,)."""
        if self.slice_decoder is not None:
            logits, quality = self.slice_decoder(embeddings, sparse, mask)
        else:
            prompt: Any = self.prompt_encoder
            none = prompt.no_mask_embed.weight.view(1, -1, 1, 1)
            dense = none.expand_as(embeddings) if mask is None else prompt.mask_downscaling(mask)
            logits, quality = (self.decoder_pass or self.decode_batch)(embeddings, sparse, dense)
        return self._at_image_size(logits), quality.float()

    def _at_image_size(self, logits: Tensor) -> Tensor:
        """Logits (B, 1, h, w) as (B, 1, S, S) float32."""
        logits, size = logits.float(), self.config.image_size
        if logits.shape[-1] != size:
            logits = nn.functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
        return logits

    def _mask_prompt(self, logits: Tensor, bound: float) -> Tensor:
        """Saliency logits (B, 1, S, S) at the size of SAM's mask prompt."""
        side = 4 * (self.config.image_size // self.stride)
        bounded = logits.float().clamp(-bound, bound)
        return nn.functional.interpolate(bounded, (side, side), mode="bilinear", align_corners=False)

    def decode(
        self,
        embeddings: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        saliency_logits: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Segment a batch of slices with different numbers of points.

        Args:
            embeddings: (B, C, h, w).
            points: (B, K, 2) column and row in input pixels; unused places are padded; ``None`` for none.
            labels: (B, K): 1 a point of the target, 0 one of the background, -1 padding.
            saliency_logits: (B, 1, S, S); used when the model has a dense saliency prompt.
            boxes: (B, 4), first column, first row, last column, last row in input pixels.

        Returns:
            Mask logits at image size (B, 1, S, S) and the predicted IoU (B,).
        """
        said = saliency_logits if self.config.dense_saliency_prompt else None
        mask = None if said is None else self._mask_prompt(said, 12.0)
        sparse, _ = self.prompt_encoder(None if points is None else (points, labels), boxes, None)
        return self._pass(embeddings, sparse, mask)

    def decode_batch(self, embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's mask decoder for one prompt per image; upstream's own forward takes one image at a time."""
        decoder = self.mask_decoder
        batch, channels, height, width = embeddings.shape
        output_tokens = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))  # type: ignore[union-attr, arg-type]
        tokens = torch.cat((output_tokens.expand(batch, -1, -1), sparse), dim=1)
        position = self._dense_position
        if position is None:  # in training
            position = self.prompt_encoder.get_dense_pe()  # type: ignore[operator]
        position = position.expand(batch, -1, -1, -1)
        tokens_out, image_out = decoder.transformer(embeddings + dense, position, tokens)  # type: ignore[operator]
        image_out = image_out.transpose(1, 2).reshape(batch, channels, height, width)
        upscaled = decoder.output_upscaling(image_out)  # type: ignore[operator]
        hyper = decoder.output_hypernetworks_mlps[0](tokens_out[:, 1])  # type: ignore[index, operator]
        logits = torch.einsum("bc,bchw->bhw", hyper, upscaled)[:, None]
        quality = decoder.iou_prediction_head(tokens_out[:, 0])[:, 0]  # type: ignore[operator]
        return logits, quality

    def adapter_state(self) -> dict[str, Tensor]:
        """What training changed: encoder LoRA, saliency head, decoder updates; the content of a bundle."""
        names = {id(p): name for name, p in self.named_parameters()}
        chosen = self.stage1_parameters() + self.stage2_parameters()
        return {names[id(p)]: p.detach().cpu().contiguous() for p in chosen}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Load :meth:`adapter_state`; names and shapes must match exactly.

        Raises:
            ModelCorrupt: when they do not.
        """
        _check_shapes(state, {name: tuple(tensor.shape) for name, tensor in self.adapter_state().items()})
        self.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)

    def merge_adapter_state(self, state: dict[str, Tensor]) -> SPDModel:
        """Load a bundle's tensors for inference into a model built without adapters; returns self.

        Raises:
            ModelCorrupt: when they do not fit.
        """
        config = self.config
        _check_shapes(state, self.adapter_shapes())
        for part, scale in (("image_encoder", config.lora_alpha / max(config.lora_rank, 1)), ("mask_decoder", 1.0)):
            own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
            merge_adapter_tensors(self.get_submodule(part), own, scale)
        self.load_state_dict({k: v.float() for k, v in state.items() if ".lora_" not in k}, strict=False)
        return self.requires_grad_(False)

    def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of :meth:`adapter_state`, of a model that was built without adapters."""
        config = self.config
        head = [] if config.conditioned else list(self.saliency_head.parameters())
        plain = head + self.stage2_parameters()
        names = {id(p): name for name, p in self.named_parameters()}
        shapes = {names[id(p)]: tuple(p.shape) for p in plain}
        blocks = encoder_lora_layers(self.image_encoder, config.lora_encoder_blocks) if config.lora_rank else {}
        layers = {f"image_encoder.{name}": (config.lora_rank, *sides) for name, sides in blocks.items()}
        if config.decoder == "lora" and config.decoder_lora_rank:
            adapted = decoder_lora_layers(self.mask_decoder)
            layers |= {f"mask_decoder.{name}": (config.decoder_lora_rank, *sides) for name, sides in adapted.items()}
        for name, (rank, rows, columns) in layers.items():
            shapes[f"{name}.lora_A.default.weight"] = (rank, columns)
            shapes[f"{name}.lora_B.default.weight"] = (rows, rank)
        return shapes


def _check_shapes(state: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise :class:`ModelCorrupt` where a tensor is missing, unknown or of another shape."""
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = sorted(name for name in set(state) & set(expected) if tuple(state[name].shape) != expected[name])
    found = {"missing": missing, "unknown": extra, "of another shape": wrong}
    what = [f"{len(names)} {kind} ({shorten(names[0], 100)})" for kind, names in found.items() if names]
    if what:
        raise ModelCorrupt(
            f"The adapter does not fit the network: {', '.join(what)}.",
            "Get a fresh copy of the bundle.",
            "\n".join(f"{kind}: {name}" for kind, names in found.items() for name in names),
        )


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss per slice: (B, 1, H, W) logits and {0, 1} target to (B,)."""
    probability = logits.float().sigmoid().flatten(1)
    target = target.float().flatten(1)
    overlap = 2 * (probability * target).sum(1) + EPSILON
    return 1 - overlap / (probability.sum(1) + target.sum(1) + EPSILON)


def hard_dice(predicted: Tensor, target: Tensor) -> Tensor:
    """Dice of two bool tensors of one shape as a whole, for curves."""
    return 2 * (predicted & target).sum() / (predicted.sum() + target.sum()).clamp(min=1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss per slice (Lin et al. 2017): (B, 1, H, W) to (B,), mean over pixels."""
    logits, target = logits.float(), target.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    p_true = probability * target + (1 - probability) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - p_true) ** gamma * cross_entropy).flatten(1).mean(1)


def segmentation_loss(logits: Tensor, target: Tensor, config: SegmentationLossConfig) -> Tensor:
    """L_seg per slice, (B,): weighted sum of Dice and focal loss (paper, stage I)."""
    dice = dice_loss(logits, target)
    focal = focal_loss(logits, target, config.focal_gamma, config.focal_alpha)
    return config.dice_weight * dice + config.focal_weight * focal


def pairwise_slice_consistency(mask: Tensor, neighbor: Tensor) -> Tensor:
    """L_psc = 1 - 2 sum(M_t M_t+1) / (sum M_t + sum M_t+1) on soft masks (B, 1, H, W), per pair (B,)."""
    mask, neighbor = mask.flatten(1), neighbor.flatten(1)
    overlap = 2 * (mask * neighbor).sum(1) + EPSILON
    return 1 - overlap / (mask.sum(1) + neighbor.sum(1) + EPSILON)


def consistency_of_run(
    logits: Tensor, target: Tensor, direction: str = "next", stop_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """PSC of the slices of one run of neighboring slices.

    Args:
        logits, target: (T, 1, H, W) in slice order.
        direction: ``none``, ``previous``, ``next`` (paper) or ``both``.
        stop_gradient: treat the neighbor's mask as constant.

    Returns:
        Loss per slice (T,), zero where no pair counts, and the number of slices that have a pair. A pair is skipped at
        the run's edge and where either ground truth is empty. Without ``stop_gradient``, ``previous`` sums the same
        pairs as ``next``, and ``both`` counts each pair for either of its slices, which is up to twice the loss.
    """
    losses = logits.new_zeros(logits.shape[0], dtype=torch.float32)
    if direction == "none" or logits.shape[0] < 2:
        return losses, losses.sum()
    masks = logits.float().sigmoid()
    filled = target.flatten(1).any(1)
    valid = (filled[:-1] & filled[1:]).float()
    fixed = masks.detach() if stop_gradient else masks
    paired = torch.zeros_like(losses)
    if direction in ("next", "both"):
        pair = pairwise_slice_consistency(masks[:-1], fixed[1:]) * valid
        losses, paired = losses + F.pad(pair, (0, 1)), F.pad(valid, (0, 1))
    if direction in ("previous", "both"):
        pair = pairwise_slice_consistency(masks[1:], fixed[:-1]) * valid
        losses, paired = losses + F.pad(pair, (1, 0)), torch.maximum(paired, F.pad(valid, (1, 0)))
    return losses, paired.sum()


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of a soft mask with the ground truth per slice, (B,): what SAM's quality head learns to predict."""
    probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    intersection = (probability * target).sum(1)
    return (intersection + EPSILON) / (probability.sum(1) + target.sum(1) - intersection + EPSILON)
