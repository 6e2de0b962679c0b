"""ONNX files: onnxruntime computes what torch does, for every sampler, network and batch; the file says what it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion import Denoising
from diffpolicy.interop import export_onnx
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.build import BACKBONES
from diffpolicy.policy.objective_choices import OBJECTIVES
from diffpolicy.policy.sampler_choices import TABLES
from diffpolicy.policy.settings import WindowConfig

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
TOLERANCE = 1e-5  # of encoded actions in [-1, 1]: some rounding errors of float32 through a small network and ten rows
UNET = {"name": "unet1d", "widths": [8, 16], "time_embedding_dim": 8, "groups": 2}
NETWORKS = {
    "unet1d": UNET,
    "transformer": {"name": "transformer", "layers": 2, "width": 16, "condition_layers": 1},
    "dit": {"name": "dit", "layers": 2, "width": 16},
}
EYES = {
    "resnet18": {"name": "resnet18", "crop": 1.0},
    "resnet18_narrow": {"name": "resnet18_narrow", "shared": True},
    "resnet_imported": {"name": "resnet_imported", "crop": 1.0, "norm": "batch", "blocks": [1, 1, 1, 1]},
    "vit": {"name": "vit", "width": 24, "depth": 1},
}
DIFFUSIONS = [
    {"parameterization": "epsilon"},
    {"parameterization": "v", "zero_terminal_snr": True},
    {"parameterization": "score", "schedule": "linear", "num_levels": 1000},
    {"parameterization": "edm", "schedule": "karras"},
    {"parameterization": "flow", "schedule": "flow"},
]
BOX = ([0.5, -3.0], [5.0, 3.0])


def made(seen: object = None, **given: object) -> DiffusionPolicy:
    """A fitted policy with random weights everywhere; actions in [0, 9] and [-4, 4]."""
    torch.manual_seed(0)
    observations = {"blocks": 3, "agent": 2, **({"left": seen, "right": seen} if seen else {})}
    settings = {"model": UNET, "window": WindowConfig(8, 2, 4), **given}
    policy = DiffusionPolicy(PolicyConfig(observations, 2, **settings))
    for parameter in policy.network.parameters():
        if not parameter.any():  # as the head of dit, whose output would be zero
            torch.nn.init.normal_(parameter, std=0.1)
    actions = torch.rand(50, 2) * torch.tensor([9.0, 8.0]) - torch.tensor([0.0, 4.0])
    policy.fit({"blocks": torch.randn(50, 3), "agent": torch.rand(50, 2) * 7}, actions)
    return policy.eval()


def observations(policy: DiffusionPolicy, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for key, spec in policy.config.observations.items():
        shape = (batch, 2, *spec.shape)
        is_image = spec.kind == "image"
        found[key] = (
            torch.randint(256, shape, generator=generator, dtype=torch.uint8)
            if is_image
            else torch.rand(shape, generator=generator)
        )
    return found


def drawn(count: int, batch: int, policy: DiffusionPolicy) -> tuple[list[torch.Generator], np.ndarray]:
    """Generators, and the noise that the policy draws from them."""
    shape = (count, *policy.codec.encoded_shape(policy.config.window.horizon))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(batch)]
    return [torch.Generator().manual_seed(seed) for seed in range(batch)], torch.stack(noise, dim=1).numpy()


def ran(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(inputs)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def told(path: Path) -> dict:
    """The metadata of a file."""
    texts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in texts.items()}


def check_loop(policy: DiffusionPolicy, folder: Path, sampler: object, steps: int | None, box=None) -> None:
    """policy.onnx makes the plans of `predict_action_chunk`, at two batch sizes."""
    export_onnx(policy, folder, sampler, steps, box, parts=["policy"])
    table = policy.sampler(sampler, steps)
    low, high = (None, None) if box is None else map(torch.tensor, box)
    constrain = None if box is None else lambda plan, row: plan.clamp(low, high)
    for batch in (1, 3):
        seen = observations(policy, batch)
        generators, noise = drawn(len(table) + 1, batch, policy)
        chunk = policy.predict_action_chunk(seen, generators, table, constrain)
        inputs = {"noise": noise, **{key: value.numpy() for key, value in seen.items()}}
        found = ran(folder / "policy.onnx", inputs)
        for name, expected in (("plan", chunk.plan), ("actions", chunk.actions)):
            pair = policy.codec.encode(torch.tensor(found[name])), policy.codec.encode(expected)
            torch.testing.assert_close(*pair, rtol=0.0, atol=TOLERANCE)
        assert found["is_finite"].tolist() == [True] * batch
        assert chunk.plan.std() > 0.1, "a plan that is clipped everywhere would prove nothing"


OF_OBJECTIVES = {"consistency": "consistency", "flow_map": "consistency_trajectory"}  # which no denoiser takes


@over("sampler", [*TABLES])
def test_every_sampler_makes_our_plans(sampler: str, tmp_path: Path) -> None:
    diffusion = {"name": "denoising", **(DIFFUSIONS[-1] if sampler == "flow_heun" else {})}
    choice = {"name": sampler, "langevin_steps": 1} if sampler == "langevin" else sampler  # or it has ten rows
    check_loop(made(diffusion=OF_OBJECTIVES.get(sampler, diffusion)), tmp_path / sampler, choice, 2)


def test_correlated_noise_is_made_in_the_file(tmp_path: Path) -> None:
    policy = made(diffusion={"name": "denoising", "noise_correlation": 0.9})
    check_loop(policy, tmp_path / "correlated", {"name": "ddpm"}, 3)


@over("objective", [name for name in OBJECTIVES if name != "mixture_density"])  # which is refused
def test_every_objective_makes_our_plans_by_the_sampler_that_it_prefers(objective: str, tmp_path: Path) -> None:
    policy = made(diffusion=objective, model=NETWORKS["dit"] if objective == "diffusion_forcing" else UNET)
    check_loop(policy, tmp_path / objective, "auto", None)
    sampler = "ddim" if objective == "learned_variance" else "auto"  # its own noise is not that of a row
    export_onnx(policy, tmp_path / f"{objective}_step", sampler, parts=["step"])  # compares by itself


@over("name", [*BACKBONES])
def test_every_network_makes_our_plans(name: str, tmp_path: Path) -> None:
    check_loop(made(model=NETWORKS[name]), tmp_path / name, "ddim", 2)


@over("name", [*BACKBONES])
def test_networks_that_see_the_end_of_a_step_make_our_plans(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Denoising, "sees_stop", True)
    policy = made(model=NETWORKS[name])
    check_loop(policy, tmp_path / name, "ddim", 2)
    export_onnx(policy, tmp_path / f"{name}_step", "ddim", 3, parts=["step"])  # compares by itself
    assert told(tmp_path / f"{name}_step" / "step.onnx")["sampler"]["row"][-1] == "stop"


@over("diffusion", DIFFUSIONS)
def test_every_parameterization_makes_our_plans(diffusion: dict, tmp_path: Path) -> None:
    check_loop(made(diffusion={"name": "denoising", **diffusion}), tmp_path / diffusion["parameterization"], "ddim", 2)


@over("normalizer", ["gaussian", "quantiles", "none", {"agent": "none", "action": "gaussian"}])
def test_every_normaliser_makes_our_plans(normalizer: object, tmp_path: Path) -> None:
    check_loop(made(normalizer=normalizer), tmp_path / str(len(str(normalizer))), "ddpm", 3)


@over("name", [*EYES])
def test_every_encoder_of_images_makes_our_plans(name: str, tmp_path: Path) -> None:
    size = 40 if name == "resnet18" else 48
    check_loop(made(ObservationSpec("image", (size, size, 3)), encoder=EYES[name]), tmp_path / name, "ddim", 2)


def test_a_box_clips_every_estimate_and_the_plan_but_not_the_past(tmp_path: Path) -> None:
    policy = made()
    check_loop(policy, tmp_path / "out", "ddim", 5, BOX)
    _, noise = drawn(6, 2, policy)
    seen = {key: value.numpy() for key, value in observations(policy, 2).items()}
    plan = ran(tmp_path / "out" / "policy.onnx", {"noise": noise, **seen})["plan"][:, 1:]
    assert (plan >= BOX[0]).all()
    assert (plan <= BOX[1]).all()


def test_broken_observations_are_told_by_is_finite(tmp_path: Path) -> None:
    policy = made()
    export_onnx(policy, tmp_path / "out", "ddim", 2, parts=["policy"])
    seen = {key: value.numpy() for key, value in observations(policy, 3).items()}
    seen["agent"][1, 0, 0] = np.nan
    found = ran(tmp_path / "out" / "policy.onnx", {"noise": drawn(3, 3, policy)[1], **seen})
    assert found["is_finite"].tolist() == [True, False, True]


def stepwise(folder: Path, told: Path, seen: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    """The loop of docs/onnx.md over the step in `folder`, with the table that the file `told` has in its metadata."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for written, here in (("FOLDER", folder.as_posix()), ("step.get_modelmeta()", "told.get_modelmeta()")):
        assert written in program
        program = program.replace(written, here)
    names = {"observations": seen, "noise": noise, "told": onnxruntime.InferenceSession(told)}
    exec(program, names)
    return names["plan"]


