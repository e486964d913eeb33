/** Puts the page together: state, feed, chat, theme, key. */

import "./style.css";
import { Chat } from "./chat";
import { byId } from "./dom";
import { Drive } from "./drive";
import { Refused, fetchState, follow, setKey } from "./server";
import { showSetup } from "./setup";
import type { FeedEvent } from "./types";

const STATE_MS = 5000;
const THEME = "codriver.theme";
const THEMES = ["auto", "light", "dark"];

function showTheme(theme: string): void {
  document.documentElement.dataset["theme"] = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

function startTheme(): void {
  let theme = localStorage.getItem(THEME) ?? "auto";
  showTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "auto";
    localStorage.setItem(THEME, theme);
    showTheme(theme);
  });
}

let asking: Promise<void> | null = null;

/** Ask for a key, once however many want one. */
function askForKey(why: Refused): Promise<void> {
  asking ??= new Promise((given) => {
    const dialog = byId<HTMLDialogElement>("key-dialog");
    const input = byId<HTMLInputElement>("key");
    const problem = byId("key-error");
    problem.textContent = why.message;
    problem.hidden = !why.message.startsWith("Incorrect");
    input.value = "";
    dialog.showModal();
    input.focus();
    const close = () => {
      setKey(input.value.trim());
      dialog.removeEventListener("close", close);
      asking = null;
      given();
      void refresh();
    };
    dialog.addEventListener("close", close);
  });
  return asking;
}

const drive = new Drive();
const chat = new Chat({
  onShow: (id) => {
    const request = drive.find(id);
    if (request) drive.open(request);
  },
  onKey: askForKey,
});

async function refresh(): Promise<void> {
  try {
    const state = await fetchState();
    byId("kind").textContent = `${state.kind} ${state.version}`;
    document.title = `Codriver console: ${state.kind}`;
    drive.know(state.engines);
    chat.know(state);
    showSetup(state);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) await askForKey(error);
  }
}

function take(event: FeedEvent): void {
  if (event.kind === "hello") drive.begin(event.now_s);
  else if (event.kind === "live") drive.live();
  else if (event.kind === "link") drive.look(event);
  else if (event.kind === "request") drive.add(event);
}

function showConnection(state: "live" | "offline"): void {
  const chip = byId("connection");
  if (chip.textContent === state) return;
  chip.textContent = state;
  chip.className = `chip ${state}`;
}

startTheme();
await refresh();
setInterval(() => document.hidden || asking || void refresh(), STATE_MS);
void follow(take, showConnection, askForKey);
