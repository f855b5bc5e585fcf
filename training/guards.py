"""What ends a run early: a loss that is no number, a signal, a data loader worker that died."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED_BY_SIGNAL = 75
"""Exit code of a run that saved its state because of a signal: start it again (EX_TEMPFAIL of sysexits.h)."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is infinite or not a number."""


class FiniteLossGuard:
    """Looks at every loss without making the GPU wait: each is read once the next one has been launched.

    Args:
        describe: step and micro-batch -> words for the batch, used only in the message.
    """

    def __init__(self, describe: Callable[[int, int], str]) -> None:
        self.describe = describe
        self._pending: tuple[int, int, torch.Tensor, torch.cuda.Event | None] | None = None

    def watch(self, step: int, micro_batch: int, loss: torch.Tensor) -> None:
        """Takes note of a micro-batch's loss and checks the one before; on a CPU, this one too.

        Raises:
            NonFiniteLossError: naming step and batch.
        """
        self.check()
        copied = None
        if loss.is_cuda:
            loss = loss.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = (step, micro_batch, loss, copied)
        if copied is None:
            self.check()

    def check(self) -> None:
        """Checks the last loss noted; see `watch`."""
        if self._pending is None:
            return
        step, micro_batch, loss, copied = self._pending
        self._pending = None
        if copied is not None:
            copied.synchronize()
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(self._message(f"the loss is {loss.item()}", step, micro_batch))

    def check_gradient(self, step: int, norm: torch.Tensor | float | None) -> None:
        """Checks a step's gradient norm, which tells whether the weights are numbers still.

        Raises:
            NonFiniteLossError: naming step and batch.
        """
        if norm is not None and not bool(torch.isfinite(torch.as_tensor(norm))):
            raise NonFiniteLossError(self._message(f"the gradient norm is {float(norm)}", step, 0))

    def _message(self, what: str, step: int, micro_batch: int) -> str:
        return (
            f"{what} in step {step + 1}, batch of {self.describe(step, micro_batch)}. Nothing of this step was saved. "
            "Look at these scenes (python -m datasets_scripts.show), or lower the learning rates, then resume with "
            "--resume_from_checkpoint latest"
        )


class StopOnSignal(TrainerCallback):
    """SIGTERM or SIGUSR1: the step is finished, a checkpoint is written, and training ends.

    Every process looks at every step whether any of them was told to stop, so that all stop at the same one.

    Attributes:
        received: name of the signal, on this process, or None.
        stopped: whether training ended for it, on any process.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.stopped = False
        self._earlier_handlers: dict[int, Any] = {}
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes over the signals."""
        if args.world_size > 1:
            self._group = distributed.new_group(backend="gloo")  # on the CPU: no step waits for its GPU
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread take signals over
        for number in STOP_SIGNALS:
            self._earlier_handlers[number] = signal.signal(number, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves and ends, without an evaluation that was due."""
        if self._anyone_received():
            self.stopped = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The epoch has not ended where a signal cut it off."""
        if self.stopped:
            control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signals back."""
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def _anyone_received(self) -> bool:
        if self._group is None:
            return self.received is not None
        told = torch.tensor(float(self.received is not None))
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(told)


class StopAfter(TrainerCallback):
    """Saves and ends at a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See the class."""
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def leave_signals_to_parent(worker: int) -> None:
    """For data loader workers: a signal to the whole process group stops the trainer alone, after its checkpoint."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Workers that a crash left behind ignore the library's SIGTERM: without this the process would wait for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def explain_lost_worker(error: RuntimeError) -> RuntimeError | None:
    """What to do about a worker that died, or None where the error is another."""
    if "DataLoader worker" not in str(error):
        return None
    reason = str(error).strip().splitlines()[0]
    return RuntimeError(
        f"a data loader worker died ({reason}). Most often the system killed it for want of memory (`dmesg` says so), "
        "or /dev/shm is full: lower dataloader_num_workers or dataloader_prefetch_factor, then run the same command "
        "with --resume_from_checkpoint latest"
    )
