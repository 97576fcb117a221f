/**
 * The page: what the user does -> events of the session, events of the session -> messages and sound.
 *
 * The session begins with the first message and is one conversation of the server, which keeps codes; the page
 * keeps the sound that was sent and heard, for playback and download.
 */

import { connectButtons, openSettings } from "./buttons.js";
import { download } from "./download.js";
import { Message, pausePlayback } from "./message.js";
import { Realtime } from "./realtime.js";
import { Heard } from "./heard.js";
import { checkSettings, fields, sessionSettings, showConfig } from "./settings.js";
import { Microphone, RATE, SoundOut, audioContext, base64Of, pcmOf, readFile } from "./sound.js";
import { addDivider, addToHistory, fail, following, guard, say, swap, write } from "./view.js";

const APPEND = RATE; // most samples of one append: 1 s
const LEAST_SAMPLES = RATE / 10; // of a turn

const $ = (id) => document.getElementById(id);

let config;
let session = null; // Realtime
let sent = ""; // settings that the session has, as JSON
let spoke = false; // whether the session has spoken
let out = null; // SoundOut
let microphone = null;
let isHandsFree = false; // whether the microphone is open until it is closed, and the server finds the turns
let turn = null; // Message of the user whose sound is coming
let reply = null; // the latest one
let queue = Promise.resolve(); // what the user asked for, one after the other
let replies = new Map(); // by id of the response
let messages = [];
let heard = null; // Heard: what was appended in this session
let speechStartMs = 0; // of the turn that is being spoken, hands-free

// --- session -----------------------------------------------------------------------------------------------------

/** The session, with the settings as they are now. */
async function ready() {
  checkSettings();
  if (config.needs_key && !fields.key.value.trim()) {
    openSettings(true);
    fields.key.focus();
    throw new Error("This server asks for an API key: enter it in the settings.");
  }
  if (!session) {
    say("Connecting …");
    session = await Realtime.open(fields.key.value.trim(), receive, ended);
    say("");
    sent = "";
    spoke = false;
    heard = new Heard(config.limits.max_turn_sec + 5);
    if (messages.length) addDivider("A new session: the model does not know what is above.");
  }
  const settings = sessionSettings(isHandsFree);
  if (spoke) delete settings.audio.output.voice; // fixed by now; `askFor` gives it
  if (JSON.stringify(settings) !== sent) session.send({ type: "session.update", event_id: "settings", session: settings });
  sent = JSON.stringify(settings);
  return session;
}

function ended(words) {
  session = null;
  if (reply?.isRunning) finishReply(reply, { status: "failed", status_details: { error: { message: words } } });
  microphone?.close();
  microphone = turn = null;
  isHandsFree = false;
  if (words) fail(new Error(`${words} The next message begins a new session.`));
  show();
}

function receive(event) {
  const its = replies.get(event.response_id ?? event.response?.id);
  const adds = its && !its.isStopped ? its.message : null; // what comes late is not shown
  switch (event.type) {
    case "response.created":
      if (!reply?.isRunning || reply.id) beginReply(); // the server's own, hands-free
      reply.id = event.response.id;
      replies.set(reply.id, reply);
      break;
    case "response.output_item.added":
      if (its) its.itemId = event.item.id;
      break;
    case "response.output_text.delta":
    case "response.output_audio_transcript.delta":
      following(() => adds?.addText(event.delta));
      break;
    case "response.output_audio.delta":
      if (adds) following(() => hear(its, pcmOf(event.delta)));
      break;
    case "lit_moss.codes.delta":
      following(() => adds?.addCodes(event.codes));
      break;
    case "lit_moss.response.timing":
      if (its) its.message.facts.server = event.usage;
      break;
    case "response.done":
      if (its) finishReply(its, event.response);
      break;
    case "input_audio_buffer.speech_started":
      speechStartMs = event.audio_start_ms;
      stop({ asks: false });
      say("Listening …");
      break;
    case "input_audio_buffer.speech_stopped":
      turnFound(event.audio_end_ms);
      break;
    case "error":
      refused(event.error);
  }
}

function refused(error) {
  if (error.code === "response_cancel_not_active") return; // a stop that came just after the end
  fail(new Error(error.message));
  if (error.event_id === "settings") sent = "";
  if (error.event_id && error.event_id === reply?.askedBy) finishReply(reply, { status: "failed", status_details: { error } });
}

// --- replies -----------------------------------------------------------------------------------------------------