@over("sampler", ["ddpm", "ddim", "dpmpp_3m", "heun"])
def test_the_step_takes_the_rows_of_any_sampler(sampler: str, tmp_path: Path) -> None:
    """Of a file that was made for another one."""
    policy = made(diffusion={"name": "denoising", "parameterization": "v"})
    export_onnx(policy, tmp_path / sampler, "ddim", 2, BOX, parts=["encoder", "step"])
    export_onnx(policy, tmp_path / f"{sampler}_told", sampler, 5, parts=["encoder"])
    rows = len(policy.sampler(sampler, 5))
    seen, (generators, noise) = observations(policy, 2), drawn(rows + 1, 2, policy)
    low, high = map(torch.tensor, BOX)
    chunk = policy.predict_action_chunk(
        seen, generators, policy.sampler(sampler, 5), lambda plan, row: plan.clamp(low, high)
    )
    told = tmp_path / f"{sampler}_told" / "encoder.onnx"
    plan = stepwise(tmp_path / sampler, told, {key: value.numpy() for key, value in seen.items()}, noise)
    pair = policy.codec.encode(torch.tensor(plan)), policy.codec.encode(chunk.plan)
    torch.testing.assert_close(*pair, rtol=0.0, atol=TOLERANCE)
    assert chunk.plan.std() > 0.1


