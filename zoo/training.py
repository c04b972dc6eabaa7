"""The one training loop: AdamW, warm-up and cosine, label smoothing, an optional average, exact resume.

Every random choice of step n depends on (seed, epoch, photo) or (seed, step) only, so that a training that was killed
and resumed ends in the same weights, bit for bit on the CPU, as one that was not.

In several processes (see `zoo.processes`) each takes its share of every batch and gradients are averaged; the first one
validates, logs and saves.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.core.errors import ChangedSettingsError, ConfigError, EngineError
from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.runs import describe_changes
from engine.core.storage import write_text
from zoo.checkpoints import Checkpoint, clear_checkpoints, load_checkpoint, save_checkpoint
from zoo.logs import Logs, WriteRow
from zoo.mixing import mix_batch
from zoo.network import Network
from zoo.recipe import TrainConfig
from zoo.samplers import epoch_order
from zoo.sources import Rows, Source

Validate = Callable[[Network], float]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a training learns from.

    Attributes:
        source: gives batches of rows.
        rows: the training photos, [N].
        targets: the class of each row, int [N].
        validate: the GAP of a model on the fold that is held out, in one view; NaN where it shows no landmark that
            training knows.
    """

    source: Source
    rows: Rows
    targets: NDArray[np.int64]
    validate: Validate


@dataclass(frozen=True, eq=False)
class Session:
    """Where and how a training runs; nothing here changes its result on one kind of device.

    Attributes:
        folder: for `state/` and `metrics.jsonl`.
        accelerator: device and precision.
        mixed: whether the network runs in the accelerator's precision; small heads stay in fp32.
        progress: told of each step.
        stop: looked at after each step.
        label: what the progress is called.
        force_new: whether a state made from other inputs is discarded instead of refused.
        logs: to write beside `metrics.jsonl`.
    """

    folder: Path
    accelerator: Accelerator
    mixed: bool
    progress: Progress
    stop: StopRequest
    label: str
    force_new: bool = False
    logs: Logs = field(default_factory=Logs)


class Steps(NamedTuple):
    """How a training is cut into steps."""

    batch: int  # photos of a step, in all processes
    per_epoch: int
    total: int


def count_steps(targets: NDArray[np.int64], config: TrainConfig, *, seed: int, processes: int, label: str) -> Steps:
    """How a training is cut into steps.

    Args:
        targets: the class of each training photo, int [N].
        config: epochs, batch size, sampler.
        seed: of the sampler.
        processes: that share each batch.
        label: what the training is called.

    Raises:
        ConfigError: when there are more processes than photos in a batch.

    >>> count_steps(np.zeros(100, np.int64), TrainConfig(epochs=2, batch_size=32), seed=0, processes=1, label="")
    Steps(batch=32, per_epoch=3, total=6)
    """
    # equally many photos in every epoch
    photos = len(epoch_order(targets, config.sampler, seed=seed, epoch=0, batch_size=config.batch_size))
    batch = min(config.batch_size, photos) // processes * processes
    if batch == 0:
        raise ConfigError(
            f"{label}: {processes} processes cannot share a batch of {min(config.batch_size, photos)}",
            hint="lower processes, or raise train.batch_size",
        )
    per_epoch = photos // batch  # a last small batch waits for the next epoch
    return Steps(batch, per_epoch, max(1, round(config.epochs * per_epoch)))


def learning_rate_at(step: int, total: int, warmup: float) -> float:
    """The factor of the learning rate at a step, 0..1: linear warm-up, then a half cosine to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def size_in_epoch(config: TrainConfig, epoch: int) -> int | None:
    """Pixels of the photos that an epoch, counted from 0, sees; None where they are those of the recipe's input."""
    return config.first_size if epoch < config.epochs - config.last_epochs else None


def seed_step(seed: int, number: int) -> None:
    """Make torch's own generator ready for a step: mixing and dropout draw from it.

    Args:
        seed: of the run.
        number: of the step, from 0; in several processes, of the share of one.
    """
    torch.manual_seed((seed << 32) + number)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the head's own learning rate and no decay of biases and norms."""
    groups = []
    for is_head in (False, True):
        part = nn.ParameterDict(
            {
                name.replace(".", "/"): parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and _is_head(name) == is_head
            }
        )
        for group in param_groups_weight_decay(part, config.weight_decay):
            if group["params"]:
                factor = config.head_lr_factor if is_head else 1.0
                groups.append({**group, "lr": config.lr * factor, "factor": factor})
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "auxiliary."))


