/** Talking to this server as any client does: a stream from /v1/chat/completions, and who answered below it. */

import { byId, el, ms } from "./dom";
import { Refused, events, headers, refusal } from "./server";
import type { State, Told } from "./types";

// Small models sometimes find no end.
const MOST_TOKENS = 512;
const POLICIES = ["auto", "vehicle-only", "vehicle-first", "cloud-first", "cloud-only"];

interface Message {
  role: "user" | "assistant";
  content: string;
}

interface Chunk {
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  codriver?: Told & { restart?: boolean };
  error?: { message?: string };
}

export interface ChatHooks {
  /** Show the request with this id among the others. */
  onShow: (id: string) => void;
  /** The server wants a key; resolves when one was given. */
  onKey: (why: Refused) => Promise<void>;
}

export class Chat {
  private history: Message[] = [];
  private stop: AbortController | null = null;
  private routed = false;

  constructor(private readonly hooks: ChatHooks) {
    const box = byId<HTMLTextAreaElement>("message");
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else if (box.value.trim()) void this.ask(box.value.trim());
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.stop) byId<HTMLFormElement>("ask").requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop?.abort();
    });
    byId("forget").addEventListener("click", () => this.forget());
    byId("policy").append(...POLICIES.map((name) => el("option", {}, name)));
  }

  know(state: State): void {
    const select = byId<HTMLSelectElement>("model");
    const able = (name: string) => state.engines.find((e) => e.name === name)?.capabilities.includes("chat") ?? true;
    const names = state.models.filter(able);
    if (names.join() !== [...select.options].map((option) => option.value).join()) {
      select.replaceChildren(...names.map((name) => el("option", {}, name)));
    }
    this.routed = state.kind === "vehicle";
    byId("policy-label").hidden = byId("privacy-label").hidden = !this.routed;
  }

  private forget(): void {
    this.stop?.abort();
    this.history = [];
    byId("talk").replaceChildren();
    byId("forget").hidden = true;
    byId("message").focus();
  }

  private async ask(text: string): Promise<void> {
    const box = byId<HTMLTextAreaElement>("message");
    const talk = byId("talk");
    const answer = el("p", { class: "text" });
    const foot = el("p", { class: "foot dim" }, "waiting for the first token");
    const turn = el("article", { class: "answer", "aria-busy": "true" }, answer, foot);
    talk.append(el("article", { class: "question" }, el("p", { class: "text" }, text)), turn);
    box.value = "";
    byId("forget").hidden = false;
    this.stop = new AbortController();
    this.label();
    const asked = [...this.history, { role: "user", content: text } as Message];
    try {
      const said = await this.stream(asked, answer, foot, this.stop.signal);
      this.history = [...asked, { role: "assistant", content: said }];
    } catch (error) {
      foot.textContent = this.stop.signal.aborted ? "stopped" : (error as Error).message;
      if (!this.stop.signal.aborted) foot.className = "foot error";
      if (error instanceof Refused && error.status === 401) {
        void this.hooks.onKey(error);
        box.value = text;
      }
    } finally {
      this.stop = null;
      this.label();
      turn.removeAttribute("aria-busy");
      follow(talk, true);
    }
  }

  private async stream(messages: Message[], answer: HTMLElement, foot: HTMLElement, signal: AbortSignal): Promise<string> {
    const began = performance.now();
    const response = await fetch("../v1/chat/completions", {
      method: "POST",
      headers: { ...headers(), "content-type": "application/json" },
      body: JSON.stringify({ model: byId<HTMLSelectElement>("model").value, messages, stream: true, max_tokens: MOST_TOKENS, ...this.options() }),
      signal,
    });
    if (!response.ok) throw await refusal(response);
    let text = "";
    let first_ms: number | undefined;
    let told: Told = { engine: response.headers.get("x-codriver-engine") ?? "" };
    let whole = false;
    let full = false;
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        whole = true;
        break;
      }
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new Error(`The answer was cut: ${chunk.error.message ?? "no reason was given"}`);
      if (chunk.codriver?.restart) text = "";
      else if (chunk.codriver?.engine) told = chunk.codriver;
      if (chunk.choices?.[0]?.finish_reason === "length") full = true;
      const piece = chunk.choices?.[0]?.delta?.content ?? "";
      if (piece) {
        first_ms ??= performance.now() - began;
        foot.textContent = "answering";
      }
      text += piece;
      answer.textContent = text;
      follow(byId("talk"), false);
    }
    if (!whole) throw new Error("The answer was cut: the connection ended before the answer did.");
    this.sign(foot, told, first_ms, response.headers.get("x-request-id") ?? "");
    if (full) foot.prepend(`stopped after ${MOST_TOKENS} tokens · `);
    return text;
  }

  private options(): object {
    if (!this.routed) return {};
    const privacy = byId<HTMLSelectElement>("privacy").value;
    return { codriver: { policy: byId<HTMLSelectElement>("policy").value, ...(privacy === "any" ? {} : { privacy }) } };
  }

  /** Who answered, how fast, and the way to the attempts. */
  private sign(foot: HTMLElement, told: Told, first_ms: number | undefined, id: string): void {
    const parts = [`${ms(first_ms)} to first token`];
    if (told.confidence !== undefined) parts.push(`confidence ${told.confidence.toFixed(2)}`);
    if (told.link) parts.push(`link ${told.link}`);
    for (const failover of told.failovers ?? []) parts.push(`${failover.from} died, ${failover.to} went on`);
    const show = el("button", { type: "button", class: "quiet" }, "Attempts");
    show.addEventListener("click", () => this.hooks.onShow(id));
    foot.replaceChildren(el("b", { class: told.locality ?? told.engine ?? "" }, told.engine || "answered"), ` · ${parts.join(" · ")} `, show);
  }

  private label(): void {
    byId("send").textContent = this.stop ? "Stop" : "Send";
  }
}

/** Keep the end in view, unless the reader has scrolled up. */
function follow(talk: HTMLElement, always: boolean): void {
  if (always || talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80) talk.scrollTop = talk.scrollHeight;
}
