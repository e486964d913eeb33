/** The server of this page: its state, its feed, and streams of events. The key lives in this tab's session only. */

import type { FeedEvent, State } from "./types";

const KEY = "codriver.key";

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export function setKey(key: string): void {
  sessionStorage.setItem(KEY, key);
}

export function headers(): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** The server's own sentence for a refusal. */
export async function refusal(response: Response): Promise<Refused> {
  const body = (await response.json().catch(() => null)) as { error?: { message?: string } } | null;
  return new Refused(response.status, body?.error?.message ?? `The server answered with status ${response.status}.`);
}

export async function fetchState(): Promise<State> {
  const response = await fetch("./state", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()) as State;
}

/** The data of each server-sent event. */
export async function* events(response: Response): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

const SILENCE_MS = 40_000;
const pause = (wait_ms: number) => new Promise((done) => setTimeout(done, wait_ms));

/** Follow the feed for ever, coming back when it ends. `onRefused` resolves when another try is worth it. */
export async function follow(
  onEvent: (event: FeedEvent) => void,
  onConnection: (words: "live" | "offline") => void,
  onRefused: (why: Refused) => Promise<void>,
): Promise<never> {
  let wait_ms = 500;
  for (;;) {
    const stop = new AbortController();
    let silence = setTimeout(() => stop.abort(), SILENCE_MS);
    try {
      const response = await fetch("./feed", { headers: headers(), signal: stop.signal });
      if (!response.ok) throw await refusal(response);
      wait_ms = 500;
      for await (const data of events(response)) {
        clearTimeout(silence);
        silence = setTimeout(() => stop.abort(), SILENCE_MS);
        const event = JSON.parse(data) as FeedEvent | { error: unknown };
        if (!("kind" in event)) break;
        if (event.kind === "live") onConnection("live");
        onEvent(event);
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        await onRefused(error);
        continue;
      }
    } finally {
      clearTimeout(silence);
      stop.abort();
    }
    onConnection("offline");
    await pause(wait_ms);
    wait_ms = Math.min(8000, wait_ms * 2);
  }
}
