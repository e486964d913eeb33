/** The drive as it happens: the strip, the figures, and every request with its attempts on demand. */

import { byId, clock, el, ms, usd, words } from "./dom";
import { strip, type Lane } from "./strip";
import type { EngineInfo, Ended, Look } from "./types";
import { waterfall } from "./waterfall";

const KEPT = 200;
const LOOKS = 300;

/** From the request's arrival to the first token that the client saw: a failover's answer began on the engine that died. */
export function firstToken(request: Ended): number | undefined {
  const began = request.told?.failovers?.[0]?.from;
  const answered = request.told?.attempts?.find((a) => (began ? a.engine === began : a.outcome === "answered") && a.ttft_ms !== undefined);
  return answered?.ttft_ms === undefined ? undefined : answered.started_ms + answered.ttft_ms;
}

export function answerer(request: Ended): string {
  return request.told?.engine || request.engine || "";
}

function median(values: number[]): number | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}

export class Drive {
  private requests: Ended[] = [];
  private looks: Look[] = [];
  private engines: EngineInfo[] = [];
  private rows = new Map<number, HTMLLIElement>();
  private ahead_s = 0;
  private drawn = false;

  constructor() {
    byId("span").addEventListener("change", () => this.draw());
    setInterval(() => document.hidden || this.draw(), 1000);
    byId("requests").addEventListener("keydown", (event) => this.walk(event));
  }

  /** A feed began: what it gives first is all there is. */
  begin(now_s: number): void {
    this.ahead_s = now_s - Date.now() / 1000;
    this.requests = [];
    this.looks = [];
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.drawn = false;
  }

  live(): void {
    this.drawn = true;
    this.draw();
  }

  know(engines: EngineInfo[]): void {
    this.engines = engines;
    if (this.drawn) this.draw();
  }

  look(look: Look): void {
    this.looks.push(look);
    if (this.looks.length > LOOKS) this.looks.shift();
    if (this.drawn) this.showLink();
  }

  add(request: Ended): void {
    this.requests.push(request);
    const row = this.row(request);
    this.rows.set(request.number, row);
    byId("requests").prepend(row);
    if (this.requests.length > KEPT) {
      const gone = this.requests.shift();
      if (gone) {
        this.rows.get(gone.number)?.remove();
        this.rows.delete(gone.number);
      }
    }
    if (this.drawn) this.draw();
  }

  find(id: string): Ended | undefined {
    return this.requests.findLast((request) => request.id === id);
  }

  /** Open the request's waterfall and go there. */
  open(request: Ended): void {
    const row = this.rows.get(request.number);
    const button = row?.querySelector("button");
    if (!row || !button) return;
    if (button.getAttribute("aria-expanded") !== "true") button.click();
    row.scrollIntoView({ block: "nearest" });
    button.focus();
  }

  private draw(): void {
    if (!this.drawn) return;
    const span_s = Number(byId<HTMLSelectElement>("span").value);
    const lanes: Lane[] = this.engines.filter((e) => e.capabilities.includes("chat") || e.capabilities.includes("completions"));
    byId("strip").replaceChildren(strip(this.looks, this.requests, lanes, span_s, Date.now() / 1000 + this.ahead_s));
    byId("none").hidden = this.requests.length > 0;
    this.showLink();
    this.showFigures();
  }

  private showLink(): void {
    const last = this.looks.at(-1);
    const chip = byId("link");
    chip.hidden = !last;
    if (!last) return;
    chip.className = `chip ${last.state}`;
    const rtt = last.rtt_ms === undefined || last.state === "down" ? "" : ` · ${ms(last.rtt_ms)}`;
    chip.textContent = `link ${last.state}${rtt}`;
  }

  private showFigures(): void {
    const done = this.requests.filter((request) => request.status === 200 && !request.code);
    const first = done.map(firstToken).filter((value) => value !== undefined);
    const failovers = this.requests.reduce((sum, request) => sum + (request.told?.failovers?.length ?? 0), 0);
    const figures: [string, string][] = [
      ["Requests", String(this.requests.length)],
      ...this.engines
        .map((e): [string, number] => [e.name, done.filter((request) => answerer(request) === e.name).length])
        .filter(([name, count]) => count > 0 || ["vehicle", "cloud"].includes(name))
        .map(([name, count]): [string, string] => [`By ${name}`, String(count)]),
      ["Not answered", String(this.requests.length - done.length)],
      ["Failovers", String(failovers)],
      ["Median first token", ms(median(first))],
      ["Cost", usd(this.requests.reduce((sum, request) => sum + (request.cost_usd ?? 0), 0))],
    ];
    byId("figures").replaceChildren(...figures.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  private row(request: Ended): HTMLLIElement {
    const who = answerer(request);
    const locality = this.engines.find((e) => e.name === who)?.locality ?? request.told?.locality ?? who;
    const failed = request.status >= 400 || Boolean(request.code);
    const why = request.told?.attempts?.find((a) => a.outcome === "answered")?.why ?? "";
    const name = failed ? words(request.code || String(request.status)) : who || "answered";
    const first = firstToken(request);
    const timing = first === undefined ? ms(request.took_ms) : `${ms(first)} / ${ms(request.took_ms)}`;
    const button = el(
      "button",
      { type: "button", "aria-expanded": "false" },
      el("time", {}, clock(request.at_s)),
      el("b", { class: failed ? "bad" : locality }, name),
      el("span", { class: "why" }, request.route === "/v1/chat/completions" ? why : [request.route, why].filter(Boolean).join(" · ")),
      el("span", { class: "timing", title: "first token / whole answer" }, timing),
    );
    const row = el("li", {}, button);
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) row.querySelector(".waterfall")?.remove();
      else row.append(waterfall(request, this.engines));
    });
    return row;
  }

  /** Arrow keys, Home and End go from request to request. */
  private walk(event: KeyboardEvent): void {
    const buttons = [...byId("requests").querySelectorAll<HTMLButtonElement>("li > button")];
    const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
  }
}
