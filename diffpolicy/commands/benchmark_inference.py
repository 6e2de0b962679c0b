"""Benchmark the time of a chunk against other libraries: python scripts/benchmark_inference.py peer_python=PYTHON

The contestants are ours (`predict_action_chunk`), our network in a plain loop with the scheduler of diffusers,
LeRobot's diffusion U-Net in the same loop, if an interpreter has it, and on a CPU the policy as an ONNX file, if
onnxruntime is installed; its encoder is a part of the file, so it is not timed apart. On a GPU (device=cuda) ours is a
CUDA graph and `eager` is the same without it. Samplers other than ddim are run by ours, eager and onnx only. A model
with an encoder sees two frames, which each chunk encodes anew; LeRobot has only `resnet18`. All use the same weights,
noise and observation, and their plans are compared. Each runs in its own child process; they alternate block by block.
Writes benchmark_inference.json, .csv and .png, and benchmark_inference_kernels.txt with the forms of products that were
timed and chosen. DIFFPOLICY_KERNELS fixes the form; with bfloat16 the plans may differ by SAME_PLAN_BFLOAT16.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save_file

from diffpolicy.benchmarks import inference_worker
from diffpolicy.benchmarks.child import Child, Threads, find_peer
from diffpolicy.benchmarks.figures import plot_blocks
from diffpolicy.benchmarks.files import with_range, write_rows
from diffpolicy.benchmarks.inference_worker import LEVELS, make_policy
from diffpolicy.benchmarks.lerobot_weights import lerobot_name
from diffpolicy.commands.command import command
from diffpolicy.evaluation.settings import InferenceBatch
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.layers import products
from diffpolicy.system.device import choose_device
from diffpolicy.system.files import write_text
from diffpolicy.system.schema import Count, OneOf, Range

WORKER = Path(inference_worker.__file__)
OURS = "diffpolicy"
KERNELS = "benchmark_inference_kernels.txt"
SAME_PLAN = 1e-4  # for actions in [-1, 1]: ten times the rounding error of ten steps of the widest network
SAME_PLAN_ROUNDED = 0.05  # several times what was found with bfloat16, and with TF32, torch's convolutions on a GPU


@dataclass
class MeasuredModel(UNet1dConfig):
    """A U-Net and what it sees: with an encoder of images two frames of 96 x 96 pixels, else a vector."""

    encoder: Annotated[str, OneOf("low_dim", "resnet18", "resnet18_narrow")] = "low_dim"


@dataclass
class BenchmarkInferenceConfig:
    """All settings of `benchmark_inference.py`; see configs/benchmark_inference.yaml."""

    models: Annotated[dict[str, MeasuredModel], Count(1, 64)] = field(default_factory=dict)
    threads: Annotated[list[Threads], Count(1, 64)] = field(default_factory=list)
    sampler: str = "ddim"
    steps: Annotated[int, Range(1, LEVELS)] = 10
    batch: InferenceBatch = 1
    device: str = "cpu"
    blocks: Annotated[int, Range(2, 1000)] = 8
    chunks_per_block: Annotated[int, Range(1, 1_000_000)] = 3
    peer_python: str | None = None


@command("benchmark_inference", BenchmarkInferenceConfig)
def main(config: BenchmarkInferenceConfig, folder: Path) -> None:
    if config.steps < 1 or LEVELS % config.steps:
        raise ValueError(f"steps {config.steps} must divide {LEVELS}: otherwise the DDIM of diffusers has another grid")
    device = choose_device(config.device)
    pythons = interpreters(config, device)
    products.setting()  # refuses a wrong DIFFPOLICY_KERNELS before any work
    rows = [row for name, model in config.models.items() for row in measure(config, name, model, pythons)]
    write_text(folder / KERNELS, "\n".join([*timed_kernels(rows), ""]))
    summary = summarise(rows)
    write(folder, config, rows, summary)
    for line in summary:
        print(
            f"{line['model']:<12} {line['threads']} threads  {line['name']:<10} "
            f"{line['wall_ms']:>8.2f} ms (p50 {line['p50_ms']:.2f}, p99 {line['p99_ms']:.2f}), "
            f"{line['encoder_ms']:.2f} ms of it the encoder, {1e3 * config.batch / line['wall_ms']:.1f} chunks/s, "
            f"{line['cpu_ms']:>8.1f} ms of CPU; ours takes "
            f"{line['ratio']:.2f} [{line['ratio_lowest']:.2f}, {line['ratio_highest']:.2f}] of that time, CPU "
            f"{line['cpu_ratio']:.2f} [{line['cpu_ratio_lowest']:.2f}, {line['cpu_ratio_highest']:.2f}]"
        )
    print(f"{folder / 'benchmark_inference.json'}, {folder / KERNELS}")


def interpreters(config: BenchmarkInferenceConfig, device: torch.device) -> dict[str, str]:
    """The Python interpreter of each contestant."""
    ours = [OURS, *_exported()] if device.type == "cpu" else [OURS, "eager"]
    if config.sampler != "ddim":
        return dict.fromkeys(ours, sys.executable)
    peer_python = find_peer("lerobot", config.peer_python)
    peers = {} if peer_python is None else {"lerobot": peer_python}
    return {**dict.fromkeys([*ours, "plain"], sys.executable), **peers}


def _exported() -> list[str]:
    return ["onnx"] if all(map(find_spec, ("onnx", "onnxruntime"))) else []


def measure(config: BenchmarkInferenceConfig, name: str, model: MeasuredModel, pythons: dict[str, str]) -> list[dict]:
    """One row per counted block, number of threads and contestant."""
    rows, children = [], list[Child]()
    device = str(choose_device(config.device))
    work = {"sampler": config.sampler, "steps": config.steps, "batch": config.batch, "device": device}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for contestant, python in pythons.items():
                if contestant == "lerobot" and model.encoder == "resnet18_narrow":
                    continue  # LeRobot takes the widths of torchvision's
                weights = save_weights(Path(folder), model, contestant)
                arguments = [contestant, str(weights), json.dumps(asdict(model)), json.dumps(work)]
                children.append(Child(python, WORKER, arguments))
            for threads in config.threads:
                for block in range(config.blocks):
                    order = children if block % 2 == 0 else children[::-1]
                    request = {"threads": threads, "chunks": config.chunks_per_block}
                    answers = {child.name: child.ask(request) for child in order}
                    check_plans({key: answer.pop("plan") for key, answer in answers.items()}, device)
                    where = {"model": name, "threads": threads, "block": block}
                    rows += [{**where, "name": key, **answer} for key, answer in answers.items() if block > 0]
        finally:
            for child in children:
                child.close()
    return rows


def timed_kernels(rows: list[dict]) -> list[str]:
    """What our processes report of their kernels, taken out of the rows: model, then one line per shape."""
    lines = {}
    for row in rows:
        kernels = row.pop("kernels")
        if row["name"] == OURS:
            lines[row["model"]] = [f"{row['model']}: {line}" for line in kernels]  # the last block has them all
    return [line for one in lines.values() for line in one]


def save_weights(folder: Path, model: MeasuredModel, contestant: str) -> Path:
    """Save the same random weights for every contestant, under its own parameter names."""
    torch.manual_seed(0)
    policy = make_policy(asdict(model))
    parts = (("encoder", policy.encoder), ("network", policy.network))
    weights = {f"{part}.{name}": value for part, module in parts for name, value in module.state_dict().items()}
    rename = lerobot_name if contestant == "lerobot" else str
    path = folder / f"{contestant}.safetensors"
    save_file({rename(name): value.contiguous() for name, value in weights.items()}, path)
    return path


def check_plans(plans: dict[str, list[float]], device: str) -> None:
    """Raise ValueError unless all contestants made the same plan as ours."""
    is_rounded = device.startswith("cuda") or products.setting() == "bfloat16"
    limit = SAME_PLAN_ROUNDED if is_rounded else SAME_PLAN
    for name, plan in plans.items():
        difference = max(abs(own - other) for own, other in zip(plans[OURS], plan, strict=True))
        if not difference <= limit:
            raise ValueError(f"{name}: its plan differs from ours by {difference:.1e}, expected at most {limit}")


def summarise(rows: list[dict]) -> list[dict]:
    """Per model, number of threads and contestant: medians, and the ratio of our time to its time in the same block."""
    found = {(row["model"], row["threads"], row["name"], row["block"]): row for row in rows}
    summary = []
    for model, threads, name in dict.fromkeys(key[:3] for key in found):
        own = [row for key, row in found.items() if key[:3] == (model, threads, name)]
        line = {"model": model, "threads": threads, "name": name}
        for kind, prefix in (("wall_ms", "ratio"), ("cpu_ms", "cpu_ratio")):
            ratios = [found[model, threads, OURS, row["block"]][kind] / row[kind] for row in own]
            line |= {kind: statistics.median(row[kind] for row in own), **with_range(prefix, ratios)}
        line |= {kind: statistics.median(row[kind] for row in own) for kind in ("p50_ms", "p99_ms", "encoder_ms")}
        summary.append(line)
    return sorted(summary, key=lambda line: (line["model"], line["threads"], line["cpu_ms"]))


def write(folder: Path, config: BenchmarkInferenceConfig, rows: list[dict], summary: list[dict]) -> None:
    """Write benchmark_inference.json (everything), .csv (blocks) and .png (blocks as points) into `folder`."""
    machine = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    document = {"config": asdict(config), **machine, "summary": summary, "blocks": rows}
    write_rows(folder, "benchmark_inference", document, rows)
    blocks: dict[str, list[float]] = {_label(line): [] for line in summary}
    for row in rows:
        blocks[_label(row)].append(row["wall_ms"])
    ours = [_label(line) for line in summary if line["name"] == OURS]
    plot_blocks(blocks, folder / "benchmark_inference.png", f"ms per call, batch {config.batch}", ours, log=True)


def _label(row: dict) -> str:
    return f"{row['model']}, {row['threads']} threads, {row['name']}"
