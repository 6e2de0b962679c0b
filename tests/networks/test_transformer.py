"""The transformers: the published one, name by name and number by number, and adaLN-Zero blocks."""

from typing import Any

import pytest
import torch
import walk
from one_case import over
from torch import Tensor, nn
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.control.row_check import has_independent_rows
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.interop.transformer_names import PREFIX, published_name
from diffpolicy.networks.backbones import dit
from diffpolicy.networks.backbones.dit import DiT, DiTConfig
from diffpolicy.networks.backbones.transformer import Transformer, TransformerConfig
from diffpolicy.networks.condition import Condition
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.training.trainer import Trainer

HORIZON, ACTION, TOKENS, FEATURES = 8, 2, 3, 5
SMALL: dict[str, Any] = {
    "transformer": TransformerConfig(layers=2, heads=2, width=16),
    "encoder": TransformerConfig(layers=2, heads=2, width=16, condition_layers=1, causal=False),
    "dit": DiTConfig(layers=2, heads=2, width=16),
}


class Published(nn.Module):
    """The published network (time and observations as condition), of the layers of torch, as its paper has it."""

    def __init__(self, layers: int, heads: int, width: int, condition_layers: int, causal: bool) -> None:
        super().__init__()
        kind = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.input_emb, self.cond_obs_emb = nn.Linear(ACTION, width), nn.Linear(FEATURES, width)
        self.pos_emb = nn.Parameter(torch.empty(1, HORIZON, width))
        self.cond_pos_emb = nn.Parameter(torch.empty(1, 1 + TOKENS, width))
        if condition_layers:
            layer = nn.TransformerEncoderLayer(width, heads, 4 * width, **kind)
            self.encoder = nn.TransformerEncoder(layer, condition_layers, enable_nested_tensor=False)
        else:
            self.encoder = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, 4 * width, **kind), layers)
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, ACTION)
        row, column = torch.arange(HORIZON)[:, None], torch.arange(HORIZON)
        self.hidden = (column > row, torch.arange(1 + TOKENS) > row + 1) if causal else (None, None)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        half = self.input_emb.out_features // 2
        powers = torch.arange(half, dtype=torch.float64) / (half - 1)
        angles = time.outer((10_000.0**-powers).float().double())  # the published frequencies are float32
        now = torch.cat((angles.sin(), angles.cos()), dim=1)[:, None]
        memory = self.encoder(torch.cat((now, self.cond_obs_emb(tokens)), dim=1) + self.cond_pos_emb)
        x = self.input_emb(x) + self.pos_emb
        return self.head(self.ln_f(self.decoder(x, memory, tgt_mask=self.hidden[0], memory_mask=self.hidden[1])))


