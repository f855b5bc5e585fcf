"""The loop of `generate(..., fast=True)`: choices on the device, one launch ahead of what is read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation import GenerationMode

from .decoding_vggt_qwen3 import FixedCache, Prefix, TextDecoder

OUTPUT_OPTIONS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
STOPPING_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")
RAGGED_PROCESSORS = (
    "ApplyConstraint",
    "SuppressTokensLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
)
"""Those that look at no token taken so far: under a constraint rows take tokens at different rates."""


class ApplyConstraint(LogitsProcessor):
    """Forbids the tokens that the mask bool [rows, vocabulary] of the moment does not allow."""

    allowed: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] with minus infinity at what is forbidden."""
        return scores.masked_fill(~self.allowed, float("-inf"))


class AnswerLoop:
    """Decodes a batch.

    Args:
        model: embeds tokens.
        decoder: runs its text model.
        constraint: a grammar to follow, or None; see `processor.action_constraint`.
        streamer: gets tokens as they are known.
    """

    def __init__(self, model: torch.nn.Module, decoder: TextDecoder, constraint: Any, streamer: Any) -> None:
        self.model = model
        self.decoder = decoder
        self.constraint = constraint
        self.streamer = streamer
        self.apply_constraint = ApplyConstraint()

    def run(
        self,
        input_ids: torch.Tensor,
        prefixes: Sequence[Prefix | None],
        prompts: Sequence[Sequence[int]],
        processors: Any,
        options: Any,
        check: Callable[[], None] | None,
    ) -> torch.Tensor:
        """Prompts and answers.

        Args:
            input_ids: [rows, tokens], what is returned before the answers.
            prefixes, prompts: what each row begins with, and the tokens after it.
            processors: the library's logits processors.
            options: generation configuration, prepared.
            check: called once while the device computes.

        Returns:
            int64 [rows, tokens + longest answer].
        """
        limit = options.max_length - input_ids.shape[1]
        held = [prefix.length if prefix else 0 for prefix in prefixes]
        cache = self.decoder.cache(len(prompts), limit + max(a + len(b) for a, b in zip(held, prompts)))
        cache.load(prefixes)
        if self.constraint is None:
            answer = self._decode(cache, input_ids, prompts, processors, options, limit, check)
        else:
            _check_processors(processors)
            answer = self._decode_constrained(cache, input_ids, prompts, processors, options, limit, check)
        if self.streamer is not None:
            self.streamer.end()
        return torch.cat((input_ids, answer), dim=1)

    def _decode(
        self,
        cache: FixedCache,
        input_ids: torch.Tensor,
        prompts: Sequence[Sequence[int]],
        processors: Any,
        options: Any,
        limit: int,
        check: Callable[[], None] | None,
    ) -> torch.Tensor:
        num_prompt, on_gpu = input_ids.shape[1], input_ids.is_cuda
        ends, pad = options._eos_token_tensor, options._pad_token_tensor
        tokens = torch.nn.functional.pad(input_ids, (0, limit))
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=input_ids.device)
        one = torch.ones(len(prompts), dtype=torch.int64, device=input_ids.device)
        seen = Readback(len(prompts), on_gpu)
        logits = self.decoder.prefill(cache, self._embed_rows(prompts))
        if check is not None:
            check()
        for step in range(limit):
            chosen = choose(processors(tokens[:, : num_prompt + step], logits.float()), options.do_sample)
            if ends is not None:
                chosen = torch.where(finished, pad, chosen)
                finished = finished | torch.isin(chosen, ends)
            tokens[:, num_prompt + step] = chosen
            seen.copy(chosen, finished)
            more = step + 1 < limit
            if more and on_gpu:  # launched before anything is read: the device never waits
                logits = self.decoder.run(cache, self._embed(chosen)[:, None], one)
            known, done = seen.read()
            if self.streamer is not None:
                self.streamer.put(known)
            if done:
                break
            if more and not on_gpu:
                logits = self.decoder.run(cache, self._embed(chosen)[:, None], one)
        return tokens[:, num_prompt : num_prompt + step + 1]

    def _decode_constrained(
        self,
        cache: FixedCache,
        input_ids: torch.Tensor,
        prompts: Sequence[Sequence[int]],
        processors: Any,
        options: Any,
        limit: int,
        check: Callable[[], None] | None,
    ) -> torch.Tensor:
        """Rows take as many tokens a pass as the grammar leaves no choice about, and one that is chosen."""
        constraint = self.constraint
        constraint.start(len(prompts))
        runs = self._forced([limit] * len(prompts))
        taken = [list(run) for run in runs]
        self._stream(taken)
        logits = self.decoder.prefill(cache, self._embed_rows([[*p, *run] for p, run in zip(prompts, runs)]))
        if check is not None:
            check()
        masks = MaskBuffer(constraint, len(prompts), logits.shape[1], logits.device)
        open_rows = self._open_rows(taken, limit)
        while open_rows:
            self.apply_constraint.allowed = masks.update()  # computed while the device is busy with the pass
            chosen = choose(processors(input_ids, logits.float()), options.do_sample).tolist()
            constraint.accept([[token] if row in open_rows else [] for row, token in enumerate(chosen)])
            forced = self._forced([limit - len(row) - 1 for row in taken])
            runs = [[chosen[row], *forced[row]] if row in open_rows else [] for row in range(len(prompts))]
            for row, run in enumerate(runs):
                taken[row] += run
            self._stream(runs)
            open_rows = self._open_rows(taken, limit)
            if open_rows:
                logits = self._take(cache, [run if row in open_rows else [] for row, run in enumerate(runs)])
        answer = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in taken], batch_first=True, padding_value=int(options._pad_token_tensor)
        )
        return answer.to(input_ids.device)

    def _forced(self, room: Sequence[int]) -> list[list[int]]:
        """Tokens that the grammar forces in each row, accepted, as many as there is room for."""
        runs: list[list[int]] = [[] for _ in room]
        while any(more := [new[: max(0, r - len(run))] for r, run, new in zip(room, runs, self.constraint.forced())]):
            self.constraint.accept(more)
            runs = [run + new for run, new in zip(runs, more)]
        return runs

    def _open_rows(self, taken: Sequence[Sequence[int]], limit: int) -> set[int]:
        return {row for row, tokens in enumerate(taken) if len(tokens) < limit and not self.constraint.is_done(row)}

    def _take(self, cache: FixedCache, runs: Sequence[Sequence[int]]) -> torch.Tensor:
        """A pass of several tokens a row, or none."""
        width = max(map(len, runs))
        padded = torch.tensor([[*run, *[0] * (width - len(run)), len(run)] for run in runs])
        padded = padded.to(self.decoder.device, non_blocking=True)
        return self.decoder.run(cache, self._embed(padded[:, :-1]), padded[:, -1])

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.get_input_embeddings()(tokens)

    def _embed_rows(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Token embeddings [tokens, width] of each row, looked up together."""
        flat = torch.tensor([token for row in rows for token in row]).to(self.decoder.device, non_blocking=True)
        return list(self._embed(flat).split([len(row) for row in rows]))

    def _stream(self, runs: Sequence[Sequence[int]]) -> None:
        if self.streamer is not None and any(runs):
            self.streamer.put(torch.tensor(runs[0] if len(runs) == 1 else list(runs)))


class Readback:
    """Brings chosen tokens to the host without stopping what the device does next."""

    def __init__(self, num_rows: int, on_gpu: bool) -> None:
        self.event = torch.cuda.Event() if on_gpu else None
        self.values = torch.empty(2, num_rows, dtype=torch.int64, pin_memory=on_gpu)

    def copy(self, chosen: torch.Tensor, finished: torch.Tensor) -> None:
        """Queues copies of the tokens and of the rows' ends, both [rows]."""
        self.values[0].copy_(chosen, non_blocking=True)
        self.values[1].copy_(finished, non_blocking=True)
        if self.event is not None:
            self.event.record()

    def read(self) -> tuple[torch.Tensor, bool]:
        """The tokens, and whether all rows have ended, once they are here."""
        if self.event is not None:
            self.event.synchronize()
        return self.values[0].clone(), bool(self.values[1].all())


class MaskBuffer:
    """The constraint's masks on the device: packed on the host, through pinned memory, unpacked there."""

    def __init__(self, constraint: Any, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.constraint = constraint
        self.allowed = torch.zeros(num_rows, vocab_size, dtype=torch.bool, device=device)
        self.bits = (2 ** torch.arange(8, dtype=torch.uint8)).to(device)
        self.staging: torch.Tensor | None = None

    def update(self) -> torch.Tensor:
        """Bool [rows, vocabulary] of the tokens that may come next."""
        packed = self.constraint.packed_mask()
        if self.allowed.is_cuda:
            if self.staging is None:
                self.staging = torch.empty_like(packed, pin_memory=True)
            packed = self.staging.copy_(packed).to(self.allowed.device, non_blocking=True)
        unpacked = (packed[..., None] & self.bits).ne(0).flatten(1)
        size = min(self.constraint.vocab_size, unpacked.shape[1])
        self.allowed[:, :size] = unpacked[:, :size]
        return self.allowed


def choose(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """The next token of each row, int64 [rows], of scores [rows, vocabulary]."""
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
    return scores.argmax(dim=-1)


def check_fast_options(options: Any, stopping_criteria: Sequence[Any]) -> None:
    """Refuses what the fast loop cannot do.

    Raises:
        ValueError: by name.
    """
    mode = options.get_generation_mode()
    wrong = [] if mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) else [mode.value.replace("_", " ")]
    wrong += [name for name in OUTPUT_OPTIONS if getattr(options, name)]
    wrong += [name for c in stopping_criteria if (name := type(c).__name__) not in STOPPING_CRITERIA]
    wrong += ["guidance_scale"] if options.guidance_scale not in (None, 1) else []
    wrong += ["cache_implementation"] if options.cache_implementation is not None else []
    wrong += ["use_cache=False"] if not options.use_cache else []
    if wrong:
        raise ValueError(
            f"fast generation is greedy or samples, and returns tokens alone; it does not know {', '.join(wrong)}: "
            "generate without fast=True"
        )


def _check_processors(processors: Sequence[Any]) -> None:
    wrong = [name for p in processors if (name := type(p).__name__) not in RAGGED_PROCESSORS]
    if wrong:
        raise ValueError(
            f"fast generation under a constraint does not know {', '.join(wrong)}, which look at the tokens so far: "
            "leave them out, or generate without fast=True"
        )


__all__ = ["AnswerLoop"]