@over("part", ["encoder", "step", "policy"])
def test_the_file_says_all_that_a_program_needs(part: str, tmp_path: Path) -> None:
    policy = made()
    policy.metadata = {"task": "reach", "env": {"id": "diffpolicy/ObstacleReach-v0"}}
    export_onnx(policy, tmp_path / part, "ddim", 3, BOX, opset=18, parts=[part])
    known = told(tmp_path / part / f"{part}.onnx")
    assert known["diffpolicy"]["part"] == part
    assert known["diffpolicy"]["opset"] == 18
    assert known["window"] == {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4}
    assert known["observations"]["blocks"]["shape"] == [3]
    assert known["limits"] == [-1.0, 1.0]
    assert known["box"] == {"low": BOX[0], "high": BOX[1]}
    assert known["task"] == "reach"
    rows = policy.sampler("ddim", 3).rows
    assert [row["alpha"] for row in known["sampler"]["rows"]] == [row.alpha for row in rows]
    for own, normalizer in ((known["action"], policy.codec), (known["observations"]["agent"], policy.normalizers[0])):
        assert own["normalizer"]["scale"] == normalizer.scale.tolist()
        assert own["normalizer"]["offset"] == normalizer.offset.tolist()


REFUSED = [
    ("parts .'all'. must be some of encoder, step, policy", {"parts": ["all"]}, {}),
    ("opset 9 must be between 17 and 20", {"opset": 9}, {}),
    ("box has 1 and 2 limits, expected 2", {"box": ([0.0], [1.0, 1.0])}, {}),
    ("low .* must not be above high", {"box": ([2.0, 0.0], [1.0, 1.0])}, {}),
    ("guidance, which is not exported", {"sampler": {"name": "ddim", "guidance": {"threshold": 0.9}}}, {}),
    (
        "400 evaluations are too many for one file",
        {"steps": 400},
        {"diffusion": {"name": "denoising", "num_levels": 400}},
    ),
    (
        "the encoder resnet18_narrow computes in bfloat16",
        {},
        {"encoder": {"name": "resnet18_narrow", "precision": "bfloat16"}},
    ),
    ("a mixture_density draws in float64", {}, {"diffusion": "mixture_density"}),
    ("has learned variance; give parts=.encoder,policy.", {}, {"diffusion": "learned_variance"}),
    (
        "sampler ddim has noise of correlation 0.9",
        {},
        {"diffusion": {"name": "denoising", "noise_correlation": 0.9}},
    ),
    ("sampler diffusers is no table", {"sampler": {"name": "diffusers", "scheduler": "DDIMScheduler"}}, {}),
]


@over("message, given, settings", REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    message: str, given: dict, settings: dict, tmp_path: Path
) -> None:
    policy = made(ObservationSpec("image", (48, 48, 3)) if "encoder" in settings else None, **settings)
    with pytest.raises(ValueError, match=message):
        export_onnx(policy, tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_in_double_precision_and_an_observation_called_noise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in torch\.float64, expected torch\.float32"):
        export_onnx(made().double(), tmp_path / "out")
    policy = DiffusionPolicy(PolicyConfig({"noise": 2}, 2, model=UNET))
    policy.fit({"noise": torch.rand(9, 2)}, torch.rand(9, 2))
    with pytest.raises(ValueError, match="observations noise have names of other inputs"):
        export_onnx(policy, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        export_onnx(made(), tmp_path)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the network is another one in torch when the two are compared: what was traced had a wrong weight."""
    policy = made()
    real = torch.onnx.export

    def spoiled(*arguments, **given) -> None:
        real(*arguments, **given)
        with torch.no_grad():
            policy.network.head[1].bias += 0.01

    monkeypatch.setattr(torch.onnx, "export", spoiled)
    with pytest.raises(ValueError, match=r"step\.onnx: differs from torch by .* of encoded units"):
        export_onnx(policy, tmp_path / "out", parts=["step"])
    assert list(tmp_path.iterdir()) == []


@over("package", ["onnx", "onnxruntime"])
def test_without_the_package_the_error_says_what_to_install(package: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"the package .* is missing; pip install 'diffpolicy\[onnx\]'"):
        export_onnx(made(), tmp_path / "out", parts=["encoder"])
    assert list(tmp_path.iterdir()) == []


def test_importing_the_room_loads_neither_package() -> None:
    program = "import sys, diffpolicy.interop; print([name for name in ('onnx', 'onnxruntime') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
