/** The drive as a strip: the link's state and round trip over time, and below it who answered what, when. */

import { el, ms, svg } from "./dom";
import type { Ended, LinkState, Look } from "./types";

const LINK_H = 46;
const LANE_H = 16;
// Longer than this without a look, nothing is known of the link.
const GAP_S = 12;

export interface Lane {
  name: string;
  locality: string;
}

interface Stretch {
  state: LinkState;
  from_s: number;
  to_s: number;
}

export function stretches(looks: Look[], begin_s: number, now_s: number): Stretch[] {
  const found: Stretch[] = [];
  looks.forEach((look, index) => {
    const next = looks[index + 1];
    const to_s = Math.min(next ? next.at_s : now_s, look.at_s + GAP_S);
    if (to_s <= begin_s) return;
    const from_s = Math.max(begin_s, look.at_s);
    const last = found.at(-1);
    if (last && last.state === look.state && from_s - last.to_s < 0.01) last.to_s = to_s;
    else found.push({ state: look.state, from_s, to_s });
  });
  return found;
}

export function strip(looks: Look[], requests: Ended[], lanes: Lane[], span_s: number, now_s: number): HTMLElement {
  const begin_s = now_s - span_s;
  const width = 1000;
  const x = (at_s: number) => Math.max(0, Math.min(width, (width * (at_s - begin_s)) / span_s));
  const linked = looks.length > 0;
  const top = linked ? LINK_H + 8 : 0;
  const height = top + lanes.length * LANE_H;
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", height });
  drawn.style.height = `${height}px`;

  const parts = stretches(looks, begin_s, now_s);
  for (const part of parts) {
    const wide = Math.max(1, x(part.to_s) - x(part.from_s));
    drawn.append(svg("rect", { class: `state ${part.state}`, x: x(part.from_s), y: 0, width: wide, height: LINK_H }));
    drawn.append(svg("rect", { class: `edge ${part.state}`, x: x(part.from_s), y: 0, width: wide, height: 4 }));
  }
  const seen = looks.filter((look) => look.at_s >= begin_s);
  const most_ms = Math.max(100, ...seen.map((look) => (look.state === "down" ? 0 : (look.rtt_ms ?? 0))));
  let path = "";
  let last_s = -Infinity;
  for (const look of seen) {
    if (look.state === "down" || look.rtt_ms === undefined) {
      last_s = -Infinity; // a dead link has no round trip, and no line across it
      continue;
    }
    const y = LINK_H - 2 - ((LINK_H - 10) * look.rtt_ms) / most_ms;
    path += `${look.at_s - last_s > GAP_S ? "M" : "L"}${x(look.at_s).toFixed(1)} ${y.toFixed(1)}`;
    last_s = look.at_s;
  }
  if (path) drawn.append(svg("path", { class: "rtt", d: path, "vector-effect": "non-scaling-stroke" }));

  lanes.forEach((lane, index) => {
    const y = top + index * LANE_H;
    drawn.append(svg("rect", { class: "lane", x: 0, y: y + 2, width, height: LANE_H - 4 }));
    for (const request of requests) {
      const came_s = request.at_s - request.took_ms / 1000;
      if (request.at_s < begin_s) continue;
      for (const attempt of request.told?.attempts ?? []) {
        if (attempt.engine !== lane.name || attempt.outcome.startsWith("skipped")) continue;
        const from_s = came_s + attempt.started_ms / 1000;
        const good = attempt.outcome === "answered" ? "good" : attempt.outcome === "rejected" ? "held" : "bad";
        const wide = Math.max(3, x(from_s + attempt.took_ms / 1000) - x(from_s));
        drawn.append(svg("rect", { class: `turn ${lane.locality} ${good}`, x: x(from_s), y: y + 2, width: wide, height: LANE_H - 4 }));
      }
      if (!request.told?.attempts?.length && request.engine === lane.name) {
        const good = request.status < 400 ? "good" : "bad";
        drawn.append(svg("rect", { class: `turn ${lane.locality} ${good}`, x: x(came_s), y: y + 2, width: Math.max(3, x(request.at_s) - x(came_s)), height: LANE_H - 4 }));
      }
    }
  });
  drawn.setAttribute("aria-label", summary(parts, requests, begin_s));

  const names = el("div", { class: "lanes", "aria-hidden": "true" });
  if (linked) names.append(el("span", { class: "link-name" }, "link", el("small", {}, `0–${ms(most_ms)}`)));
  for (const lane of lanes) names.append(el("span", { class: lane.locality }, lane.name));
  const ago = el("div", { class: "axis dim", "aria-hidden": "true" }, el("span", {}, `−${span_s / 60} min`), el("span", {}, "now"));
  const legend = linked
    ? el("p", { class: "legend dim", "aria-hidden": "true" }, el("i", { class: "up" }), "up ", el("i", { class: "degraded" }), "degraded ", el("i", { class: "down" }), "down ", el("i", { class: "line" }), "round trip")
    : el("p", { class: "legend dim" });
  return el("div", { class: "strip-grid" }, names, drawn as unknown as HTMLElement, legend, ago);
}

function summary(parts: Stretch[], requests: Ended[], begin_s: number): string {
  const seconds = { up: 0, degraded: 0, down: 0 };
  for (const part of parts) seconds[part.state] += part.to_s - part.from_s;
  const count = requests.filter((request) => request.at_s >= begin_s).length;
  const link = parts.length ? `The link was up ${Math.round(seconds.up)} s, degraded ${Math.round(seconds.degraded)} s, down ${Math.round(seconds.down)} s; ` : "";
  return `${link}${count} requests.`;
}
