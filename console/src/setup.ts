/** What this process is made of: its engines and its settings, read-only. */

import { byId, el, usd } from "./dom";
import type { EngineInfo, Route, Setting, State } from "./types";

const TITLES: Record<string, string> = {
  route: "Routing policy",
  privacy: "Privacy",
  link: "Link",
  breaker: "Circuit breaker",
  engine: "Engine on board",
  cloud: "Way to the cloud",
  gateway: "Limits",
  observe: "Logs and spans",
};

function card(engine: EngineInfo): HTMLElement {
  const { health } = engine;
  const facts: [string, string][] = [
    ["Model", engine.model || "not named"],
    ["Runs in", `the ${engine.locality}`],
    ["Reads", engine.modalities.join(", ")],
    ["Can", engine.capabilities.join(", ").replace(/_/g, " ")],
  ];
  if (engine.context_tokens) facts.push(["Context", `${engine.context_tokens.toLocaleString("en")} tokens`]);
  if (engine.input_usd || engine.output_usd) facts.push(["Price", `${usd(engine.input_usd)} read, ${usd(engine.output_usd)} written, a million tokens`]);
  if (engine.breaker !== "closed") facts.push(["Breaker", engine.breaker.replace(/_/g, " ")]);
  const list = el("dl", { class: "facts" });
  for (const [name, value] of facts) list.append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const state = [health.state, health.queue ? `${health.queue} in the queue` : "", health.reason ?? ""].filter(Boolean).join(" · ");
  return el("article", { class: "engine" }, el("h3", { class: engine.locality }, engine.name), el("p", { class: `chip health-${health.state}` }, state), list);
}

function shown(value: unknown): string {
  if (value === null || value === "") return "not set";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return Array.isArray(value) ? value.join(", ") || "none" : String(value);
}

function table(section: string, settings: Setting[], open: boolean): HTMLElement {
  const rows = settings.map((one) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, one.key.slice(section.length + 1)),
      el("td", { class: "value" }, shown(one.value)),
      el("td", { class: "dim" }, one.sentence),
    ),
  );
  const head = el("tr", {}, el("th", { scope: "col" }, "Setting"), el("th", { scope: "col" }, "Value"), el("th", { scope: "col" }, "What it is"));
  const box = el(
    "details",
    { "data-section": section },
    el("summary", {}, TITLES[section] ?? section, el("span", { class: "dim" }, ` ${settings.length}`)),
    el("table", {}, el("thead", { class: "unseen" }, head), el("tbody", {}, ...rows)),
  );
  box.open = open;
  return box;
}

/** Semantic routes: the name, what each sets, and how many examples it knows. */
function routes(known: Route[]): HTMLElement {
  const rows = known.map(({ name, examples, ...members }) => {
    const sets = Object.entries(members).map(([key, value]) => (value === true ? key : `${key.replace(/_/g, " ")} ${shown(value)}`));
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "value" }, `${examples} examples`), el("td", { class: "dim" }, sets.join(" · ")));
  });
  const head = el("tr", {}, el("th", { scope: "col" }, "Route"), el("th", { scope: "col" }, "Examples"), el("th", { scope: "col" }, "What it sets"));
  return el(
    "details",
    { "data-section": "routes" },
    el("summary", {}, "Semantic routes", el("span", { class: "dim" }, ` ${known.length}`)),
    el("table", {}, el("thead", { class: "unseen" }, head), el("tbody", {}, ...rows)),
  );
}

export function showSetup(state: State): void {
  byId("engines").replaceChildren(...state.engines.map(card));
  const box = byId("settings");
  const told = JSON.stringify([state.settings, state.routes]);
  if (box.dataset["told"] === told) return;
  box.dataset["told"] = told;
  const sections = Map.groupBy(state.settings, (one) => one.key.split(".")[0] ?? "");
  const names = Object.keys(TITLES).filter((name) => sections.has(name));
  const wide = window.matchMedia("(min-width: 561px)").matches;
  box.replaceChildren(
    ...(state.routes.length ? [routes(state.routes)] : []),
    ...names.map((name) => table(name, sections.get(name) ?? [], name === "route" && wide)),
  );
}
