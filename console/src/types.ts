/** What the gateway tells: see observe/journal.py and apps/console/state.py. Optional members are left out where empty. */

export interface Attempt {
  engine: string;
  outcome: string;
  started_ms: number;
  took_ms: number;
  why?: string;
  tokens?: number;
  ttft_ms?: number;
  confidence?: number;
}

export interface Failover {
  from: string;
  to: string;
  policy?: string;
  error?: string;
  at_chars?: number;
}

export interface Told {
  engine?: string;
  locality?: string;
  link?: string;
  privacy?: string;
  semantic?: { route?: string };
  confidence?: number;
  attempts?: Attempt[];
  failovers?: Failover[];
}

export interface Ended {
  kind: "request";
  number: number;
  at_s: number;
  id: string;
  route: string;
  status: number;
  took_ms: number;
  engine?: string;
  code?: string;
  prompt_tokens?: number;
  completion_tokens?: number;
  cost_usd?: number;
  told?: Told;
}

export type LinkState = "up" | "degraded" | "down";

export interface Look {
  kind: "link";
  at_s: number;
  state: LinkState;
  rtt_ms?: number;
  bps?: number;
}

export type FeedEvent = Ended | Look | { kind: "hello"; now_s: number } | { kind: "beat"; now_s: number } | { kind: "live" };

export interface EngineInfo {
  name: string;
  locality: string;
  model: string;
  modalities: string[];
  capabilities: string[];
  context_tokens: number;
  input_usd: number;
  output_usd: number;
  health: { state: string; queue?: number; eta_s?: number; reason?: string };
  breaker: string;
}

export interface Setting {
  key: string;
  value: unknown;
  sentence: string;
}

/** A semantic route: what it sets, without its examples. */
export interface Route {
  name: string;
  examples: number;
  [member: string]: unknown;
}

export interface State {
  version: string;
  kind: "vehicle" | "cloud";
  models: string[];
  engines: EngineInfo[];
  routes: Route[];
  settings: Setting[];
}
