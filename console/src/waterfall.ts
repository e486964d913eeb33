/** One request's attempts on a common time axis: when each began, when its first token came, how it ended. */

import { el, ms, words } from "./dom";
import type { Attempt, EngineInfo, Ended } from "./types";

/** "good", "held" (a draft that did not pass), "skipped" or "bad". */
function tone(outcome: string): string {
  if (outcome === "answered" || outcome === "ok") return "good";
  if (outcome.startsWith("skipped")) return "skipped";
  return outcome === "rejected" || outcome === "cancelled" ? "held" : "bad";
}

const OUTCOMES: Record<string, string> = { rejected: "draft not good enough", cancelled: "stopped", answered: "answered" };

export function outcomeWords(outcome: string): string {
  return OUTCOMES[outcome] ?? words(outcome);
}

function row(attempt: Attempt, total_ms: number, locality: string): HTMLElement {
  const skipped = tone(attempt.outcome) === "skipped";
  const track = el("div", { class: "track", "aria-hidden": "true" });
  const bar = el("div", { class: `span ${tone(attempt.outcome)} ${locality}` });
  bar.style.left = `${(100 * attempt.started_ms) / total_ms}%`;
  bar.style.width = skipped ? "0" : `${Math.max(0.6, (100 * attempt.took_ms) / total_ms)}%`;
  if (attempt.ttft_ms !== undefined && attempt.took_ms > 0) {
    const wait = el("div", { class: "wait" });
    wait.style.width = `${Math.min(100, (100 * attempt.ttft_ms) / attempt.took_ms)}%`;
    bar.append(wait);
  }
  track.append(bar);
  const facts = [outcomeWords(attempt.outcome)];
  if (!skipped) facts.push(`from ${ms(attempt.started_ms)} for ${ms(attempt.took_ms)}`);
  if (attempt.ttft_ms !== undefined) facts.push(`first token after ${ms(attempt.ttft_ms)}`);
  if (attempt.tokens) facts.push(`${attempt.tokens} tokens`);
  if (attempt.confidence !== undefined) facts.push(`confidence ${attempt.confidence.toFixed(2)}`);
  return el(
    "li",
    {},
    el("div", { class: "who" }, el("b", { class: locality }, attempt.engine), el("span", { class: `mark ${tone(attempt.outcome)}` }, facts[0] ?? "")),
    track,
    el("p", {}, attempt.why ?? ""),
    el("p", { class: "dim" }, facts.slice(1).join(" · ")),
  );
}

export function waterfall(request: Ended, engines: EngineInfo[]): HTMLElement {
  const attempts = request.told?.attempts ?? [];
  const box = el("div", { class: "waterfall" });
  if (attempts.length) {
    const total_ms = Math.max(request.took_ms, ...attempts.map((a) => a.started_ms + a.took_ms), 1);
    const list = el("ol", { "aria-label": "Attempts" });
    for (const attempt of attempts) {
      list.append(row(attempt, total_ms, engines.find((e) => e.name === attempt.engine)?.locality ?? ""));
    }
    box.append(list, el("p", { class: "axis dim", "aria-hidden": "true" }, el("span", {}, "0"), el("span", {}, ms(total_ms / 2)), el("span", {}, ms(total_ms))));
  } else {
    const how = request.told?.engine === "cache" ? "Answered from the semantic cache." : "Answered by one engine, without routing.";
    box.append(el("p", { class: "dim" }, request.code ? "It was refused before an engine was tried." : how));
  }
  for (const failover of request.told?.failovers ?? []) {
    box.append(
      el("p", {}, `${failover.from} died after ${failover.at_chars ?? 0} characters (${words(failover.error ?? "")}); ${failover.to} went on (${failover.policy}).`),
    );
  }
  const facts: [string, string][] = [["Request", request.id], ["Route", request.route], ["Status", String(request.status)]];
  if (request.code) facts.push(["Error", request.code]);
  if (request.told?.link) facts.push(["Link", request.told.link]);
  if (request.told?.privacy) facts.push(["Privacy", words(request.told.privacy)]);
  if (request.told?.semantic?.route) facts.push(["Meaning", request.told.semantic.route]);
  if (request.prompt_tokens || request.completion_tokens) {
    facts.push(["Tokens", `${request.prompt_tokens ?? 0} read, ${request.completion_tokens ?? 0} written`]);
  }
  const list = el("dl", { class: "facts" });
  for (const [name, value] of facts) list.append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  box.append(list);
  return box;
}
