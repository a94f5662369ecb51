"""Healing: a short training of what a conversion made, on the original's own predictions, by transformers' Trainer.

Trained are B, A_k and A_v of each layer (for queries and keys: B, A_q and A_k) and W_O; all else is frozen. The loss is
the divergence of the next-token distributions, KL(original ‖ converted), in nats a token. One GPU, several processes or
mixed precision are what `accelerate` is configured for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from querykey.conversion.convert import Conversion, mixed
from querykey.conversion.evaluate import overall
from querykey.conversion.fit import Switch
from querykey.conversion.texts import Text
from querykey.extras import load

if TYPE_CHECKING:
    from querykey.report.progress import Watch

RATE = 1e-4
SHARES = (1.0, 0.5)  # of the way from the closed form to the trained weights that are tried


def heal(
    conversion: Conversion,
    texts: Sequence[Text],
    evaluation: Sequence[Text],
    *,
    steps: int,
    rate: float = RATE,
    folder: str | Path,
    watch: Watch = lambda what, done, total: None,
    **options: Any,
) -> bool:
    """Train for `steps` windows of `texts`, and keep the result if no evaluation text gets worse; whether it was kept.

    Where one does, the weights halfway between the closed form and the result are tried, and kept on the same condition
    (weights along that line as in arXiv 2109.01903).

    Args:
        conversion: evaluated already, or it will be; its `costs` are those of what it is afterwards.
        texts: windows to train on, taken by turns from each text, again from the beginning where they do not suffice.
        evaluation: texts that decide.
        steps: of one window each (for each process).
        rate: learning rate; it falls to 0 along a cosine.
        folder: where the Trainer keeps its checkpoints and logs; training resumes from the last checkpoint there.
        watch: called with what is done, how much of it, and of how much.
        options: further arguments of transformers' `TrainingArguments`.
    """
    switch = conversion.switch
    before = conversion.costs or conversion.evaluate(evaluation, watch)
    switch.separate_outputs()
    closed = [parameter.detach().clone() for parameter in trained(switch)]
    train(switch, mixed(texts), steps=steps, rate=rate, folder=Path(folder), watch=watch, **options)
    result = [parameter.detach().clone() for parameter in trained(switch)]
    for share in SHARES:
        _between(switch, closed, result, share)
        after = conversion.evaluate(evaluation, watch)
        worse = [b.name for a, b in zip(before, after, strict=True) if b.ratio.value > a.ratio.value]
        conversion.healed = {
            "steps": steps, "rate": rate, "share": share, "before": overall(before).value,
            "after": overall(after).value, "kept": not worse, "worse": ", ".join(worse),
        }  # fmt: skip
        if not worse:
            return True
    _between(switch, closed, result, 0.0)
    conversion.costs = before
    return False


def trained(switch: Switch) -> Iterator[nn.Parameter]:
    """The weights that healing changes; no biases, which a plain checkpoint of some architectures has no place for."""
    for module in switch.made():
        yield module.get_parameter("weight")


def train(
    switch: Switch,
    windows: Int[Tensor, "windows length"],
    *,
    steps: int,
    rate: float,
    folder: Path,
    watch: Watch,
    **options: Any,
) -> None:
    """One run of the Trainer, resumed where `folder` holds a checkpoint of it."""
    transformers = load("transformers", "convert")
    load("accelerate", "convert")
    model, wanted = switch.model, [p for p in switch.model.parameters() if p.requires_grad]
    own = {name: vars(model).get(name) for name in ("forward", "_original_forward")}
    model.requires_grad_(False)
    for parameter in trained(switch):
        parameter.requires_grad_(True)
    defaults = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 1, "learning_rate": rate,
        "lr_scheduler_type": "cosine", "warmup_steps": min(5, steps // 4), "weight_decay": 0.0, "report_to": [],
        "save_steps": max(10, steps // 4), "save_total_limit": 1, "logging_steps": 5, "disable_tqdm": True,
        "use_cpu": model.device.type == "cpu", "remove_unused_columns": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = _trainer(transformers, switch)(
        model=model,
        args=transformers.TrainingArguments(**defaults | options),
        train_dataset=[{"input_ids": window} for window in windows],
        callbacks=[_watcher(transformers, watch)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)
    finally:
        for name, method in own.items():  # accelerate leaves the model under autocast
            vars(model).pop(name, None) if method is None else setattr(model, name, method)
        model.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.eval()


def divergence(switch: Switch, model: nn.Module, input_ids: Int[Tensor, "batch length"]) -> Tensor:
    """KL(original ‖ converted) in nats, the mean over tokens; `model` is the converted model as it is to be called."""
    with switch.original(), torch.no_grad():
        goal = switch.model(input_ids=input_ids, use_cache=False).logits.float().log_softmax(-1)
    found = model(input_ids=input_ids, use_cache=False).logits.float().log_softmax(-1)
    loss: Tensor = (goal.exp() * (goal - found)).sum(-1).mean()
    return loss


def _trainer(transformers: Any, switch: Switch) -> Any:
    class Healing(transformers.Trainer):  # type: ignore[misc]
        """Transformers' Trainer with the divergence as its loss."""

        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
            return divergence(switch, model, inputs["input_ids"])

    return Healing


def _watcher(transformers: Any, watch: Watch) -> Any:
    class Watching(transformers.TrainerCallback):  # type: ignore[misc]
        """Tells of every step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch("steps of healing", state.global_step, state.max_steps)

    return Watching()


@torch.no_grad()
def _between(switch: Switch, closed: Sequence[Tensor], result: Sequence[Tensor], share: float) -> None:
    """The weights that far from the closed form to the result."""
    for parameter, before, after in zip(trained(switch), closed, result, strict=True):
        parameter.copy_(before.lerp(after, share))
