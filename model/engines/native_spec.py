"""The structures of `native/tower.h` as ctypes sees them, and a T2Diff written into one."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint8, c_void_p
from typing import Any

import torch

from model.engines.plan import BLOCKS, ReversePlan
from model.history_attention import ActivationUnit, MultiHeadHistory
from model.mixed_attention import MixedAttention, SessionLayer
from model.t2diff import T2Diff

ABI = 2
MAX_LAYERS = 8
_FLOATS = POINTER(c_float)


def _pairs(*names: str) -> list[tuple[str, Any]]:
    return [(f"{name}_{part}", _FLOATS) for name in names for part in ("weight", "bias")]


class NativeLayer(Structure):
    """T2Layer"""

    _fields_ = (
        *_pairs("norm_attention", "norm_feed_forward", "query", "key_value", "output", "first", "second"),
        ("distance_bias", _FLOATS),
        ("lag_bias", _FLOATS),
    )


class NativeSpec(Structure):
    """T2Spec"""

    _fields_ = (
        *[
            (name, c_int32)
            for name in (
                *("abi", "embedding_dim", "full", "half", "quarter", "causal"),
                *("num_steps", "draws_start", "adds_sequence"),
                *("session_length", "num_layers", "num_heads", "hidden", "activation_hidden"),
                *("mean_readout", "multi_head_history", "time_lag"),
            )
        ],
        ("session_gap_seconds", c_int64),
        ("num_items", c_int64),
        ("drift_scale", c_float),
        ("epsilon", c_float),
        ("item_table", _FLOATS),
        ("seen_gap", POINTER(c_uint8)),
        ("intent_token", _FLOATS),
        ("last_scale", _FLOATS),
        ("noise_steps", POINTER(c_int32)),
        ("coefficients", _FLOATS),
        ("step_tables", _FLOATS * len(BLOCKS)),
        ("kernels", _FLOATS * (len(BLOCKS) + 1)),
        ("predict_bias", _FLOATS),
        ("layers", NativeLayer * MAX_LAYERS),
        ("intent_type", _FLOATS),
        ("of_gap", _FLOATS),
        *_pairs("norm_interest", "target_first", "target_second"),
        ("target_lag", _FLOATS),
        ("none_score", _FLOATS),
        *_pairs("combine_first", "combine_second", "norm_user"),
    )


class NativeBatch(Structure):
    """T2Batch; its arrays are given as addresses."""

    _fields_ = (
        ("batch", c_int64),
        ("width", c_int64),
        ("num_routes", c_int64),
        ("item_index", c_void_p),
        ("timestamp", c_void_p),
        ("length", c_void_p),
        ("request_time", c_void_p),
        ("keys", c_void_p),
        ("user", c_void_p),
    )


def why_not(model: T2Diff) -> str | None:
    """What of a model the native code cannot run, or None when it can run all of it."""
    config = model.config
    if model.item_table.weight.device.type != "cpu":
        return f"the model is on {model.item_table.weight.device}"
    if model.item_table.weight.dtype != torch.float32:
        return f"the model's weights are {model.item_table.weight.dtype}"
    if config.num_layers > MAX_LAYERS:
        return f"num_layers is {config.num_layers}, above {MAX_LAYERS}"
    if config.session_gap_seconds is not None and config.session_gap_seconds < 1:
        return f"session_gap_seconds is {config.session_gap_seconds}, below 1"
    return None


class SpecWriter:
    """A NativeSpec of a model, with the arrays that it points to kept alive beside it."""

    def __init__(self, model: T2Diff, plan: ReversePlan) -> None:
        self.spec = NativeSpec()
        self.kept: list[torch.Tensor] = []
        self._write_shape(model, plan)
        self._write_tables(model, plan)
        self._write_attention(model.attention)

    def _write_shape(self, model: T2Diff, plan: ReversePlan) -> None:
        config, spec = model.config, self.spec
        spec.abi = ABI
        spec.embedding_dim = config.embedding_dim
        spec.full, spec.half, spec.quarter = config.unet_channels
        spec.causal = config.unet_padding == "causal"
        spec.num_steps = len(plan.steps)
        spec.draws_start = plan.draws_start
        spec.adds_sequence = config.drift_preparation
        spec.session_length = config.session_length
        spec.num_layers = config.num_layers
        spec.num_heads = config.num_heads
        spec.hidden = config.feed_forward_hidden
        spec.activation_hidden = config.activation_hidden
        spec.mean_readout = config.readout == "mean"
        spec.multi_head_history = config.history_attention == "multi_head"
        spec.time_lag = config.time_lag
        spec.session_gap_seconds = config.session_gap_seconds or 0
        spec.num_items = model.num_items
        spec.drift_scale = config.drift_scale
        spec.epsilon = model.norm_item.eps

    def _write_tables(self, model: T2Diff, plan: ReversePlan) -> None:
        spec = self.spec
        spec.item_table = self._floats(model.item_table.weight)
        spec.seen_gap = self._pointer(model.seen_gap.to(torch.uint8), c_uint8)
        if not plan.steps:
            spec.intent_token = self._floats(model.intent_token)
            if model.config.predicted_next == "last_behaviour":
                spec.last_scale = self._floats(model.last_scale)
            return
        first = plan.steps[0] if plan.draws_start else 0
        added = [
            previous if sigma > 0 else 0
            for previous, sigma in zip(plan.previous_steps, plan.sigma, strict=True)
        ]
        spec.noise_steps = self._pointer(torch.tensor([first, *added], dtype=torch.int32), c_int32)
        scalars = torch.tensor([plan.of_predicted, plan.of_current, plan.sigma]).T  # (steps, 3)
        spec.coefficients = self._floats(scalars)
        spec.step_tables[:] = [self._floats(plan.step_tables[name]) for name in BLOCKS]
        convolutions = [getattr(model.unet, name).convolution for name in BLOCKS] + [model.unet.predict]
        spec.kernels[:] = [self._floats(convolution.linear.weight) for convolution in convolutions]
        spec.predict_bias = self._floats(model.unet.predict.linear.bias)

    def _write_attention(self, attention: MixedAttention) -> None:
        spec = self.spec
        for native, layer in zip(spec.layers, attention.layers, strict=False):
            assert isinstance(layer, SessionLayer)
            self._write_pair(native, "norm_attention", layer.norm_attention)
            self._write_pair(native, "norm_feed_forward", layer.norm_feed_forward)
            self._write_pair(native, "query", layer.of_query)
            self._write_pair(native, "key_value", layer.of_key_value)
            self._write_pair(native, "output", layer.of_output)
            self._write_pair(native, "first", layer.feed_forward[0])
            self._write_pair(native, "second", layer.feed_forward[3])
            native.distance_bias = self._floats(layer.distance_bias.weight)
            native.lag_bias = self._floats(layer.lag_bias.weight)
        spec.intent_type = self._floats(attention.intent_type)
        spec.of_gap = self._floats(attention.of_gap.weight)
        self._write_pair(spec, "norm_interest", attention.norm_interest)
        target = attention.target_attention
        assert isinstance(target, ActivationUnit | MultiHeadHistory)
        unit = isinstance(target, ActivationUnit)
        self._write_pair(spec, "target_first", target.first if unit else target.of_query)
        self._write_pair(spec, "target_second", target.second if unit else target.of_key_value)
        spec.target_lag = self._floats(target.of_lag.weight)
        spec.none_score = self._floats(target.none_score)
        self._write_pair(spec, "combine_first", attention.combine[0])
        self._write_pair(spec, "combine_second", attention.combine[3])
        self._write_pair(spec, "norm_user", attention.norm_user)

    def _write_pair(self, to: Structure, name: str, module: Any) -> None:
        setattr(to, f"{name}_weight", self._floats(module.weight))
        setattr(to, f"{name}_bias", self._floats(module.bias))

    def _floats(self, values: Any) -> Any:
        return self._pointer(values.float(), c_float)

    def _pointer(self, values: torch.Tensor, kind: Any) -> Any:
        values = values.detach().contiguous()
        self.kept.append(values)
        return ctypes.cast(values.data_ptr(), POINTER(kind))
