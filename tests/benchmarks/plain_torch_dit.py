"""The DiT of fv_jax/models/dit.py written plainly in PyTorch, as a yardstick for speed (model guide 1).

Modules are named as ours, so that weights map by name. Dimensions as there.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fv_jax.models.dit import BLOCK_NORM_EPS, FINAL_NORM_EPS, HEAD_NORM_EPS, QK_NORM_EPS, DiTConfig


def rope_table(frames: int, height: int, width: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    time = head_dim // 4
    space = (head_dim - time) // 2
    angles = [
        torch.arange(size)[:, None] * 10000.0 ** (-torch.arange(0, channels, 2) / channels)
        for size, channels in ((frames, time), (height, space), (width, space))
    ]
    grid = [
        angles[0][:, None, None].expand(-1, height, width, -1),
        angles[1][None, :, None].expand(frames, -1, width, -1),
        angles[2][None, None, :].expand(frames, height, -1, -1),
    ]
    joined = torch.cat(grid, -1).reshape(frames * height * width, -1).repeat_interleave(2, -1)
    return joined.cos(), joined.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + turned * sin


def sinusoid(values: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    angles = values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class MLP(nn.Module):
    def __init__(self, first: int, inner: int, last: int, activation: nn.Module):
        super().__init__()
        self.hidden, self.out = nn.Linear(first, inner), nn.Linear(inner, last)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.activation(self.hidden(x)))


class Attention(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        dim = config.embed_dim
        self.heads = config.num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=QK_NORM_EPS)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=QK_NORM_EPS)

    def forward(self, x: torch.Tensor, num_text: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = (torch.cat([y[:, :, :num_text], rotate(y[:, :, num_text:], cos, sin)], 2) for y in (q, k))
        o = F.scaled_dot_product_attention(q, k, v)
        return self.out(o.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        dim = config.embed_dim
        self.modulation = nn.Linear(config.cond_dim, 12 * dim)
        self.attention_norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = MLP(dim, config.mlp_dim, dim, nn.GELU('tanh'))

    def forward(
        self, h: torch.Tensor, emb: torch.Tensor, num_text: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        m = self.modulation(F.silu(emb)).chunk(12, -1)
        video, text = m[:6], m[6:]

        def branch(h, norm, function, first):
            x = norm(h)
            x = torch.cat(
                [
                    modulate(x[:, :num_text], text[first], text[first + 1]),
                    modulate(x[:, num_text:], video[first], video[first + 1]),
                ],
                1,
            )
            o = function(x)
            gated = [text[first + 2][:, None] * o[:, :num_text], video[first + 2][:, None] * o[:, num_text:]]
            return h + torch.cat(gated, 1)

        h = branch(h, self.attention_norm, lambda x: self.attention(x, num_text, cos, sin), 0)
        return branch(h, self.mlp_norm, self.mlp, 3)


class Output(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=HEAD_NORM_EPS)
        self.modulation = nn.Linear(config.cond_dim, 2 * config.embed_dim)
        self.out = nn.Linear(config.embed_dim, config.patch_dim)

    def forward(self, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.out(modulate(self.norm(h), *self.modulation(F.silu(emb)).chunk(2, -1)))


class TorchDiT(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        dim, cond = config.embed_dim, config.cond_dim
        self.patch_embed = nn.Linear(config.patch_dim, dim)
        self.text_embed = nn.Linear(config.text_dim, dim)
        self.time_embed = MLP(dim, cond, cond, nn.SiLU())
        self.frames_embed = MLP(dim, cond, cond, nn.SiLU())
        self.source_embed = MLP(dim, cond, cond, nn.SiLU())
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(dim, eps=FINAL_NORM_EPS)
        self.output = Output(config)

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, noise_augmentation_timestep: torch.Tensor
    ) -> torch.Tensor:
        """(B, F, H, W, C) latents -> the same shape."""
        dim, p = self.config.embed_dim, self.config.patch_size
        batch, frames, height, width, channels = x.shape
        rows, columns = height // p, width // p
        emb = self.time_embed(sinusoid(timestep, dim)) + self.source_embed(sinusoid(noise_augmentation_timestep, dim))
        emb = emb + self.frames_embed(sinusoid(torch.full_like(timestep, frames), dim))
        patches = x.reshape(batch, frames, rows, p, columns, p, channels).permute(0, 1, 2, 4, 6, 3, 5)
        h = torch.cat([self.text_embed(text), self.patch_embed(patches.reshape(batch, frames * rows * columns, -1))], 1)
        cos, sin = rope_table(frames, rows, columns, self.config.head_dim)
        for block in self.blocks:
            h = block(h, emb, text.shape[1], cos, sin)
        out = self.output(self.final_norm(h)[:, text.shape[1] :], emb)
        out = out.reshape(batch, frames, rows, columns, channels, p, p).permute(0, 1, 2, 5, 3, 6, 4)
        return out.reshape(x.shape)
