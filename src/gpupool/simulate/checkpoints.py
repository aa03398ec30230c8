"""What is known of checkpoints without measuring: sizes and limits.

Source: the published configuration of each, rounded; weights in 16 bits, KV of one token is 2 (keys
and values) x layers x KV heads x head size x 2 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SwitchTimes:
    """What a switch took where it was measured, as a fit of switches that copied more and less."""

    fixed_s: float
    """Of every switch, however much of the weights is there."""
    s_per_byte: float
    """Of weights that are not there, beside all else that a switch does."""
    copy_s_per_byte: float
    """Of copies for which a device waits, or has time: KV, and weights that are fetched ahead."""

    def over(self, links: int) -> SwitchTimes:
        """On a device that has so many of the links that they were measured on."""
        return SwitchTimes(self.fixed_s, self.s_per_byte / links, self.copy_s_per_byte / links)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint, by the name that profiles have for it."""

    name: str
    weights_bytes: float
    kv_bytes_per_token: int
    context_tokens_max: int
    switch: SwitchTimes | None = None
    """Measured; None: bytes over the link."""


CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint("qwen2_5_7b", 15.2e9, 2 * 28 * 4 * 128 * 2, 32768),
        Checkpoint("yi1_5_9b_chat", 17.7e9, 2 * 48 * 4 * 128 * 2, 4096),
        Checkpoint("llama2_13b_chat", 26.0e9, 2 * 40 * 40 * 128 * 2, 4096),
        Checkpoint("llama2_7b", 13.5e9, 2 * 32 * 32 * 128 * 2, 4096),
        Checkpoint("yi1_5_6b_chat", 12.1e9, 2 * 32 * 4 * 128 * 2, 4096),
        Checkpoint("internlm2_5_7b_chat", 15.5e9, 2 * 32 * 8 * 128 * 2, 32768),
        Checkpoint("qwen_7b_chat", 15.4e9, 2 * 32 * 32 * 128 * 2, 8192),
        Checkpoint("qwen_14b_chat", 28.3e9, 2 * 40 * 40 * 128 * 2, 8192),
        Checkpoint("qwen1_5_14b_chat", 28.3e9, 2 * 40 * 40 * 128 * 2, 32768),
        Checkpoint("qwen1_5_moe_a2_7b_chat", 28.6e9, 2 * 24 * 16 * 128 * 2, 8192),
        Checkpoint("baichuan2_13b_chat", 27.8e9, 2 * 40 * 40 * 128 * 2, 4096),
    )
}

MIX = ("qwen2_5_7b",) * 6 + ("yi1_5_9b_chat",) * 2 + ("llama2_13b_chat",) * 2
"""Checkpoints of models whose names say nothing: in order of first appearance, over and over."""