/** A reply is awaited; its first sound counts from `since`, the end of what the user said. */
function beginReply(since = performance.now()) {
  pausePlayback();
  const message = new Message("assistant", config.codebook);
  message.state = "running";
  add(message);
  reply = { message, since, isRunning: true, isPlaying: false, isStopped: false, number: (reply?.number ?? 0) + 1 };
  reply.whenDone = new Promise((resolve) => (reply.done = resolve));
  out?.start(reply.number);
  show();
}

/** Asks for a reply to what was said. */
function askFor(open, since) {
  beginReply(since);
  reply.askedBy = `ask_${reply.number}`;
  const response = config.can_speak ? { audio: { output: { voice: fields.voice.value } } } : {};
  open.send({ type: "response.create", event_id: reply.askedBy, response });
}

function hear(its, pcm) {
  its.message.addSound(pcm);
  spoke = true;
  its.isPlaying = Boolean(out);
  out?.push(pcm);
}

function finishReply(its, response) {
  const { message } = its;
  its.isRunning = false;
  if (its === reply && !its.isStopped) out?.end();
  message.state = response.status;
  message.facts.seconds = (performance.now() - its.since) / 1000;
  if (response.status === "failed") {
    message.note = response.status_details?.error?.message ?? "The reply failed.";
  } else {
    message.finish(`reply_${messages.indexOf(message) + 1}.wav`);
    message.facts.status = response.status;
    message.showFacts();
    if (!out && message.samples && !its.isStopped) message.toggle().catch(() => {}); // without a click none may play
  }
  its.done();
  show();
}

/** Messages of the player. */
function played({ type, reply: number, samples, gaps, time }) {
  if (number !== reply?.number) return;
  const { message } = reply;
  if (type === "began") {
    message.facts.firstSound = (out.heardAt(time) - reply.since) / 1000;
    message.element.dataset.firstSound = message.facts.firstSound;
    if (!reply.isRunning) message.showFacts();
  }
  if (type === "played") message.move(samples);
  if (type === "ended") {
    reply.isPlaying = false;
    message.facts.gaps = gaps;
    message.showFacts();
    message.move(0);
    show();
  }
}

/** Ends the reply, and takes what was not heard out of the conversation. */
async function stop({ asks = true } = {}) {
  const stopped = reply;
  if (!stopped || stopped.isStopped || !(stopped.isRunning || stopped.isPlaying)) return;
  stopped.isStopped = true;
  if (asks && stopped.isRunning) session?.send({ type: "response.cancel" });
  const heard = out && stopped.isPlaying ? await out.flush() : 0;
  stopped.isPlaying = false;
  await stopped.whenDone;
  const { message } = stopped;
  if (message.samples > heard && stopped.itemId) {
    const audio_end_ms = Math.floor((1000 * heard) / RATE);
    session?.send({ type: "conversation.item.truncate", item_id: stopped.itemId, content_index: 0, audio_end_ms });
    message.facts.heardSeconds = heard / RATE;
    message.showFacts();
  }
  message.move(0);
  show();
}

// --- turns of the user -------------------------------------------------------------------------------------------

/** Sends a turn by `send(session)` and asks for the reply. */
function ask(message, send) {
  return inTurn(async () => {
    await stop();
    if (fields.reply.value === "speech") await openPlayer();
    const open = await ready();
    add(message);
    send(open);
    askFor(open);
  });
}

function inTurn(action) {
  const result = queue.then(action);
  queue = result.catch(() => {});
  return result;
}

async function sendText() {
  const text = $("text").value.trim();
  if (!text) return;
  write("");
  const message = new Message("user", config.codebook);
  message.addText(text);
  const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
  try {
    await ask(message, (open) => open.send({ type: "conversation.item.create", item }));
  } catch (error) {
    if (!$("text").value) write(text); // to be sent again
    throw error;
  }
}

async function sendFile(file) {
  const pcm = await readFile(file, config.limits.max_turn_sec);
  if (pcm.length < LEAST_SAMPLES) throw new Error(`${file.name} is shorter than 0.1 s.`);
  const message = new Message("user", config.codebook);
  message.addSound(pcm);
  message.finish(file.name.replace(/\.\w+$/, "") + ".wav");
  message.note = file.name;
  return ask(message, (open) => {
    for (let n = 0; n < pcm.length; n += APPEND) append(open, pcm.subarray(n, n + APPEND));
    open.send({ type: "input_audio_buffer.commit" });
  });
}

function append(open, pcm) {
  open.send({ type: "input_audio_buffer.append", audio: base64Of(pcm) });
  heard.add(pcm);
}

