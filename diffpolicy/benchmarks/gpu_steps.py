"""The steps of benchmark_gpu.py, most telling first: each is a command with a time limit and figures that it leaves."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Figures = Callable[[Path], list[str]]  # lines of Markdown, from the folder that a step wrote


@dataclass(frozen=True)
class Size:
    """How much the steps do; lists are settings of the commands."""

    chunks: int = 25
    blocks: int = 4
    batch: int = 256
    episodes: int = 200
    planning: int = 2
    network: Sequence[str] = ("model=unet", "window.horizon=16", "trainer.precision=bfloat16")
    latency: Sequence[str] = ()
    one_model: Sequence[str] = ("~models.unet_small", "~models.unet_medium")

    @property
    def evaluation(self) -> tuple[str, ...]:
        return f"episodes={self.episodes}", f"inference_batch={self.episodes}", "videos=0"


SIZES: Mapping[str, Size] = {
    "full": Size(),
    "tiny": Size(
        chunks=1,
        blocks=2,
        batch=2,
        episodes=2,
        planning=1,
        network=("model.widths=[8,16]", "trainer.batch_size=8", "trainer.warmup_steps=1"),
        latency=("~models.unet_medium", "~models.unet"),
        one_model=("~models.unet_medium", "~models.unet"),
    ),
}
SHIPPED = "data/checkpoints/pusht_small"
# Diffusion Policy's state configuration (Chi et al. 2023), but for the number of steps.
PAPER = (
    "diffusion.parameterization=epsilon",
    "trainer.learning_rate=1e-4",
    "trainer.warmup_steps=500",
    "trainer.validate_every=100000",
    "trainer.evaluate_every=100000",
    "trainer.checkpoint_every=100000",
)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: also the folder that it writes to.
        command: program and arguments.
        limit_s: it is stopped after this time.
        figures: reads what it wrote.
    """

    name: str
    command: list[str]
    limit_s: float
    figures: Figures


def script(name: str, folder: Path, *settings: str) -> list[str]:
    """The command of a script that writes to `folder`, in the folder of the repository."""
    return [sys.executable, f"scripts/{name}.py", *settings, f"hydra.run.dir={folder}"]


def measurements(size: Size, device: str, folder: Path) -> list[Step]:
    """The steps that do not depend on how much time is left."""
    chunks, blocks = f"chunks_per_block={size.chunks}", f"blocks={size.blocks}"
    many = (f"batch={size.batch}", f"chunks_per_block={max(1, size.chunks // 10)}", "blocks=3")

    def step(name: str, command: str, limit_s: float, figures: Figures, *settings: str) -> Step:
        return Step(name, script(command, folder / name, f"device={device}", *settings), limit_s, figures)

    inference, cost = "benchmark_inference", "training_cost"
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "8", "-p", "no:cacheprovider"]
    tests += sorted(map(str, Path("tests").rglob("test_*_gpu.py")))  # the others need more packages
    return [
        Step("tests", tests, 110, no_figures),
        step("latency", inference, 90, latency, "threads=[1]", chunks, blocks, *size.latency),
        step("one_step", inference, 45, latency, "threads=[1]", chunks, blocks, "steps=1", *size.one_model),
        step("throughput", inference, 60, latency, "threads=[1]", *many, *size.one_model),
        step("training", cost, 45, training, "task=pusht", *size.network),
        step("compiled", cost, 100, training, "task=pusht", *size.network, "trainer.compile=true"),
    ]


def recipe(size: Size, device: str, folder: Path, steps: int, limit_s: float, *settings: str) -> list[Step]:
    """The paper's recipe on the human data: training for `steps` steps, then its evaluation with DDIM and DDPM."""
    d, run = f"device={device}", folder / "recipe"
    train = script("train_policy", run, d, "task=pusht_human", *PAPER, *size.network, *settings)
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last'}"
    ddim = script("evaluate_policy", folder / "recipe_ddim", d, checkpoint, *size.evaluation)
    ddpm = script("evaluate_policy", folder / "recipe_ddpm", d, checkpoint, *size.evaluation, "sampler=ddpm")
    return [
        Step("recipe", [*train, f"trainer.steps={steps}", "evaluation.episodes=2"], limit_s, losses),
        Step("recipe_ddim", ddim, 60, score),
        Step("recipe_ddpm", ddpm, 90, score),
    ]


def acting(size: Size, device: str, folder: Path) -> list[Step]:
    """The shipped policy, alone and under safety; if there is time left."""
    shipped = (f"device={device}", f"checkpoint={SHIPPED}")
    planning = ("scene=pusht", "modes=[last_half]", "candidates=[1,8]", "batches=[1]", f"episodes={size.planning}")
    evaluation = script("evaluate_policy", folder / "evaluation", *shipped, *size.evaluation)
    return [
        Step("evaluation", evaluation, 60, score),
        Step("planning", script("benchmark_planning", folder / "planning", *shipped, *planning), 45, planning_table),
    ]


def no_figures(folder: Path) -> list[str]:
    return []


def latency(folder: Path) -> list[str]:
    lines = ["| network | contestant | p50, ms | p99, ms | mean, ms | ours over it |", "|---" * 6 + "|"]
    cells = "| {model} | {name} | {p50_ms:.2f} | {p99_ms:.2f} | {wall_ms:.2f} | {ratio:.2f} |"
    return [*lines, *(cells.format(**row) for row in read(folder / "benchmark_inference.json")["summary"])]


def training(folder: Path) -> list[str]:
    cost = read(folder / "cost.json")
    return [
        f"{cost['parameters']:,} parameters: {1e3 * cost['step_s']:.2f} ms per step of {cost['gflop']:.0f} GFLOP, "
        f"{cost['step_gflops'] / 1e3:.1f} TFLOP/s; plain products {cost['product_gflops'] / 1e3:.0f} TFLOP/s"
    ]


def score(folder: Path) -> list[str]:
    found = read(folder / "results.json")
    (low, high), (low_rate, high_rate) = found["score_ci95"], found["success_ci95"]
    return [
        f"{found['n_episodes']} episodes, {found['sampler']['name']} with {found['steps']} steps: mean score "
        f"{found['mean_score']:.3f} [{low:.3f}, {high:.3f}], success {found['success_rate']:.1%} "
        f"[{low_rate:.1%}, {high_rate:.1%}], {found['latency_ms']['p50']:.1f} ms per chunk"
    ]


def planning_table(folder: Path) -> list[str]:
    return (folder / "benchmark_planning.md").read_text(encoding="utf-8").splitlines()


def losses(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [row for row in rows if "loss" in row]
    return [f"step {row['step']:,}: loss {row['loss']:.4f}" for row in (logged[0], logged[-1])]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
