"""How probable each of a few allowed answers is: a question with a closed set of answers.

The allowed token sequences form a trie. Its first level is read from the logits of the question's
last token, every deeper one from a pass over the shared beginnings, so the words are never sampled
and no other text can come out. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errors import LonglookError
from models.decode_cache import CacheRow, DecodeCache
from models.decoder import Decoder
from models.video_llm import ChoiceRequest

Tokens = tuple[int, ...]


def choose(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[ChoiceRequest],
    spellings: Sequence[Sequence[Sequence[Tokens]]],
    stop_tokens: Collection[int],
) -> list[list[float]]:
    """Probabilities of the choices of every request, each request's summing to 1.

    prompts: token ids of each question. spellings: of each request, of each choice, token ids.
    A choice that is the beginning of another one competes by what follows: the end of the answer.
    """
    cache = DecodeCache()
    beginnings = [_beginnings(choices) for choices in spellings]
    rooms = [
        len(prompt) + max(map(len, wanted), default=0)
        for prompt, wanted in zip(prompts, beginnings, strict=True)
    ]
    rows = decoder.add_rows(cache, [request.context for request in requests], rooms)
    states = decoder.append_prompts(cache, rows, prompts)
    ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0) - 1
    first = decoder.head(states[ends.to(states.device)]).log_softmax(-1).cpu()
    known: list[dict[Tokens, Tensor]] = [{(): log_probs} for log_probs in first]
    for number in range(max(map(len, beginnings), default=0)):
        _read_beginnings(decoder, cache, rows, [w[number : number + 1] for w in beginnings], known)
    stops = torch.tensor(sorted(stop_tokens))
    return [
        _probabilities(choices, log_probs, stops)
        for choices, log_probs in zip(spellings, known, strict=True)
    ]


def _beginnings(choices: Sequence[Sequence[Tokens]]) -> list[Tokens]:
    """What must be read to know all inner nodes of the trie: its longest paths, if any choice must
    be told from a longer one or has more than one token.
    """
    every = {tokens for spelled in choices for tokens in spelled}
    if all(len(tokens) == 1 for tokens in every):
        return []
    longest = [t for t in every if not any(t != o and o[: len(t)] == t for o in every)]
    return sorted(longest)


def _read_beginnings(
    decoder: Decoder,
    cache: DecodeCache,
    rows: Sequence[CacheRow],
    paths: Sequence[Sequence[Tokens]],
    known: Sequence[dict[Tokens, Tensor]],
) -> None:
    """Log-probabilities after every node of one path of each row that has one, in one pass."""
    tokens = [path[0] if path else () for path in paths]
    if len(rows) == 1 and not tokens[0]:
        return
    states = decoder.append_prompts(cache, rows, tokens)
    cache.drop_last(rows, [len(path) for path in tokens])
    log_probs = decoder.head(states).log_softmax(-1).cpu()
    at = 0
    for path, found in zip(tokens, known, strict=True):
        for depth in range(1, len(path) + 1):
            found[path[:depth]] = log_probs[at]
            at += 1


def _probabilities(
    choices: Sequence[Sequence[Tokens]], log_probs: Mapping[Tokens, Tensor], stops: Tensor
) -> list[float]:
    """Of each choice: the sum over its spellings, relative to all choices."""
    scores = [
        torch.stack([_log_prob(tokens, log_probs, stops) for tokens in spelled]).logsumexp(0)
        for spelled in choices
    ]
    return [float(share) for share in torch.stack(scores).double().softmax(0)]


def _log_prob(tokens: Tokens, log_probs: Mapping[Tokens, Tensor], stops: Tensor) -> Tensor:
    """Of a token sequence and, where what follows was read, of the answer ending there."""
    total = torch.zeros(())
    for depth, token in enumerate(tokens):
        total = total + log_probs[tokens[:depth]][token]
    after = log_probs.get(tokens)
    return total if after is None else total + after[stops].logsumexp(0)


def spelled(
    tokenizer: Any, choices: Sequence[Sequence[str]], encode: Callable[[str], list[int]]
) -> list[list[Tokens]]:
    """Token ids of every spelling of every choice, as they are, capitalised and behind a space.

    Raises LonglookError where the tokenizer has no tokens for a choice, or takes two of them for
    the same.
    """
    found: list[list[Tokens]] = []
    for choice in choices:
        own = {tuple(encode(form)) for form in _forms(choice)}
        own = {tokens for tokens in own if tokens and tokenizer.unk_token_id not in tokens}
        if not own:
            raise LonglookError(f"the model has no words for the answer {choice[0]!r}")
        for other, tokens in zip(choices, found, strict=False):
            if own & set(tokens):
                raise LonglookError(
                    f"the answers {other[0]!r} and {choice[0]!r} are the same to this model"
                )
        found.append(sorted(own))
    return found


def _forms(choice: Sequence[str]) -> Iterator[str]:
    for text in choice:
        for form in (text, text[:1].upper() + text[1:], text[:1].lower() + text[1:]):
            yield form
            yield f" {form}"
