"""Constrained decoding: the model can write nothing but the canonical text of an action, ended by `<|im_end|>`.

The grammar derives from the definition of actions, the masks come from llguidance (an optional library here: only who
asks for a constraint needs it). Of the plain generation loop it is a logits processor; a loop of one's own computes
masks on the CPU while the device works, and takes the tokens that the grammar forces several at a time.
"""

import functools
import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .action_vggt_qwen3 import (
    ACTION_NAMES,
    ANCHOR_FIELDS,
    LIST_ACTION,
    MAX_ANCHORS,
    ActionError,
    Field,
    TextField,
    action_anchors,
    action_layout,
    anchor_layout,
    parse_action,
)
from .chat_vggt_qwen3 import END_OF_TURN

try:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.hf import from_tokenizer
except ImportError:  # named when a constraint is asked for
    LLMatcher = LLTokenizer = None


LABEL_FIELD = "label"
HOLE = "\0"
"""Stands for what is not said yet in a layout."""
_TOKENIZERS: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, LLTokenizer]]" = weakref.WeakKeyDictionary()


class ActionConstraint(LogitsProcessor):
    """Lets a model write only actions; one object serves one `generate` call after another.

        constraint = processor.action_constraint()
        model.generate(**inputs, logits_processor=[constraint])

    It serves batches, greedy or sampled, and beams; sampled beams are refused, for they take what is not allowed. A
    call of `generate` is told from the one before by its prompt.

    In a loop of one's own: `start(num_rows)`, then again and again `mask`, a choice, `accept`, and `forced` for the
    tokens that need no choice, which `accept` takes as well. Rows that are done ask for `<|im_end|>` again.

    Args:
        tokenizer: of the processor; the first constraint of a tokenizer takes seconds, further ones milliseconds.
        actions: names of the actions that may be written; all by default.
        labels: the only labels that may be written; any text by default.
        max_new_tokens: of an answer, if there is a limit: a list takes no further anchor where less is left than the
            longest one needs (`max_anchor_tokens`), or less than half of a tight limit; so answers end in time, surely
            if the limit is twice `max_anchor_tokens`.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: no such action, a label that the definition refuses, an empty list, or a slow tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        actions: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        if LLMatcher is None:
            raise ImportError('constrained decoding needs llguidance: pip install "llguidance>=1.9,<2"')
        self._actions, self._labels = actions, labels
        self.grammar = action_grammar(actions, labels)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.max_anchor_tokens = max_anchor_tokens(labels)
        self.end_of_turn_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self._guide = _guide(tokenizer, self.end_of_turn_id)
        self.vocab_size = self._guide.vocab_size
        self._fresh: dict[int, LLMatcher] = {}
        self._rows: list[_Row] = []
        self._prompt: np.ndarray | None = None
        self._length = 0

    @property
    def num_rows(self) -> int:
        """Rows since the last `start`."""
        return len(self._rows)

    def start(self, num_rows: int) -> None:
        """Begins anew with so many rows, none of which has a token yet."""
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}, wanted at least 1")
        self._rows = [self._new_row([]) for _ in range(num_rows)]
        self._prompt = None

    def reset(self) -> None:
        """Begins anew with as many rows as before."""
        self.start(self.num_rows)

    def packed_mask(self) -> torch.Tensor:
        """The tokens that may come next: uint8 [rows, bytes] on the CPU, token t is bit t % 8 of byte t // 8."""
        masks = []
        for row in self._rows:
            masks.append(np.frombuffer(row.matcher.compute_bitmask(), np.uint8))
            _check(row.matcher)
        return torch.from_numpy(np.stack(masks))

    def mask(
        self,
        device: torch.device | str = "cpu",
        out: torch.Tensor | None = None,
        *,
        vocab_size: int | None = None,
    ) -> torch.Tensor:
        """The tokens that may come next, computed on the CPU and unpacked on the device.

        Args:
            device: of the result; `out` has its own.
            out: bool or uint8 [rows, vocab_size] to write to.
            vocab_size: number of the model's tokens, which may be larger than the tokenizer's; by default `out`'s or
                the tokenizer's.

        Returns:
            bool [rows, vocab_size], or `out`. At least one token of each row is allowed.

        Raises:
            ValueError: fewer tokens than the tokenizer has, or another number of rows.
        """
        if out is not None:
            device, vocab_size = out.device, out.shape[1]
            if len(out) != self.num_rows:
                raise ValueError(f"out has {len(out)} rows, wanted {self.num_rows}")
        size = self.vocab_size if vocab_size is None else vocab_size
        if size < self.vocab_size:
            raise ValueError(f"vocab_size is {size}, wanted the tokenizer's {self.vocab_size} at least")
        packed = self.packed_mask().to(device)
        eights = _bits_of_bytes(packed.device).index_select(0, packed.flatten().int())
        allowed = eights.view(torch.bool).view(self.num_rows, -1)  # [rows, 8 * bytes]
        if out is None:
            out = torch.empty((self.num_rows, size), dtype=torch.bool, device=device)
        out[:, : self.vocab_size] = allowed[:, : self.vocab_size]
        out[:, self.vocab_size :] = 0
        return out

    def accept(self, row_tokens: Sequence[int | Sequence[int]]) -> None:
        """Takes the next token or run of tokens of every row; what follows the end of a row is ignored.

        Where the mask leaves one token, others that spell the same text are taken as well.

        Raises:
            ValueError: another number of rows, or a token that the grammar does not allow, naming row and token.
        """
        if len(row_tokens) != self.num_rows:
            raise ValueError(f"row_tokens holds {len(row_tokens)} rows, wanted {self.num_rows}")
        for index, tokens in enumerate(row_tokens):
            self._take(index, [tokens] if isinstance(tokens, int) else list(tokens))

    def forced(self) -> list[list[int]]:
        """For every row the tokens that must come next, as the tokenizer would write them; often none."""
        return [
            [] if self.is_done(row) else self._rows[row].matcher.compute_ff_tokens() for row in range(self.num_rows)
        ]

    def is_done(self, row: int) -> bool:
        """Whether the row has its `<|im_end|>`."""
        tokens = self._rows[row].tokens
        return bool(tokens) and tokens[-1] == self.end_of_turn_id

    def is_shortened(self, row: int) -> bool:
        """Whether the row has ended as a list of just so many anchors as `max_new_tokens` allowed."""
        tokens, max_anchors = self._rows[row].tokens, self._rows[row].max_anchors
        if max_anchors == MAX_ANCHORS or not self.is_done(row):
            return False
        action = parse_action(self.tokenizer.decode(tokens[:-1]))
        return action["action"] == LIST_ACTION and len(action_anchors(action)) == max_anchors

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [rows, vocabulary] with minus infinity for all tokens that the grammar does not allow.

        Args:
            input_ids: [rows, tokens]: the prompt at first, then with the tokens taken since.
            scores: [rows, vocabulary].

        Raises:
            ValueError: a token was taken that had been forbidden, or a vocabulary that is not the tokenizer's.
        """
        self._follow(input_ids.cpu().numpy())
        return torch.where(self.mask(scores.device, vocab_size=scores.shape[1]), scores, -torch.inf)

    def _follow(self, ids: np.ndarray) -> None:
        """Brings every row to its tokens after the prompt; what goes on from no tokens seen before is a new prompt."""
        if self._is_new(ids):
            self.start(len(ids))
            self._prompt = ids.copy()
        self._length = ids.shape[1]
        for index, tokens in enumerate(ids[:, self._prompt.shape[1] :].tolist()):
            known = self._rows[index].tokens
            if tokens[: len(known)] != known:  # beams change places, or the same prompt is asked again
                self._rows[index], known = self._new_row([]), []
            self._take(index, tokens[len(known) :])

    def _is_new(self, ids: np.ndarray) -> bool:
        prompt = self._prompt
        if prompt is None or len(prompt) != len(ids) or not prompt.shape[1] <= ids.shape[1] <= self._length + 1:
            return True
        return not (ids[:, : prompt.shape[1]] == prompt).all()

    def _take(self, index: int, tokens: list[int]) -> None:
        """Takes the tokens up to the end of the row. The matcher never sees that end: it could not be used again."""
        if self.is_done(index):
            return
        row, end = self._rows[index], self.end_of_turn_id
        ends = end in tokens
        text = tokens[: tokens.index(end)] if ends else tokens
        allowed = row.matcher.try_consume_tokens(text)
        _check(row.matcher)
        row.tokens += text[:allowed]
        if allowed < len(text) or (ends and row.matcher.compute_ff_tokens() != [end]):
            refused, before = self.tokenizer.decode(tokens[allowed]), self.tokenizer.decode(row.tokens)
            raise ValueError(f"row {index} took {refused!r} after {before!r}, which the mask did not allow")
        row.tokens += [end] * ends
        if not ends and row.max_anchors == MAX_ANCHORS and self._is_short(len(row.tokens)):
            self._rows[index] = self._new_row(row.tokens)

    def _new_row(self, tokens: list[int]) -> "_Row":
        """A row with these tokens; if it is short of further ones, with no more anchors than it has begun."""
        for max_anchors in range(1 if self._is_short(len(tokens)) else MAX_ANCHORS, MAX_ANCHORS + 1):
            if max_anchors not in self._fresh:
                grammar = action_grammar(self._actions, self._labels, max_anchors)
                self._fresh[max_anchors] = LLMatcher(self._guide, grammar, log_level=0)  # faults are raised below
                _check(self._fresh[max_anchors])
            matcher = self._fresh[max_anchors].deep_copy()
            if matcher.try_consume_tokens(tokens) == len(tokens):
                break
        return _Row(matcher, tokens, max_anchors)

    def _is_short(self, num_tokens: int) -> bool:
        limit = self.max_new_tokens
        return limit is not None and limit - num_tokens < min(self.max_anchor_tokens, limit // 2)


@dataclass
class _Row:
    """One answer: its matcher, its tokens since the prompt, and how many anchors it may hold."""

    matcher: "LLMatcher"
    tokens: list[int]
    max_anchors: int


def action_grammar(
    actions: Sequence[str] | None = None, labels: Sequence[str] | None = None, max_anchors: int = MAX_ANCHORS
) -> str:
    """The grammar of exactly the canonical texts, each ended by `<|im_end|>`, in the Lark dialect of llguidance.

    Args:
        actions: names of the actions; all by default.
        labels: the only labels; any by default.
        max_anchors: longest list.

    Raises:
        ValueError: no such action, a label that the definition refuses, or an empty list.
    """
    actions = ACTION_NAMES if actions is None else actions
    if isinstance(actions, str) or not actions or any(name not in ACTION_NAMES for name in actions):
        raise ValueError(f"actions is {actions!r}, wanted some of {', '.join(ACTION_NAMES)}")
    literals = _split(anchor_layout([HOLE] * len(ANCHOR_FIELDS)))
    actions = tuple(dict.fromkeys(actions))
    names = [field.name.upper() for field in ANCHOR_FIELDS]
    anchor = [part for pair in zip(literals, names) for part in pair] + literals[len(names) :]
    lines = ["%llguidance {}", f"start: ({' | '.join(actions)}) {END_OF_TURN}"]
    lines += [f"{name}: {_action_rule(name, max_anchors)}" for name in actions]
    lines += [f"anchor: {' '.join(part for part in anchor if part != _literal(''))}"]
    lines += [f"{name}: {_terminal(field, labels)}" for name, field in zip(names, ANCHOR_FIELDS)]
    return "\n".join(lines) + "\n"


def max_anchor_tokens(labels: Sequence[str] | None = None) -> int:
    """Most tokens of an action of one anchor, or of a further anchor with all that ends a list: one a byte."""
    widths = [field.max_text_bytes() for field in ANCHOR_FIELDS]
    for index, field in enumerate(ANCHOR_FIELDS):
        if labels is not None and field.name == LABEL_FIELD:
            widths[index] = max(len(field.text(label).encode()) for label in labels)
    anchor = anchor_layout(["x" * width for width in widths])
    return max(len(action_layout(name, [anchor])) for name in ACTION_NAMES) + 1  # the end of the turn


def _action_rule(name: str, max_anchors: int) -> str:
    if name != LIST_ACTION:
        head, tail = _split(action_layout(name, [HOLE]))
        return f"{head} anchor {tail}"
    head, between, tail = _split(action_layout(name, [HOLE, HOLE]))
    more = f"({between} anchor){{0,{max_anchors - 1}}} " if max_anchors > 1 else ""
    return f"{head} anchor {more}{tail}"


def _terminal(field: Field, labels: Sequence[str] | None) -> str:
    if labels is None or field.name != LABEL_FIELD:
        return _pattern(field)
    return " | ".join(_literal(field.text(label)) for label in _checked_labels(field, labels))


@functools.cache
def _pattern(field: Field) -> str:
    return f"/{field.text_pattern()}/"


def _checked_labels(field: TextField, labels: Sequence[str]) -> list[str]:
    if isinstance(labels, str) or not labels:
        raise ValueError(f"labels is {labels!r}, wanted a list of labels, or None for any")
    try:
        return [field.check(label, f"labels[{index}]") for index, label in enumerate(labels)]
    except ActionError as error:
        raise ValueError(str(error)) from error


def _split(layout: str) -> list[str]:
    return [_literal(part) for part in layout.split(HOLE)]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _guide(tokenizer: PreTrainedTokenizerBase, end_of_turn_id: int) -> "LLTokenizer":
    """llguidance's view of a tokenizer, made once: at 151,669 tokens it takes over two seconds."""
    size, guide = _TOKENIZERS.get(tokenizer, (0, None))
    if size == len(tokenizer):
        return guide
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: load the fast one for constrained decoding")
    guide = from_tokenizer(tokenizer, eos_token=end_of_turn_id)
    _TOKENIZERS[tokenizer] = (len(tokenizer), guide)
    return guide


@functools.lru_cache(maxsize=8)
def _bits_of_bytes(device: torch.device) -> torch.Tensor:
    """int64 [256]: eight bools in one number for every byte, lowest bit first."""
    bits = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.bool)
    return bits.view(torch.int64).flatten().to(device)


def _check(matcher: "LLMatcher") -> None:
    if matcher.is_error():
        raise RuntimeError(f"constrained decoding failed: {matcher.get_error()}")
