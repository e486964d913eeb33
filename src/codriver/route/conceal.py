"""A request's text with every personal datum replaced, wherever in the request it stands.

The whole request is walked, members that nobody here knows included; of its structure only the words that the API
itself defines are left alone. Rule: what cannot be looked into raises :class:`Unreadable`, and is not sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, get_args

import msgspec

from codriver.core.messages import ChatRequest, FunctionSpec, Message, Role, TextPart
from codriver.core.privacy import Detector, Finding, Unreadable, without_overlaps
from codriver.core.wire import encode, request_members
from codriver.privacy import NameFinder

from .condense import Edged
from .vault import FORGED, Vault, forged

_SCHEMA_KEYS = (
    "function arguments type text image_url input_audio url detail schema include_usage json_schema id properties "
    "required items enum additionalProperties anyOf oneOf allOf not const default format title minimum maximum "
    "minLength maxLength minItems maxItems pattern $ref $defs definitions description examples"
)
_TYPES = "function text json_object json_schema object string number integer boolean array null"
_API_KEYS = frozenset(_SCHEMA_KEYS.split()).union(
    *(kind.__struct_fields__ for kind in (ChatRequest, Message, FunctionSpec))
)
_API_WORDS = {
    "role": frozenset(get_args(Role)),
    "type": frozenset(_TYPES.split()),
    "tool_choice": frozenset({"auto", "none", "required"}),
}
_INTERNAL = ("raw", "codriver", "prompt", "continue_from")
_NOT_SENT = ("codriver", "logprobs", "top_logprobs", "model", "__raw__", "__prompt__", "__continue_from__")


# Looking takes about 7 ms for 1,000 words, and meanwhile everybody else waits.
_MOST_CHARS = 200_000


class Concealer:
    """Replaces by placeholders what ``detector`` and ``names`` find, and whatever is in ``vault`` already.

    ``used`` are the placeholders that were put into a request. A text is looked into once only.
    """

    def __init__(self, detector: Detector, names: NameFinder, vault: Vault) -> None:
        self._detector = detector
        self._names = names
        self._vault = vault
        self._findings: dict[str, list[Finding]] = {}
        self._learnt: frozenset[str] | None = None
        self._chars = 0
        self._prompt = ""
        self.used: set[str] = set()

    def learn(self, request: ChatRequest, edges: Sequence[Edged] = ()) -> None:
        """Look into everything, so that a datum told by its surroundings is known where it stands without them.
        ``edges``: parts of documents with what stood around them and was left out. Errors: :class:`Unreadable`.
        """
        for edge in edges:
            self._learn_edge(edge)
        self._prompt = request.prompt or ""
        self.request(request)
        self._learnt = frozenset(self._findings)
        self.used.clear()

    def _learn_edge(self, edge: Edged) -> None:
        """What the left-out surroundings tell of a passage. A value must not be cut in two where it ends."""
        for found in self._look(edge.text):
            if any(found.start < at < found.end for at in (edge.start, edge.end)):
                raise Unreadable("personal data stands across the edge of a passage")
            if edge.start <= found.start < edge.end:
                self._vault.placeholder(found.kind, edge.text[found.start : found.end])

    def counts(self) -> dict[str, int]:
        """How many different data of each kind were replaced."""
        return dict(sorted(Counter(name.strip("<>").rpartition("_")[0] for name in self.used).items()))

    def request(self, request: ChatRequest) -> ChatRequest:
        """``request`` as it may leave the vehicle. Log probabilities are not asked for: they would be of placeholders.

        Errors: :class:`Unreadable`, also where a text that was not learnt, which is the part of an answer, ends
        inside a value: what is there of it could not be told from other text.
        """
        if request.modalities() != {"text"}:
            raise Unreadable("pictures and sound cannot be redacted")
        for message in request.messages:
            if isinstance(message.content, list) and len(message.content) > 1:
                self._refuse_spread(message)
        tree = msgspec.to_builtins(msgspec.structs.replace(request, model="", **dict.fromkeys(_INTERNAL)))
        hidden = msgspec.convert(self._tree(tree, ""), ChatRequest)
        hidden.model = request.model
        if request.codriver is not None:
            hidden.codriver = msgspec.structs.replace(request.codriver, session=None, entities=None, context=None)
        hidden.logprobs = hidden.top_logprobs = None
        hidden.prompt = None if request.prompt is None else self._prompt_and_part(request.prompt)
        hidden.continue_from = None if request.continue_from is None else self._text(request.continue_from)
        if request.raw is not None:
            body = request_members(request.raw)
            model = {"model": request.model} if "model" in body else {}
            for name in _NOT_SENT:
                body.pop(name, None)
            hidden.raw = encode(model | self._tree(body, ""))
        return hidden

    def _prompt_and_part(self, prompt: str) -> str:
        """A prompt that was made longer by the part of an answer: what is joined must not hide where a value ends."""
        if self._prompt and prompt.startswith(self._prompt) and prompt != self._prompt:
            return self._text(self._prompt) + self._text(prompt[len(self._prompt) :])
        return self._text(prompt)

    def _refuse_spread(self, message: Message) -> None:
        """Engines join a message's parts: a value must not begin in one and end in the next."""
        edges = list(accumulate(len(part.text) for part in message.content or () if isinstance(part, TextPart)))[:-1]
        if any(f.start < edge < f.end for f in self._look(message.text()) for edge in edges):
            raise Unreadable("personal data is spread over several parts of a message")

    # ------------------------------------------------------------ walking

    def _tree(self, node: Any, key: str, data: bool = False) -> Any:
        """``data``: inside a JSON value of the conversation, where a number may be a datum too."""
        if isinstance(node, str):
            if not data and node in _API_WORDS.get(key, ()):
                return node
            return self._name(node) if key == "name" and not data else self._maybe_json(node, key)
        if isinstance(node, dict):
            return {self._key(name, data): self._tree(value, name, data) for name, value in node.items()}
        if isinstance(node, list):
            if data and node and all(map(_is_number, node)):
                return self._numbers(node, key)
            return [self._tree(value, key, data) for value in node]
        return self._numbers([node], key)[0] if data and _is_number(node) else node

    def _key(self, name: str, data: bool) -> str:
        return name if name in _API_KEYS and not data else self._text(name)

    def _name(self, name: str) -> str:
        """Names of functions and speakers take neither spaces nor brackets."""
        return self._text(name).replace("<", "").replace(">", "")

    def _numbers(self, numbers: list[Any], key: str) -> list[Any]:
        """Numbers of which the name, the neighbour or the digits tell that they are personal."""
        told, spans = f"{key}:", []
        for number in numbers:
            spans.append((len(told) + 1, len(told) + 1 + len(str(number))))
            told += f" {number},"
        hidden = list(numbers)
        found = self._look(told)
        for at, (start, end) in enumerate(spans):
            kinds = [one.kind for one in found if one.start < end and start < one.end]
            digits = str(numbers[at])
            if kinds:
                hidden[at] = self._use(self._vault.placeholder(kinds[0], digits))
            elif (known := self._text(digits)) != digits:
                hidden[at] = known
        return hidden

    def _maybe_json(self, text: str, key: str) -> str:
        """Text that is JSON is looked into value by value, because its escapes would hide what it holds."""
        if text[:1] not in ("{", "["):
            return self._text(text, key)
        try:
            value = msgspec.json.decode(text.encode())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            if key == "arguments" and "\\" in text:
                raise Unreadable("the arguments of a tool call are not valid JSON") from None
            return self._text(text)
        hidden = self._tree(value, key, data=True)
        if hidden == value:
            return self._text(text)
        written = encode(hidden).decode()
        own = [match.span() for match in FORGED.finditer(written)]
        if any(not any(f.start < stop and start < f.end for start, stop in own) for f in self._look(written)):
            raise Unreadable("personal data is spread over several members of a JSON value")
        return written

    def _text(self, text: str, key: str = "") -> str:
        if self._learnt is not None and text not in self._learnt and self._vault.ends_within(text):
            raise Unreadable("the answer so far ends in the middle of personal data")
        found = self._look(text)
        if key and key not in _API_KEYS:
            # A date is one of birth where its member is called so.
            at = len(key) + 2
            named = [Finding(f.start - at, f.end - at, f.kind) for f in self._look(f"{key}: {text}") if f.start >= at]
            found = without_overlaps([*found, *named])
        spans = [(f.start, f.end, self._vault.placeholder(f.kind, text[f.start : f.end])) for f in found]
        hidden, at = [], 0
        for start, end, name in self._with_known(text, spans):
            hidden += [text[at:start], self._use(name)]
            at = end
        return "".join([*hidden, text[at:]])

    def _with_known(self, text: str, spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """The spans, and the known values beside them; one that reaches over the end of a span makes it longer."""
        known = list(self._vault.find(text))
        if not known:
            return spans
        kept: list[tuple[int, int, str]] = []
        for start, end, name in sorted([*spans, *known], key=lambda span: (span[0], -span[1])):
            if kept and start < kept[-1][1]:
                begin, stop, first = kept[-1]
                if end > stop:
                    kind = first.strip("<>").rpartition("_")[0]
                    kept[-1] = (begin, end, self._vault.placeholder(kind, text[begin:end]))
            else:
                kept.append((start, end, name))
        return kept

    def _use(self, name: str) -> str:
        self.used.add(name)
        return name

    def _look(self, text: str) -> list[Finding]:
        found = self._findings.get(text)
        if found is None:
            self._chars += len(text)
            if self._chars > _MOST_CHARS:
                raise Unreadable("the request is too long to be looked through")
            try:
                found = without_overlaps([*forged(text), *self._detector.find(text), *self._names.find(text)])
            except Unreadable:
                raise
            except Exception:  # noqa: BLE001
                # Whatever went wrong, nobody has looked; its message may quote the text.
                raise Unreadable("looking for personal data failed") from None
            self._findings[text] = found
        return found


def _is_number(node: Any) -> bool:
    return isinstance(node, (int, float)) and not isinstance(node, bool)