def train(
    model: Network,
    data: TrainingSet,
    config: TrainConfig,
    session: Session,
    *,
    seed: int,
    inputs: Mapping[str, Any],
    set_mode: Callable[[nn.Module], None],
) -> Network:
    """Train a model to the end, from the newest checkpoint if there is one.

    The checkpoints stay: who keeps the result removes them, so that a kill in between costs nothing.

    Args:
        model: from batches of the source to logits [B, C], and with targets to the loss; on the session's device.
        data: the training photos and the held-out fold.
        config: the recipe's settings.
        session: device, folders and progress.
        seed: of everything random.
        inputs: what the result is made from, kept in checkpoints.
        set_mode: puts the model in training mode, frozen parts left alone.

    Returns:
        The trained model, or its exponential average when the recipe asks for one; in evaluation mode.

    Raises:
        ChangedSettingsError: when a checkpoint of other settings stands in the folder and `force_new` is not set.
        EngineError: when the loss is no longer finite.
        KeyboardInterrupt: when asked to stop; the state is saved.
    """
    loop = _Loop(model, data, config, session, seed, dict(inputs))
    with session.accelerator.main_process_first():  # it also clears away what cannot be used
        loop.resume()
    logs = session.logs if loop.is_first and loop.step < loop.total else Logs()
    try:
        with (
            logs.open(loop.step, inputs) as loop.write_row,
            session.progress.task(session.label, loop.total, "step") as advance,
        ):
            advance(loop.step, "")
            while loop.step < loop.total:
                set_mode(model)
                loop.run_epoch(advance)
            loop.hand_over()
    finally:
        session.accelerator.free_memory()  # else it keeps the optimiser, and so the model, of every training
    return loop.best_model.eval()


