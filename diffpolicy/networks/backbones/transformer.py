"""The transformer of Diffusion Policy (Chi et al. 2023, section III-A and appendix A): a decoder over the waypoints.

Every layer has the shape of the published one, so published weights can be loaded by mapping their names;
tests/networks has the map. Its dropout is left out: all that is random in training is a function of seed and step here.
Shape legend: B batch, H horizon, A action, N observation tokens, D features of one, E width, S = 1 + N, R times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.layers.attention import Attention, EncoderLayer, Folded, check_width, feed_forward
from diffpolicy.networks.layers.blocks import SinusoidalEmbedding
from diffpolicy.networks.layers.decay import decay_groups
from diffpolicy.networks.layers.stop import StopEmbedding, with_stop
from diffpolicy.networks.protocols import AtCondition, Time, as_tensors, at_places, known_moments, plain
from diffpolicy.system.schema import Range

Layers = Annotated[int, Range(1, 256)]


@dataclass
class TransformerConfig:
    """Settings of `Transformer`."""

    name: str = "transformer"
    layers: Layers = 4
    heads: Layers = 4
    width: Annotated[int, Range(4, 2**16)] = 96
    condition_layers: Annotated[int, Range(0, 256)] = 0
    causal: bool = True


class Transformer(nn.Module):
    """Waypoints attend to each other, and to a memory of the time and the observation tokens; a `Backbone`.

    Args:
        horizon, action_dim: H and A of the trajectory that is denoised.
        n_tokens, token_features: N and D of the observation tokens, one or more for each observed step.
        layers, heads, width: size of the decoder; the width is E.
        condition_layers: encoder layers in which time and observations attend to each other (n_cond_layers of the
            published network); 0 for an MLP on each of them.
        causal: whether a waypoint sees no later waypoint, and waypoint t of the observation tokens only 0 to t.
        sees_stop: whether it also takes the time at which a step ends.
        outputs: features of the output for each one of the trajectory.

    Raises:
        ValueError: the width cannot be split among the heads.
    """

    reads: tuple[str, ...] = ("tokens",)
    mask: Tensor | None  # [H, H]
    memory_mask: Tensor | None  # [H, S]

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        n_tokens: int,
        token_features: int,
        layers: int = 8,
        heads: int = 4,
        width: int = 256,
        condition_layers: int = 0,
        causal: bool = True,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        check_width("transformer", width, heads)
        self.input = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(torch.empty(horizon, width))
        self.time_embedding = SinusoidalEmbedding(width)
        self.observation = nn.Linear(token_features, width)
        self.memory_positions = nn.Parameter(torch.empty(1 + n_tokens, width))
        encoder = [EncoderLayer(width, heads) for _ in range(condition_layers)]
        self.condition = nn.Sequential(*encoder) if encoder else feed_forward(width, nn.Mish())
        self.layers: Any = nn.ModuleList(_DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs * action_dim)
        # The time is the first token of the memory: waypoint t sees it and the observation tokens 0 to t.
        masks = _mask(horizon, horizon), _mask(horizon, 1 + n_tokens, before=1)
        self.register_buffer("mask", masks[0] if causal else None, persistent=False)
        self.register_buffer("memory_mask", masks[1] if causal else None, persistent=False)
        self._condition_layers = condition_layers
        self.apply(_initialize)
        for positions in (self.positions, self.memory_positions):
            nn.init.normal_(positions, std=0.02)
        self.stop_embedding = StopEmbedding(width) if sees_stop else None

    @classmethod
    def from_settings(
        cls,
        config: TransformerConfig,
        encoded_shape: tuple[int, int],
        condition: ConditionShape,
        sees_stop: bool = False,
        outputs: int = 1,
    ) -> "Transformer":
        """Build the network for trajectories of `encoded_shape` [H, A].

        Raises:
            NotGivenError: the condition has no tokens.
            ValueError: the settings do not match.
        """
        n_tokens, features = condition.of("tokens")
        size = config.layers, config.heads, config.width
        return cls(
            *encoded_shape, n_tokens, features, *size, config.condition_layers, config.causal, sees_stop, outputs
        )

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor, stop: Tensor | None = None) -> Tensor:
        """x [B, H, A], time [B], tokens [B, N, D] and, if it sees one, a stop time [B] -> [B, H, outputs * A].

        Raises:
            ValueError: a time for every waypoint, or another horizon.
        """
        if time.dim() != 1:
            raise ValueError(
                f"transformer: time has shape {list(time.shape)}, expected [batch], one for all waypoints; the model "
                "dit takes one for each"
            )
        memory = self._memory(self._time_tokens(time, stop)[:, None], self._observation_tokens(tokens))
        x = self._embedded(x)
        for layer in self.layers:
            x = layer(x, memory, self.mask, self.memory_mask)
        return self.head(self.norm(x))

    def at_condition(
        self, condition: Condition, times: Sequence[Time], horizon: int, stops: Sequence[Time] = ()
    ) -> AtCondition:
        """Fix the condition: what waypoints see of the observations and of these times is computed once.

        With `condition_layers` they depend on both together and are computed at each evaluation. Forward hooks are not
        called. Where this form does not apply (autocast, torch.compile, an unknown time, a subclass), the network is.
        """
        as_it_is = plain(self, condition)
        known, (tokens,) = known_moments(self, Transformer, times, stops), condition.fields(self.reads)
        if not known:
            return as_it_is
        seen_at = self._seen_at(self._time_tokens(*as_tensors(known, tokens)), self._observation_tokens(tokens))

        def denoised(x: Tensor, place: int) -> Tensor:
            seen, x = seen_at(place), self._embedded(x)
            for number, layer in enumerate(self.layers):
                x = layer.of_itself(x, self.mask)
                x = layer.fed_forward(seen.add(number, x, layer.norm2(x)))
            return self.head(self.norm(x))

        return at_places(known, denoised, as_it_is)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The weights of the linear layers; then norms, biases and positions, which weight decay leaves out."""
        return decay_groups([self])

    def _time_tokens(self, time: Tensor, stop: Tensor | None = None) -> Tensor:
        """time [R] and stop [R] -> [R, E]."""
        embedded = with_stop(self.time_embedding(time).to(self.memory_positions), self.stop_embedding, stop)
        return embedded + self.memory_positions[0]

    def _observation_tokens(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, D] -> [B, N, E]."""
        return self.observation(tokens) + self.memory_positions[1:]

    def _memory(self, time: Tensor, observed: Tensor) -> Tensor:
        """time [B, 1, E], observed [B, N, E] -> [B, S, E]."""
        return self.condition(torch.cat([time, observed], dim=1))

    def _folded(self, memory: Tensor) -> Tensor:
        """What waypoints see of the memory [..., S, E] in each layer: [layers, ..., heads, S, 2 * E + 1]."""
        return torch.stack([layer.cross.folded(layer.cross.shown(memory)) for layer in self.layers])

    def _seen_at(self, time: Tensor, observed: Tensor) -> Callable[[int], Folded]:
        """What waypoints see by the place of a time in `time` [R, E], given observed [B, N, E]."""
        batch, mask = len(observed), self.memory_mask
        if self._condition_layers > 0:

            def of_both(place: int) -> Folded:
                return Folded(self._folded(self._memory(time[place].expand(batch, 1, -1), observed)), mask)

            return of_both
        of_times = self._folded(self.condition(time)[:, None])  # [layers, R, heads, 1, 2 * E + 1]
        of_tokens = self._folded(self.condition(observed))

        def of_each(place: int) -> Folded:
            now = of_times[:, place, None].expand(-1, batch, -1, -1, -1)
            return Folded(torch.cat([now, of_tokens], dim=3), mask)

        return of_each

    def _embedded(self, x: Tensor) -> Tensor:
        """x [B, H, A] -> [B, H, E]."""
        if x.shape[1] != len(self.positions):
            raise ValueError(f"transformer: horizon {x.shape[1]}, expected {len(self.positions)}, as it was built for")
        return self.input(x) + self.positions


class _DecoderLayer(nn.Module):
    """Waypoints that look at each other, then at the memory, with the norms first (nn.TransformerDecoderLayer)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.cross = Attention(width, heads), Attention(width, heads)
        self.feed_forward = feed_forward(width, nn.GELU())
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        """x [B, H, E] and memory [B, S, E] -> [B, H, E]."""
        x = self.of_itself(x, mask)
        x = x + self.cross.look(self.norm2(x), self.cross.shown(memory), memory_mask)
        return self.fed_forward(x)

    def of_itself(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What comes before the look at the memory."""
        return x + self.attention(self.norm1(x), mask)

    def fed_forward(self, x: Tensor) -> Tensor:
        """What comes after it."""
        return x + self.feed_forward(self.norm3(x))


def _mask(rows: int, columns: int, before: int = 0) -> Tensor:
    """What is added to scores [rows, columns] so that row t sees the columns 0 to t + `before` only."""
    return torch.full((rows, columns), -torch.inf).triu(1 + before)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
