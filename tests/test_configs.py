"""Every YAML file composes, matches its schema, and builds what it names."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from one_case import over

from diffpolicy.commands.benchmark_samplers import BenchmarkSamplersConfig
from diffpolicy.commands.evaluate_policy import EvaluateConfig
from diffpolicy.commands.generate_demos import GenerateConfig
from diffpolicy.networks.condition import ConditionShape
from diffpolicy.policy.build import build_network
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.sampler_choices import build_sampler, sampler_settings
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.safety.build import build_safety
from diffpolicy.safety.settings import MODES
from diffpolicy.training.schemas import register_choices
from diffpolicy.training.settings import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
CONDITION = ConditionShape(vector=(40,), tokens=(2, 20))
CHOICES = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "safety"]
MODES_OF_SAFETY = sorted(path.stem for path in CONFIGS.glob("safety/*.yaml"))


def settings(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    register_choices()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_object(compose("train", list(overrides)))


def parameters(config: TrainConfig) -> int:
    """The number of parameters of a network for Push-T keypoints."""
    policy = PolicyConfig({"keypoints": 20}, 2, model=config.model)
    with torch.device("meta"):
        network = build_network(policy, (policy.window.horizon, 2), CONDITION)
    return sum(parameter.numel() for parameter in network.parameters())


@over("group, choice", CHOICES)
def test_every_choice_builds(group: str, choice: str) -> None:
    own_data = ["data.path=x", "data.observations={state: [state]}"] if choice == "custom" else []
    needs = {"flow_heun": ["diffusion=flow"], "diffusers": ["diffusion=ddpm"]}
    config = settings(f"{group}={choice}", *own_data, *needs.get(choice, []))
    objective = build_objective(config.diffusion)
    sampler = sampler_settings(config.sampler, preferred=objective.sampler)
    assert build_sampler(objective.schedule, sampler).rows
    policy = PolicyConfig({"state": 20}, 2, window=config.window, model=config.model, diffusion=config.diffusion)
    with torch.device("meta"):
        build_network(policy, (policy.window.horizon, 2), CONDITION)


@over("mode", MODES_OF_SAFETY)
def test_every_choice_of_safety_builds(mode: str) -> None:
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
    register_choices()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("evaluate", ["checkpoint=x", f"safety={mode}", "safety.max_speed=300"]))
    safety = build_safety(config.safety)
    assert safety is None if mode == "none" else safety is not None and safety.mode == mode


def test_there_is_a_choice_for_every_mode_of_safety() -> None:
    assert sorted(MODES) == MODES_OF_SAFETY


def test_the_default_is_the_small_network_in_float32_for_a_fixed_number_of_steps() -> None:
    config = settings()
    policy = PolicyConfig({"keypoints": 20}, 2, model=config.model)
    assert (
        sum(p.numel() for p in build_network(policy, (policy.window.horizon, 2), CONDITION).parameters()) == 1_393_314
    )
    assert config.trainer.precision == "float32"
    assert config.trainer.steps == settings("device=cpu").trainer.steps
    assert config.env is not None


def test_the_published_network_is_one_choice_away() -> None:
    policy = PolicyConfig({"keypoints": 20}, 2, model=settings("model=unet").model)
    with torch.device("meta"):
        assert (
            sum(p.numel() for p in build_network(policy, (policy.window.horizon, 2), CONDITION).parameters())
            == 65_783_298
        )


def test_in_training_and_reported_evaluations_use_other_seeds() -> None:
    assert settings().evaluation.seed == 50_000
    assert EvaluateConfig("x").seed == 100_000


def test_own_data_has_no_env_and_takes_any_observation_names() -> None:
    config = settings("task=custom", "data.path=x", "data.observations={left: [a], right: ['b[:2]', c]}")
    assert config.env is None
    assert config.data.observations == {"left": ["a"], "right": ["b[:2]", "c"]}


def test_a_task_may_set_how_long_it_trains_and_the_command_line_has_the_last_word() -> None:
    assert settings("task=reach").trainer.steps < settings().trainer.steps
    assert settings("task=reach", "trainer.steps=7").trainer.steps == 7


def test_a_choice_may_be_given_settings_of_its_own_on_the_command_line() -> None:
    config = settings(
        "diffusion=ddpm", "diffusion.schedule={name: linear, beta_end: 0.1}", "sampler=heun", "sampler.churn=3"
    )
    assert build_objective(config.diffusion).schedule.levels.alpha[-1] ** 2 == pytest.approx(0.0056, abs=1e-4)
    assert config.sampler.churn == 3.0
    with pytest.raises(
        ValueError, match="schedule linear: has no setting sigma_max; it has beta_end, beta_start, name"
    ):
        build_objective(settings("diffusion.schedule={name: linear, sigma_max: 1.0}").diffusion)


@pytest.mark.parametrize(
    "override", ["sampler.churn=3", "sampler.eta=half", "encoder=nonsense", "diffusion.beta_end=0.1"]
)
def test_a_setting_that_the_choice_does_not_have_is_refused_before_any_work(override: str) -> None:
    with pytest.raises(HydraException):
        settings(override)


TASKS = sorted(path.stem for path in CONFIGS.glob("task/*.yaml"))
WITH_TASK = {
    "evaluate": EvaluateConfig,
    "benchmark_samplers": BenchmarkSamplersConfig,
    "generate": GenerateConfig,
}


@over("task", TASKS)
@pytest.mark.parametrize("command", WITH_TASK)
def test_every_command_with_a_task_takes_every_task(command: str, task: str) -> None:
    ConfigStore.instance().store(name=f"{command}_schema", node=WITH_TASK[command])
    register_choices()
    own = ["data.path=x", "data.observations={}"] if task == "custom" else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose(command, [f"task={task}", *own]).task == task