class _Loop:
    """The state of one training between its steps."""

    def __init__(
        self,
        model: Network,
        data: TrainingSet,
        config: TrainConfig,
        session: Session,
        seed: int,
        inputs: dict[str, Any],
    ) -> None:
        self.model, self.data, self.config, self.session = model, data, config, session
        self.seed, self.inputs = seed, inputs
        self.state = session.folder / "state"
        self.metrics = session.folder / "metrics.jsonl"
        self.optimizer = session.accelerator.prepare(make_optimizer(model, config))
        self.ema = None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
        self.processes: int = session.accelerator.num_processes
        self.is_first: bool = session.accelerator.is_main_process
        self.batch, self.steps_per_epoch, self.total = count_steps(
            data.targets, config, seed=seed, processes=self.processes, label=session.label
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []  # a row of `metrics.jsonl` per epoch
        self.write_row: WriteRow  # to the logs
        self.saved_at = time.monotonic()
        self.forward: nn.Module = model  # of a training step

    @property
    def best_model(self) -> Network:
        best: Network = self.model if self.ema is None else self.ema.module
        return best

    def resume(self) -> None:
        """Go on from the newest whole checkpoint."""
        checkpoint, damaged = load_checkpoint(self.state)
        for path in damaged:
            self.session.progress.say(f"{path}: damaged, passed over")
            path.unlink()  # it would take the place of a whole one among the newest two
        if checkpoint is None:
            return
        changes = describe_changes(checkpoint.inputs, self.inputs)
        if changes and not self.session.force_new:
            raise ChangedSettingsError(
                f"{self.state}: an unfinished training was made from other settings:\n" + "\n".join(changes),
                hint="use --force-new to begin it anew, or another --run",
            )
        if changes:
            clear_checkpoints(self.state)
            return
        self._restore(checkpoint)

    def run_epoch(self, advance: Callable[[int, str], None]) -> None:
        """Train to the end of the current epoch and validate; save on the way."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        losses, began = [], time.monotonic()
        if self.processes > 1 and self.forward is self.model:  # now that frozen parts are known
            device = self.session.accelerator.device
            numbers = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.model, device_ids=numbers)
        for batch, target in self._batches(epoch, done):
            losses.append(self._train_step(batch, target))
            self.step += 1
            rate = len(losses) * self.batch / (time.monotonic() - began)
            advance(1, f"loss {losses[-1]:.3f}, {rate:.0f}/s")
            if self._asked_to_stop():
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - self.saved_at > self.config.checkpoint_seconds:
                self._save()
        if not self.is_first:
            return
        rate = len(losses) * self.batch / (time.monotonic() - began)
        gap = self.data.validate(self.best_model.eval())
        self._log(
            {
                "epoch": epoch + 1,
                "step": self.step,
                "loss": float(np.mean(losses)),
                "validation_gap": None if math.isnan(gap) else gap,
                "learning_rate": self.config.lr * learning_rate_at(self.step - 1, self.total, self.config.warmup),
                "images_per_second": round(rate, 1),
                "seconds": round(time.monotonic() - began, 3),
            }
        )
        advance(0, f"loss {np.mean(losses):.3f}, validation GAP {gap:.4f}")

    def _order(self, epoch: int) -> Rows:
        config = self.config
        return epoch_order(self.data.targets, config.sampler, seed=self.seed, epoch=epoch, batch_size=config.batch_size)

    def _batches(self, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch)
        steps = min(self.steps_per_epoch, self.total - epoch * self.steps_per_epoch)
        accelerator = self.session.accelerator
        order = order[done * self.batch : steps * self.batch][accelerator.process_index :: self.processes]
        share = self.batch // self.processes
        targets = torch.from_numpy(self.data.targets[order]).to(accelerator.device)
        batches = self.data.source.train_batches(
            self.data.rows[order], epoch=epoch, batch_size=share, size=size_in_epoch(self.config, epoch)
        )
        return zip(batches, torch.split(targets, share), strict=True)

    def _asked_to_stop(self) -> bool:
        """Whether any of the processes was; all get the same answer, after the same step."""
        accelerator = self.session.accelerator
        asked = torch.tensor(float(self.session.stop.requested), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    def _train_step(self, batch: Tensor, target: Tensor) -> float:
        accelerator = self.session.accelerator
        seed_step(self.seed, self.step * self.processes + accelerator.process_index)
        factor = learning_rate_at(self.step, self.total, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * group["factor"] * factor
        mix = mix_batch(batch, self.config)
        with accelerator.autocast() if self.session.mixed else nullcontext():
            loss = self.forward(batch if mix is None else mix.batch, target, self.config.label_smoothing, mix)
        value = float(accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise EngineError(
                f"{self.session.label}: the loss is {value} at step {self.step + 1}",
                hint="lower train.lr or train.clip_norm, or use --set precision=fp32; the last checkpoint is kept",
            )
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        return value

    def hand_over(self) -> None:
        """Save the end of a training in several processes for the one that started them."""
        if self.processes > 1:
            self._save()

    def _save(self) -> None:
        if not self.is_first:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        scaler = self.session.accelerator.scaler  # there only in fp16
        facts = {"history": self.history} | ({} if scaler is None else {"scaler": scaler.state_dict()})
        save_checkpoint(self.state, Checkpoint(self.step, self.inputs, tensors, facts))
        self.saved_at = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(_with_prefix(checkpoint.tensors, "model."))
        if self.ema is not None:
            self.ema.module.load_state_dict(_with_prefix(checkpoint.tensors, "ema."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(checkpoint.tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            # fused AdamW walks through raw memory: a moment must lie as its parameter does (channels last)
            laid_out = torch.empty_like(parameters[int(index)]).copy_(tensor) if tensor.ndim else tensor
            state.setdefault(int(index), {})[key] = laid_out
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if "scaler" in checkpoint.facts:
            self.session.accelerator.scaler.load_state_dict(checkpoint.facts["scaler"])
        self.history = checkpoint.facts["history"]
        self.step = checkpoint.step

    def _log(self, row: Mapping[str, Any]) -> None:
        self.history.append(dict(row))
        write_text(self.metrics, "".join(json.dumps(each) + "\n" for each in self.history))
        self.write_row(row)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