def network_of(name: str, **changes: Any) -> Any:
    """A network whose parameters are all random, in float64."""
    torch.manual_seed(0)
    shape = (HORIZON, ACTION, TOKENS * FEATURES) if name == "dit" else (HORIZON, ACTION, TOKENS, FEATURES)
    own = {key: value for key, value in vars(SMALL[name]).items() if key != "name"}
    kind: Any = DiT if name == "dit" else Transformer
    network = kind(*shape, **{**own, **changes}).double()
    with torch.no_grad():
        for parameter in network.parameters():  # no scale of 1 or bias of 0 that would hide a missing one
            parameter += 0.2 * torch.randn_like(parameter)
    return network


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Any]:
    """x, time and the condition."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, TOKENS, FEATURES, generator=generator, dtype=torch.float64)
    x = torch.randn(batch, HORIZON, ACTION, generator=generator, dtype=torch.float64)
    return x, torch.linspace(0, 99, batch, dtype=torch.float64), Condition(tokens.flatten(1), tokens)


def test_the_published_networks_weights_map_onto_ours_at_its_size() -> None:
    with torch.device("meta"):
        network, published = Transformer(16, 2, 2, 20), Published(8, 4, 256, condition_layers=0, causal=True)
    theirs = {name: value.numel() for name, value in published.named_parameters()}
    ours = {published_name(name, 0).removeprefix(PREFIX): value.numel() for name, value in network.state_dict().items()}
    assert ours.keys() == theirs.keys()
    differing = {"cond_pos_emb", "cond_obs_emb.weight", "pos_emb"}  # sizes of the window and the observations
    assert {name for name in ours if ours[name] != theirs[name]} <= differing
    assert sum(value.numel() for value in network.parameters()) == 8_965_122


@over("condition_layers", [0, 2])
@over("causal", [True, False])
def test_the_output_is_the_published_networks(condition_layers: int, causal: bool) -> None:
    settings = {"layers": 2, "heads": 4, "width": 24, "condition_layers": condition_layers, "causal": causal}
    network, published = network_of("transformer", **settings), Published(**settings).double()
    weights = {
        published_name(name, condition_layers).removeprefix(PREFIX): value
        for name, value in network.state_dict().items()
    }
    shapes = {name: value.shape for name, value in published.state_dict().items()}
    published.load_state_dict({name: value.view(shapes[name]) for name, value in weights.items()})
    x, time, condition = inputs()
    found, expected = network(x, time, condition.tokens), published(x, time, condition.tokens)
    assert expected.std() > 0.1
    assert_close(found, expected, rtol=1e-9, atol=1e-9)  # float64 rounding


@pytest.mark.parametrize("name", SMALL)
def test_the_output_depends_on_all_that_the_network_is_given_and_on_no_neighbour(name: str) -> None:
    network, (x, time, condition) = network_of(name), inputs()
    (given,) = condition.fields(network.reads)
    output = network(x, time, given)
    for changed in (network(x + 0.1, time, given), network(x, time + 1, given), network(x, time, given + 0.1)):
        assert (changed - output).abs().amax(dim=(1, 2)).min() > 1e-4
    alone = torch.cat([network(x[[i]], time[[i]], given[[i]]) for i in range(len(x))])
    assert_close(output, alone, rtol=0, atol=1e-12)


def test_a_causal_network_looks_at_no_later_waypoint_or_observation() -> None:
    network, (x, time, condition) = network_of("transformer"), inputs()
    output = network(x, time, condition.tokens)
    for later in range(1, HORIZON):
        changed = network(x + (torch.arange(HORIZON) >= later)[:, None], time, condition.tokens)
        assert_close(changed[:, :later], output[:, :later], rtol=0, atol=0)
        assert (changed[:, later:] - output[:, later:]).abs().amin() > 1e-6
    for token in range(1, TOKENS):
        changed = network(x, time, condition.tokens + (torch.arange(TOKENS) >= token)[:, None])
        assert_close(changed[:, :token], output[:, :token], rtol=0, atol=0)
        assert (changed[:, token:] - output[:, token:]).abs().amin() > 1e-6


def test_blocks_of_adaln_zero_begin_as_the_identity_and_then_learn() -> None:
    torch.manual_seed(0)
    network, (x, time, condition) = DiT(HORIZON, ACTION, TOKENS * FEATURES, 2, 2, 16).double(), inputs()
    hidden, modulations = torch.randn(3, HORIZON, 16).double(), torch.randn(3, 1, 16).double()
    for block in network.layers:
        assert_close(block(hidden, block.modulation(modulations)), hidden, rtol=0, atol=0)
    assert network(x, time, condition.vector).abs().max() == 0.0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):  # the zeros give way one layer after the other
        optimizer.zero_grad()
        (network(x, time, condition.vector) - x).square().mean().backward()
        optimizer.step()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in network.parameters())


def test_each_waypoint_of_a_dit_has_a_time_of_its_own() -> None:
    network, (x, _, condition) = network_of("dit"), inputs()
    levels = torch.linspace(0, 99, HORIZON, dtype=torch.float64).expand(3, -1)
    output = network(x, levels, condition.vector)
    assert_close(
        network(x, levels[:, :1].expand(-1, HORIZON), condition.vector), network(x, levels[:, 0], condition.vector)
    )
    changed = network(x, levels + 10 * (torch.arange(HORIZON) == 3), condition.vector)
    assert (changed[:, 3] - output[:, 3]).abs().min() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_at_a_fixed_condition_it_is_the_network_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (x, _, condition) = network_of(name), inputs()
    (given,) = condition.fields(network.reads)
    times = (99.0, 7.5, 7.5, 0.0)
    calls: list[Any] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for most in (dit.MOST_KEPT, 0):  # modulations of all times at once, or at each evaluation
        monkeypatch.setattr(dit, "MOST_KEPT", most)
        with torch.no_grad():
            fixed = network.at_condition(condition, times, HORIZON)
            for time in (7.5, 99.0):
                found, count = fixed(x, time), len(calls)
                expected = network(x, torch.full((3,), time), given)
                assert_close(found, expected, rtol=0, atol=1e-11)
                assert len(calls) == count + 1, "the fixed form does not call the network"
            assert_close(fixed(x, 3.0), network(x, torch.full((3,), 3.0), given), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_compiled_network_and_a_subclass_are_called_and_any_network_under_autocast(name: str) -> None:
    class Half(DiT if name == "dit" else Transformer):  # type: ignore[misc]
        def forward(self, *arguments: Tensor) -> Tensor:
            return 0.5 * super().forward(*arguments)

    network, (x, _, condition) = network_of(name), inputs()
    expected = 0.5 * network.at_condition(condition, (7.0,), HORIZON)(x, 7.0)
    network.__class__ = Half
    assert_close(network.at_condition(condition, (7.0,), HORIZON)(x, 7.0), expected, rtol=0, atol=1e-11)
    network = network_of(name).float()
    condition = Condition(condition.vector.float(), condition.tokens.float())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network.at_condition(condition, (7.0,), HORIZON)(x.float(), 7.0)
        time, given = torch.full((3,), 7.0), condition.fields(network.reads)[0]
        assert_close(found, network(x.float(), time, given), rtol=0, atol=0)
    assert found.dtype == torch.bfloat16
    network = network_of(name)
    network._compiled_call_impl = lambda x, *_: 0.0 * x  # as `network.compile()` sets it
    assert network.at_condition(condition, (7.0,), HORIZON)(x, 7.0).abs().max() == 0.0


@over(
    "make, message",
    [
        (lambda: Transformer(8, 2, 2, 3, heads=4, width=30), "transformer: width 30 must be even, at least 4 and a mu"),
        (
            lambda: DiT(8, 2, 6, heads=5, width=25),
            "dit: width 25 must be even, at least 4 and a multiple of its 5 heads",
        ),
        (lambda: network_of("dit")(*_short("vector")), "dit: horizon 5, expected 8, as it was built for"),
        (lambda: network_of("transformer")(*_short("tokens")), "transformer: horizon 5, expected 8"),
        (lambda: network_of("transformer")(inputs()[0], torch.zeros(3, 8), None), r"time has shape \[3, 8\], expected"),
    ],
)
def test_impossible_shapes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _short(field: str) -> tuple[Tensor, Tensor, Tensor]:
    x, time, condition = inputs()
    return x[:, :5], time, condition.fields((field,))[0]


def policy_with(model: Any, **changes: Any) -> DiffusionPolicy:
    """A policy whose parameters are all random."""
    torch.manual_seed(0)
    window = WindowConfig(horizon=12)
    policy = DiffusionPolicy(PolicyConfig({"goal": 2, "position": 3}, 2, window=window, model=model, **changes))
    share = torch.linspace(0.0, 1.0, 20)[:, None]
    policy.fit({"goal": share.expand(-1, 2), "position": share.expand(-1, 3)}, 10.0 * share.expand(-1, 2))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy.eval()


@pytest.mark.parametrize("name", SMALL)
def test_in_a_batch_of_a_multiple_of_16_a_policy_has_independent_rows(name: str) -> None:
    """As with the U-Net, in one evaluation and in all of a chunk's."""
    policy = policy_with({**vars(SMALL[name]), "width": 32})
    for batch in (1, 16, 48):
        assert has_independent_rows(policy, batch), f"batch {batch}"
    one = {"goal": torch.rand(2, 2), "position": torch.rand(2, 3)}
    plans = []
    for place in (0, 7, 15):
        seen = {key: torch.rand(16, *value.shape) for key, value in one.items()}
        for key, value in one.items():
            seen[key][place] = value
        generators = [torch.Generator().manual_seed(int(row != place)) for row in range(16)]
        plans.append(policy.predict_action_chunk(seen, generators).plan[place])
    assert all(torch.equal(plans[0], other) for other in plans)


