"""Which engines, in which order, within which times: a request and what is known become an attempt plan. Pure and
quick.

The vehicle is the safety net: as long as it can answer, every plan ends in it and leaves it the time it needs. A
cloud attempt is in a plan only while the link is not down, its breaker allows it, and privacy and budget do.
"""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from codriver.core.engine import Engine, EngineCard
from codriver.core.errors import CodriverError, LinkDown, NoEngineLeft, UnknownModel, UnsupportedModality
from codriver.core.messages import ChatRequest, Policy, RequestOptions
from codriver.core.plan import Attempt, AttemptPlan, Gate
from codriver.core.privacy import strictest

from .config import RouteConfig
from .lineup import Lineup
from .sightless import may_go_blind, without_pictures
from .utility import Worth, worth

# Above this prior the draft streams at once, without waiting for a verdict on its first tokens.
_SURE = 0.9
_LEAST_CLOUD_S = 0.3
# How far the estimate of a prompt's length may be too high.
_DOUBT = 0.75
_HAND_OVER_S = 0.25
# Of the whole time, at most, for finishing what a takeover has begun.
_FINISHING_SHARE = 0.25
# However quick the vehicle is: a busy machine may take that long to turn to it.
_LEAST_RESERVE_S = 0.1


class Ask(msgspec.Struct, frozen=True):
    """The request's options with the defaults filled in."""

    request: ChatRequest
    options: RequestOptions
    policy: Policy
    deadline_s: float
    local_only: bool
    prompt_tokens: int


