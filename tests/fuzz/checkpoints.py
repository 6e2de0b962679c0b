"""Cases on checkpoints: a config, weights or a training state that was changed, with the hashes made right again."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import walk
from judge import SilentError
from mutations import WEIRD, changed_bytes, changed_text, changed_tree, paths

from diffpolicy.evaluation.saved_env import saved_env
from diffpolicy.policy.kinds import load_policy
from diffpolicy.system import checkpoint
from diffpolicy.system.plain import difference
from diffpolicy.training.run_log import Metrics
from diffpolicy.training.trainer import Trainer

ENV = {"id": "diffpolicy_envs:diffpolicy/PushT-v0", "kwargs": {"obs_type": "keypoints"}, "reset_options": {}}
RANGES = {  # as documented
    "kernel_size": (1, 255),
    "groups": (1, 65536),
    "time_embedding_dim": (4, 65536),
    "num_levels": (1, 10_000),
    "condition_dropout": (0, 1 - 1e-9),
    "horizon": (1, 4096),
    "n_obs_steps": (1, 4096),
    "n_action_steps": (1, 4096),
    "action_dim": (1, 65536),
    "step": (0, 2**63),
}
Case = tuple[str, Callable[[], None]]


def prepare(folder: Path) -> None:
    """Train a small run in FOLDER/run."""
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):
        Trainer(_settings(folder), folder / "run").run()
    path = folder / "run" / "checkpoints" / "step_4" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(_hashed({**content, "env": ENV}))


def config_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """A changed config.json of a policy."""
    saved = _copied(base, folder)
    before = json.loads((saved / "config.json").read_text())
    what = _change_config(saved, random_, [path for path in paths(before) if path[0] not in ("training", "sha256")])
    return f"config {what}", lambda: _load_policy(saved, before)


def weights_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """Changed weights of a policy."""
    saved = _copied(base, folder)
    before = json.loads((saved / "config.json").read_text())
    specs = _specs(saved / "model.safetensors")
    what = _change_tensors(saved / "model.safetensors", random_)

    def load() -> None:
        policy = _load_policy(saved, before)
        if _specs(saved / "model.safetensors") != specs:
            raise SilentError("weights of other names, shapes or dtypes")
        if not all(bool(value.isfinite().all()) for value in policy.state_dict().values()):
            raise SilentError("weights that are not finite")

    return f"weights {what}", load


def state_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """A changed training state, its settings or the metrics of a run that is resumed for a step."""
    saved = _copied(base, folder)
    path = saved / "training_state.safetensors"
    before, specs = json.loads((saved / "config.json").read_text()), _specs(path)
    part = random_.randrange(4)
    if part == 0:
        what = _change_config(saved, random_, [one for one in paths(before) if one[0] in ("training", "step")])
    elif part == 1:
        what = _change_metrics(saved.parents[1] / "metrics.jsonl", random_)
    else:
        what = _change_tensors(path, random_)

    def load() -> None:
        config = dataclasses.replace(_settings(base), resume=True)
        trainer = Trainer(config, saved.parents[1])
        if trainer.step != 4 or math.isnan(trainer.best_score) or _specs(path) != specs:
            raise SilentError(f"step {trainer.step}, best {trainer.best_score}")
        loss, norm = trainer.train_step()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}")  # as the trainer does when it logs
        metrics = Metrics(trainer.folder.path, config.logger, {}, trainer.step)
        for row in metrics.rows:
            numbers = all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
            if not numbers or type(row["step"]) is not int:
                raise SilentError(f"metrics {row}")

    return f"state {what}", load


def _settings(folder: Path) -> Any:
    return walk.settings(folder / "walk.zarr", trainer={"steps": 4, "checkpoint_every": 4, "validate_every": 4})


def _copied(base: Path, folder: Path) -> Path:
    shutil.copytree(base / "run", folder / "run", symlinks=True)
    return folder / "run" / "checkpoints" / "step_4"


def _load_policy(saved: Path, before: dict[str, Any]) -> Any:
    policy = load_policy(saved)
    found = json.loads((saved / "config.json").read_text())
    if told := difference(found["policy"], dataclasses.asdict(policy.config)):
        raise SilentError(f"other settings than in the file: {told}")
    if found.get("env") is not None:
        saved_env(policy, f"checkpoint: {saved}")
    for part in ("policy", "task", "step", "env"):
        if part in found:
            _check_like(found[part], before[part], part)
    return policy


def _check_like(found: Any, before: Any, path: str) -> None:
    """Raise SilentError if a value has another type than before, or lies out of its documented range."""
    if path.startswith(("env.kwargs.", "env.reset_options.", "policy.observations")) or before is None or found is None:
        return
    numbers = isinstance(before, float) and type(found) is int
    if type(found) is not type(before) and not numbers:
        raise SilentError(f"{path} is {found!r}, was {before!r}")
    if isinstance(found, int | float) and not isinstance(found, bool):
        low, high = RANGES.get(path.rpartition(".")[2], (-1e308, 1e308))
        if not low <= found <= high:
            raise SilentError(f"{path} is {found!r}")
    for key in before if isinstance(before, dict) else ():
        if key in found:
            _check_like(found[key], before[key], f"{path}.{key}")


def _change_config(saved: Path, random_: random.Random, among: list[tuple[Any, ...]]) -> str:
    path = saved / "config.json"
    text = path.read_text()
    if random_.random() < 0.2:
        path.write_bytes(changed_text(text, random_).encode("utf-8", "surrogatepass"))
        return "text"
    tree, what = changed_tree(json.loads(text), random_, among)
    path.write_text(_hashed(tree))
    return what


def _change_tensors(path: Path, random_: random.Random) -> str:
    if random_.random() < 0.4:
        data, what = _changed_file(path.read_bytes(), random_)
        path.write_bytes(data)
    else:
        tensors = safetensors.torch.load_file(path)
        what = _changed_tensor(tensors, random_)
        path.write_bytes(safetensors.torch.save(tensors))
    config = path.with_name("config.json")
    content = json.loads(config.read_text())
    content["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    config.write_text(_hashed(content))
    return what


def _changed_file(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    """The bytes with a change anywhere, or with another header in which a tensor claims something else."""
    length = int.from_bytes(data[:8], "little")
    if random_.random() < 0.4:
        return changed_bytes(data, random_), "bytes"
    header = data[8 : 8 + length].decode()
    if random_.random() < 0.3:
        changed, what = changed_text(header, random_), "header text"
    else:
        tree = json.loads(header)
        tree, what = changed_tree(tree, random_, paths(tree))
        changed, what = json.dumps(tree), f"header {what}"
    new = changed.encode("utf-8", "surrogatepass")
    claimed = len(new) if random_.random() < 0.9 else random_.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1))
    return claimed.to_bytes(8, "little") + new + data[8 + length :], what


def _changed_tensor(tensors: dict[str, torch.Tensor], random_: random.Random) -> str:
    name = random_.choice(sorted(tensors))
    value = tensors[name]
    kind = random_.choice(("one", "dtype", "double", "drop", "rename", "add", "value", "empty", "transpose", "large"))
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == "add":
        tensors["surplus"] = torch.zeros(random_.choice((0, 1, 7)))
    elif kind == "value":
        bad = random_.choice((math.nan, math.inf, -math.inf, -1.0, 1e30))
        flat = value.flatten().clone()
        if flat.numel():
            flat[random_.randrange(flat.numel())] = bad if value.is_floating_point() else 1
        tensors[name] = flat.reshape(value.shape)
    else:
        changes = {
            "one": lambda: torch.zeros(1, dtype=value.dtype),
            "dtype": lambda: value.to(random_.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64))),
            "double": lambda: value.repeat(2, *[1] * max(0, value.dim() - 1)) if value.dim() else value.repeat(2),
            "empty": lambda: value.flatten()[:0],
            "transpose": lambda: value.reshape(value.shape[::-1]).clone(),
            "large": lambda: torch.zeros(random_.choice((10**5, 10**6)), dtype=value.dtype),
        }
        tensors[name] = changes[kind]().contiguous()
    return f"{kind} {name}"


def _change_metrics(path: Path, random_: random.Random) -> str:
    lines = path.read_text().splitlines()
    index = random_.randrange(len(lines))
    if random_.random() < 0.4:
        lines[index] = changed_text(lines[index], random_)
    else:
        tree = json.loads(lines[index])
        lines[index] = json.dumps(changed_tree(tree, random_, paths(tree))[0] if random_.random() < 0.9 else WEIRD[0])
    path.write_text("\n".join(lines) + "\n")
    return f"metrics line {index}"


def _hashed(content: dict[str, Any]) -> str:
    """The text of a config.json with its own hash made right."""
    if isinstance(content.get("sha256"), dict):
        content["sha256"]["config.json"] = checkpoint._config_hash(content)
    return json.dumps(content)


def _specs(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]] | None:
    try:
        return {name: (value.dtype, tuple(value.shape)) for name, value in safetensors.torch.load_file(path).items()}
    except Exception:
        return None