/** Begins to listen: to one turn, or hands-free until it is ended. */
async function listen() {
  const audio = await openSound();
  pausePlayback();
  await stop();
  isHandsFree = fields.hands_free.checked;
  const open = await ready();
  const speaking = isHandsFree ? null : new Message("user", config.codebook);
  microphone = await Microphone.open(audio, (pcm) => {
    const level = Math.sqrt(pcm.reduce((sum, value) => sum + value * value, 0) / pcm.length) / 8000;
    $("mic").style.setProperty("--level", Math.min(1, level));
    append(open, pcm);
    if (speaking) hearUser(speaking, pcm);
  }).catch((error) => {
    isHandsFree = false;
    throw error;
  });
  if (speaking) {
    turn = speaking;
    add(turn);
  }
  say(isHandsFree ? "Listening: speak, the turn ends when you pause." : "Recording: release, or click again, to send.");
  show();
}

function hearUser(message, pcm) {
  message.addSound(pcm);
  if (message.samples / RATE > config.limits.max_turn_sec - 0.5 && turn === message) guard(endTurn);
}

async function endTurn() {
  const [closing, message] = [microphone, turn];
  microphone = turn = null;
  if (!closing) return;
  const since = performance.now();
  await closing.close();
  say("");
  show();
  if (isHandsFree) {
    isHandsFree = false;
    await ready(); // the server listens to no more turns
    session?.send({ type: "input_audio_buffer.clear" });
    return;
  }
  if (message.samples < LEAST_SAMPLES) {
    session?.send({ type: "input_audio_buffer.clear" });
    messages.pop().remove();
    throw new Error("That was shorter than 0.1 s: hold the button while you speak, or click it to begin and to end.");
  }
  message.finish(`turn_${messages.length}.wav`);
  session?.send({ type: "input_audio_buffer.commit" });
  if (session) askFor(session, since);
}

/** A turn that the server found, hands-free. */
function turnFound(endMs) {
  say("");
  const { pcm, time } = heard.between(speechStartMs, endMs);
  if (!pcm.length) return;
  const message = new Message("user", config.codebook);
  message.addSound(pcm);
  message.finish(`turn_${messages.length + 1}.wav`);
  add(message);
  beginReply(time); // when the last of it was recorded
}

async function openSound() {
  const audio = await audioContext();
  out ??= new SoundOut(audio, played);
  return audio;
}

/** Where sound cannot be played as it comes, a reply is played once it is whole. */
async function openPlayer() {
  await openSound().catch(({ message }) => fail(new Error(`${message} Replies are played once they are whole.`)));
}

// --- conversation ------------------------------------------------------------------------------------------------

function add(message) {
  messages.push(message);
  addToHistory(message.element);
  show();
}

async function clear() {
  session?.close();
  session = null;
  if (out) out.flush();
  await microphone?.close();
  microphone = turn = reply = null;
  isHandsFree = false;
  messages.forEach((message) => message.remove());
  messages = [];
  replies = new Map();
  $("history").replaceChildren();
  say("");
  fail(null);
  show();
}

// --- what is seen ------------------------------------------------------------------------------------------------

function show() {
  const isBusy = Boolean(reply && (reply.isRunning || reply.isPlaying));
  if (isBusy) swap($("send"), $("stop"));
  else swap($("stop"), $("send"));
  $("welcome").hidden = messages.length > 0;
  $("save").disabled = $("clear").disabled = !messages.length;
  $("mic").setAttribute("aria-pressed", Boolean(microphone));
  fields.voice.disabled = !config.can_speak || (spoke && fields.hands_free.checked);
  $("file").disabled = Boolean(microphone) || !config.can_listen;
  $("file-label").classList.toggle("off", $("file").disabled);
  fields.hands_free.disabled = Boolean(microphone) || !config.can_listen || !config.can_find_turns;
}

async function start() {
  const response = await fetch("page/config.json").catch(() => null);
  if (!response?.ok) throw new Error("The server does not answer: is it running?");
  config = await response.json();
  showConfig(config);
  connectButtons({
    isListening: () => Boolean(microphone),
    isHandsFree: () => fields.hands_free.checked,
    listen: () => inTurn(listen),
    endTurn,
    sendFile,
    sendText,
    stop,
    clear,
    save: () => download(config.model, sessionSettings(), messages),
    update: async () => session && microphone && ready(), // hands-free, for the next reply
    redraw: () => messages.forEach((message) => message.draw()),
  });
  // A reload would lose the conversation.
  window.addEventListener("beforeunload", (event) => messages.length && event.preventDefault());
  document.body.dataset.ready = "";
}

guard(start);