class Decider:
    """Makes plans. Its only state is what ``lineup`` has learnt."""

    def __init__(self, lineup: Lineup, config: RouteConfig | None = None) -> None:
        self._config = config or RouteConfig()
        self._lineup = lineup if self._config.link_aware else lineup.without_link()

    def plan(self, request: ChatRequest, deadline_s: float = math.inf) -> AttemptPlan:
        """Errors: :class:`NoEngineLeft`, :class:`LinkDown`, :class:`UnknownModel`, or why the only engine cannot take
        the request.
        """
        options = request.codriver or RequestOptions()
        privacy = strictest(options.privacy, self._config.privacy)
        limit_s = min(deadline_s, _seconds(options.deadline_ms, self._config.deadline_s))
        policy = options.policy or self._config.policy
        ask = Ask(request, options, policy, limit_s, privacy == "local_only", _likely_tokens(request))
        attempts = self._ordered(ask) if options.engine is None else self._pinned(ask, options.engine)
        self._be_patient(ask, attempts)
        attempts[0] = self._hedged(attempts)
        if attempts[0].start != "at_once":
            attempts[0] = replace(attempts[0], start="at_once")
        budget_usd = options.budget_usd if options.budget_usd is not None else self._config.budget_usd
        return AttemptPlan(
            attempts=tuple(attempts),
            deadline_s=limit_s,
            budget_usd=min(math.inf if budget_usd is None else max(0.0, budget_usd), self._lineup.spending.left_usd()),
            privacy=privacy,
            policy=ask.policy,
            link=self._lineup.link.state,
        )

    # ------------------------------------------------------------ candidates

    def _candidates(self, ask: Ask, locality: str) -> tuple[list[str], list[CodriverError]]:
        """Engines of a locality that may take the request now, and why the others may not."""
        fit: list[str] = []
        refusals: list[CodriverError] = []
        for name in self._lineup.of(locality):
            if not _writes(self._lineup.engines[name].card):
                continue
            reason = self._why_not(ask, name)
            if reason is None:
                fit.append(name)
            else:
                refusals.append(reason)
        if len(fit) > 1:
            fit.sort(key=lambda name: (not self._has_room(ask, name), -self._utility(ask, name)))
        return fit, refusals

    def _utility(self, ask: Ask, name: str) -> float:
        """What orders the engines of a locality; equal, which keeps the configured order, where nothing was read."""
        found = self.worth(ask.request, name, ask.deadline_s)
        return 0.0 if found is None else found.utility

    def worth(self, request: ChatRequest, name: str, deadline_s: float = math.inf) -> Worth | None:
        """What asking ``name`` is worth; None where the quality model has nothing to say of it."""
        good = self._lineup.quality.expected(name, request)
        if good is None:
            return None
        limits = (deadline_s, _likely_tokens(request), request.limit_tokens)
        return worth(self._lineup, self._config, name, good, limits)

    def _has_room(self, ask: Ask, name: str) -> bool:
        """False when the engine is likely to refuse the prompt for its length. Only the engine itself can be sure."""
        card = self._lineup.engines[name].card
        # In doubt the cloud is asked: its refusal comes at once, and the vehicle is still there.
        tokens = ask.prompt_tokens * (_DOUBT if card.locality == "cloud" else 1.0)
        return not card.context_tokens or tokens < card.context_tokens

    def _why_not(self, ask: Ask, name: str, despite_pause: bool = False) -> CodriverError | None:
        engine = self._lineup.engines[name]
        if not _writes(engine.card):
            return UnsupportedModality(f"The model '{name}' does not write text.", param="model")
        try:
            engine.card.refuse_unfit(ask.request)
        except CodriverError as refusal:
            return refusal
        if engine.card.locality == "cloud" and ask.policy != "cloud-only" and self._lineup.link_down(name):
            return LinkDown("The link to the cloud is down; the cloud was not tried.", engine=name)
        if not despite_pause and not self._lineup.breakers[name].allows():
            return NoEngineLeft(f"The engine '{name}' keeps failing and is given a pause.", engine=name)
        health = engine.health()
        if health.state == "loading":
            return NoEngineLeft(f"The engine '{name}' is still loading.", engine=name)
        # A cloud engine that failed says "down" until it answers again: only the breaker knows when to try it.
        if health.state == "down" and engine.card.locality == "vehicle":
            return NoEngineLeft(f"The engine '{name}' is down: {health.reason or 'no reason given'}.", engine=name)
        return None

    def _pinned(self, ask: Ask, name: str) -> list[Attempt]:
        if name not in self._lineup.engines:
            known = ", ".join(self._lineup.engines)
            raise UnknownModel(f"There is no engine '{name}'. Known: {known}.", param="codriver.engine")
        locality = self._lineup.engines[name].card.locality
        if ask.local_only and locality != "vehicle":
            raise NoEngineLeft(f"The request is local_only and the engine '{name}' is not in the vehicle.", engine=name)
        if name in self._paused(ask):
            return self._last_resort(ask, [name])
        reason = self._why_not(ask, name)
        if reason is not None:
            raise reason
        return [self._attempt(ask, name, "asked for by name", ask.deadline_s)]

    # ------------------------------------------------------------ orders

    def _ordered(self, ask: Ask) -> list[Attempt]:
        vehicle: list[str] = []
        cloud: list[str] = []
        vehicle_refusals: list[CodriverError] = []
        cloud_refusals: list[CodriverError] = []
        if ask.policy != "cloud-only":
            vehicle, vehicle_refusals = self._candidates(ask, "vehicle")
        if ask.policy != "vehicle-only" and not ask.local_only:
            cloud, cloud_refusals = self._candidates(ask, "cloud")
        if not vehicle and ask.policy != "cloud-only" and (paused := self._paused(ask)):
            return [*self._all(ask, cloud, "the vehicle is paused after failures"), *self._last_resort(ask, paused)]
        blind = [] if vehicle else self._blind(ask)
        if not vehicle and not cloud and not blind:
            raise self._no_one(ask, vehicle_refusals, cloud_refusals)
        if blind:
            reserve_s = self._lineup.paces[blind[0].engine].needed_s(ask.request.limit_tokens)
            sighted_s = max(_LEAST_CLOUD_S, ask.deadline_s - reserve_s)
            return [*(self._attempt(ask, name, "can see the picture", sighted_s) for name in cloud), *blind]
        if not cloud:
            return self._all(ask, vehicle, self._why_no_cloud(cloud_refusals))
        if not vehicle:
            why = "asked for" if ask.policy == "cloud-only" else _why_no_vehicle(vehicle_refusals)
            return self._all(ask, cloud, why)
        return self._both(ask, vehicle, cloud)

    def _blind(self, ask: Ask) -> list[Attempt]:
        """Engines of the vehicle that could take the request but for its pictures, and say so."""
        if not self._config.cannot_see or ask.policy == "cloud-only" or not may_go_blind(ask.request):
            return []
        wordy = replace(ask, request=without_pictures(ask.request))
        return [
            replace(self._attempt(ask, name, "cannot see the picture, and says so", ask.deadline_s), sightless=True)
            for name in self._lineup.of("vehicle")
            if self._why_not(wordy, name) is None
        ]

    def _paused(self, ask: Ask) -> list[str]:
        """Engines of the vehicle that could take the request, but for the pause that their breaker gives them."""
        names = [name for name in self._lineup.of("vehicle") if not self._lineup.breakers[name].allows()]
        return [name for name in names if self._why_not(ask, name, despite_pause=True) is None]

    def _last_resort(self, ask: Ask, names: list[str]) -> list[Attempt]:
        """A pause spares time and load where others can answer. Where nobody else can, trying costs nothing."""
        why = "paused after failures, but nobody else is left"
        return [replace(self._attempt(ask, name, why, ask.deadline_s), despite_pause=True) for name in names]

    def _both(self, ask: Ask, vehicle: list[str], cloud: list[str]) -> list[Attempt]:
        if ask.policy == "cloud-first":
            return self._cloud_first(ask, vehicle, cloud, "asked to be first")
        if ask.policy == "auto" and not self._has_room(ask, vehicle[0]) and self._has_room(ask, cloud[0]):
            return self._cloud_first(ask, vehicle, cloud, "the prompt is likely too long for the vehicle")
        prior = self._lineup.quality.prior(vehicle[0], self._lineup.quality.features(ask.request))
        # A draft whose engine shows no probabilities can be judged only by the prior, and that can be done now.
        blind = not self._lineup.engines[vehicle[0]].card.can("logprobs")
        cloud_why = self._why_cloud(ask, vehicle[0], cloud[0], prior) if ask.policy == "auto" else ""
        if cloud_why:
            return self._cloud_first(ask, vehicle, cloud, cloud_why)
        sure = blind or (prior >= _SURE and ask.policy != "vehicle-first")
        gate = self._gate(ask, sure)
        why = f"is sure with prior p={prior:.2f}" if sure else f"drafts with prior p={prior:.2f}"
        draft = replace(self._attempt(ask, vehicle[0], why, ask.deadline_s), gate=gate)
        takeover_s = max(0.0, ask.deadline_s - self._kept_back_s(ask, vehicle[0])) if gate else ask.deadline_s
        takeovers = [self._attempt(ask, name, "takes over from a weak draft", takeover_s) for name in cloud]
        return [
            draft,
            *(replace(attempt, start="after_rejection") for attempt in takeovers),
            *(self._attempt(ask, name, "the vehicle's safety net", ask.deadline_s) for name in vehicle[1:]),
        ]

    def _kept_back_s(self, ask: Ask, vehicle: str) -> float:
        """What a takeover may not have of the time. Where it has brought nothing by then, the rejected draft is handed
        over at once; where it has, the vehicle goes on from there, and needs its time.
        """
        needed_s = self._lineup.paces[vehicle].needed_s(ask.request.limit_tokens)
        return max(_HAND_OVER_S, min(needed_s, _FINISHING_SHARE * ask.deadline_s))

    def _why_cloud(self, ask: Ask, vehicle: str, cloud: str, prior: float) -> str:
        """Why the cloud should go first; empty when the vehicle should. A draft that its gate can judge costs little:
        it is left out only where it would hardly be right, and the cloud is worth more. One that nothing can judge is
        weighed against the cloud.
        """
        config = self._config
        condition = self._lineup.sensors.read()
        spared = config.strain_weight * condition.strain(config)
        told = f"spares the vehicle ({condition}): " if spared else ""
        blind = not self._lineup.engines[vehicle].card.can("logprobs")
        here, there = (self.worth(ask.request, name, ask.deadline_s) for name in (vehicle, cloud))
        if here is None or there is None:
            least = max(config.skip_below, config.min_confidence if blind else 0.0) + spared
            return f"{told}the vehicle would be right with p={prior:.2f}" if prior < least else ""
        gain = there.utility - here.utility
        if gain > config.least_gain if blind else (here.good < config.skip_below + spared and gain > 0):
            return f"{told}is worth {gain:.2f} more: right with p={there.good:.2f}, the vehicle with p={here.good:.2f}"
        return ""

    def _cloud_first(self, ask: Ask, vehicle: list[str], cloud: list[str], why: str) -> list[Attempt]:
        # Time kept back for a vehicle that will refuse is time lost.
        likely = self._has_room(ask, vehicle[0]) or not self._has_room(ask, cloud[0])
        needed_s = self._lineup.paces[vehicle[0]].needed_s(ask.request.limit_tokens)
        reserve_s = max(_LEAST_RESERVE_S, needed_s) if likely else 0.0
        cloud_s = ask.deadline_s - reserve_s
        safety = [self._attempt(ask, name, "the vehicle's safety net", ask.deadline_s) for name in vehicle]
        if cloud_s < _LEAST_CLOUD_S:
            too_little = f"the deadline leaves the cloud {max(0.0, cloud_s):.1f} s"
            return [replace(safety[0], why=too_little), *safety[1:]]
        attempts = [self._attempt(ask, name, why, cloud_s) for name in cloud]
        if self._may_lead(ask, vehicle[0], cloud[0]):
            # Where the others fail, it goes on itself: it need not stand at the end as well.
            leads = replace(safety[0], why="leads with the first sentence", until="first_sentence")
            return [leads, *attempts, *safety[1:]]
        return [*attempts, *safety]

    def _may_lead(self, ask: Ask, vehicle: str, cloud: str) -> bool:
        """True where a first sentence by the vehicle would be read sooner, and the cloud can go on from it."""
        request, paces = ask.request, self._lineup.paces
        plain = request.response_format is None or request.response_format.type == "text"
        return (
            self._config.lead_sentence
            and request.stream
            and plain
            and not (request.tools or request.stop or request.logprobs or request.continue_from)
            and (request.n or 1) == 1
            and request.prompt is None
            and (ask.options.failover or self._config.failover) == "resume"
            and self._has_room(ask, vehicle)
            and paces[vehicle].ttft_s < paces[cloud].ttft_s
        )

    def _all(self, ask: Ask, names: list[str], why: str) -> list[Attempt]:
        return [self._attempt(ask, name, why, ask.deadline_s) for name in names]

    # ------------------------------------------------------------ parts

    def _attempt(self, ask: Ask, name: str, why: str, total_s: float) -> Attempt:
        options, engine = ask.options, self._lineup.engines[name]
        limited = _limited(engine) if engine.card.locality == "vehicle" else ""
        return Attempt(
            engine=name,
            locality=engine.card.locality,
            why=f"{why}; {limited}" if limited else why,
            first_token_s=min(total_s, _seconds(options.first_token_ms, self._config.first_token_s)),
            inter_token_s=_seconds(options.inter_token_ms, self._config.inter_token_s),
            total_s=total_s,
            on_late_death=options.failover or self._config.failover,
        )

    def _be_patient(self, ask: Ask, attempts: list[Attempt]) -> None:
        """The last attempt, and the last that has room for the prompt, may wait as long as there is time."""
        alone = len(attempts) == 1
        attempts[-1] = self._patient(ask, attempts[-1], alone)
        roomy = [self._has_room(ask, attempt.engine) for attempt in attempts]
        if any(roomy) and not all(roomy):
            at = len(roomy) - 1 - roomy[::-1].index(True)
            attempts[at] = self._patient(ask, attempts[at], alone, nobody_else=True)

    def _patient(self, ask: Ask, last: Attempt, alone: bool, nobody_else: bool = False) -> Attempt:
        """The last attempt with the limits that only the client may set lifted: nobody comes after it.

        An engine of the vehicle may take all the time there is for a long prompt, one of the cloud too where
        ``nobody_else`` can read it, and an answer that is not streamed has its first token with its last.
        """
        options = ask.options
        whole = alone and not ask.request.stream
        if options.first_token_ms is not None or options.inter_token_ms is not None:
            return last
        if whole:
            return replace(last, first_token_s=last.total_s, inter_token_s=math.inf)
        return replace(last, first_token_s=last.total_s) if nobody_else or last.locality == "vehicle" else last

    def _hedged(self, attempts: list[Attempt]) -> Attempt:
        """The first attempt, with the time after which the next one joins it, where it asks the cloud.

        A vehicle is slow for a long prompt, not by chance: a cloud that joined it cost a twentieth more calls and came
        no sooner (replayed drive, 3,000 requests).
        """
        first = attempts[0]
        if not self._config.hedge_after or len(attempts) == 1 or first.locality != "cloud":
            return first
        return replace(first, hedge_s=self._lineup.paces[first.engine].slow_s(self._config.hedge_after))

    def _gate(self, ask: Ask, sure: bool) -> Gate | None:
        """``sure``: only a schema can speak against the draft."""
        wants = ask.request.response_format
        schema = wants is not None and wants.type != "text"
        if sure and not schema:
            return None
        return Gate(
            min_confidence=0.0 if sure else self._config.min_confidence,
            probe_tokens=self._config.probe_tokens,
            schema=schema,
        )

    def _why_no_cloud(self, refusals: list[CodriverError]) -> str:
        """What a plan says of a cloud that is not in it."""
        if not refusals:
            return "the only place allowed"
        first = refusals[0]
        if isinstance(first, NoEngineLeft):
            paused = not self._lineup.breakers[first.engine].allows()
            return "the cloud is paused after failures" if paused else "the cloud is still loading"
        return first.code.replace("_", " ")

    @staticmethod
    def _no_one(ask: Ask, vehicle: list[CodriverError], cloud: list[CodriverError]) -> CodriverError:
        """One refusal is told as it is; of several, the vehicle's first, because it is the one that is always there."""
        refusals = [*vehicle, *cloud]
        if ask.local_only and ask.policy == "cloud-only":
            return NoEngineLeft("The request is local_only, by itself or by its session, and its policy is cloud-only.")
        return refusals[0] if refusals else NoEngineLeft("No engine is set up that may take this request.")


def _writes(card: EngineCard) -> bool:
    return card.can("chat") or card.can("completions")


def _limited(engine: Engine) -> str:
    """What an engine that answers gives a reason for is how it does less than it could."""
    health = engine.health()
    return health.reason if health.state in ("ready", "busy") else ""


def _why_no_vehicle(refusals: list[CodriverError]) -> str:
    """What a plan says of a vehicle that is not in it."""
    down = next((one.message for one in refusals if isinstance(one, NoEngineLeft)), "")
    return "no engine of the vehicle may answer" + (f": {down}" if down else "")


def _likely_tokens(request: ChatRequest) -> int:
    """An estimate that is rarely too low: English has 4.3 characters to a token and more, other scripts down to one;
    each message adds its frame.
    """
    text = request.text()
    plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return plain // 4 + len(text) - plain + 4 * len(request.messages)


def _seconds(milliseconds: float | None, default_s: float) -> float:
    return default_s if milliseconds is None else max(0.0, milliseconds / 1e3)