@pytest.mark.parametrize("name", SMALL)
def test_a_policy_without_observations_guides(name: str) -> None:
    policy = policy_with(SMALL[name], diffusion={"name": "denoising", "condition_dropout": 0.5})
    forget = policy.guide(GuidanceConfig(weight=-1.0))
    generator = torch.Generator().manual_seed(0)
    seen = {"goal": torch.rand(2, 2, 2, generator=generator), "position": torch.rand(2, 2, 3, generator=generator)}
    same = [torch.Generator().manual_seed(0) for _ in range(2)]
    plans = policy.predict_action_chunk(seen, same, guide=forget).plan
    assert_close(plans[0], plans[1], rtol=1e-5, atol=1e-5)  # float32, at another place of the batch
    other = policy.predict_action_chunk(seen, [torch.Generator().manual_seed(0) for _ in range(2)]).plan
    assert (other[0] - other[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["transformer", "dit"])
def test_a_run_learns_and_resumes_bit_exactly(name: str, tmp_path: Any) -> None:
    data = walk.record(tmp_path / "walk.zarr")
    changes = {"model": SMALL[name], "diffusion": {"name": "denoising", "condition_dropout": 0.1}}
    changes["trainer"] = {"steps": 12, "validate_every": 12}

    class StopError(Exception):
        pass

    Trainer(walk.settings(data, **changes), tmp_path / "whole").run()
    cut = Trainer(walk.settings(data, **changes), tmp_path / "cut")
    step = cut.train_step
    cut.train_step = lambda: step() if cut.step < 10 else (_ for _ in ()).throw(StopError)  # after checkpoint 8
    with pytest.raises(StopError):
        cut.run()
    Trainer(walk.settings(data, resume=True, **changes), tmp_path / "cut").run()
    ends = [walk.tensors(tmp_path / run / "checkpoints" / "step_12") for run in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "whole" / "checkpoints" / "last")
    assert type(loaded.network) is (DiT if name == "dit" else Transformer)


@pytest.mark.parametrize("name", ["transformer", "dit"])
def test_a_trained_policy_returns_the_demonstrated_actions(name: str) -> None:
    """One observation, one demonstrated plan: after some steps of training, sampling gives that plan."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"goal": 1}, 1, model=SMALL[name]))
    plan = torch.linspace(-3, 5, 16)[None, :, None]
    policy.fit({"goal": torch.tensor([[0.0], [1.0]])}, plan[0])
    optimizer = torch.optim.AdamW(policy.parameter_groups(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    goal = torch.ones(32, 2, 1)
    for _ in range(150):
        optimizer.zero_grad()
        policy.loss({"goal": goal}, plan.expand(32, -1, -1), generator).backward()
        optimizer.step()
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    sampled = policy.eval().predict_action_chunk({"goal": goal[:4]}, generators).plan
    assert (sampled - plan).abs().max() < 0.6  # of a range of 8
