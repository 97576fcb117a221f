/**
 * The page: what the user does -> events of the session, events of the session -> messages and sound.
 *
 * The session begins with the first message and is one conversation of the server, which keeps codes; the page
 * keeps the sound that was sent and heard, for playback and download.
 */

import { connectButtons, openSettings } from "./buttons.js";
import { download } from "./download.js";
import { Message, live, pausePlayback } from "./message.js";
import { Realtime, endOf } from "./realtime.js";
import { Heard } from "./heard.js";
import { beginConversation, inTurn } from "./queue.js";
import { checkSettings, fields, sessionSettings, showConfig } from "./settings.js";
import { Microphone, RATE, SoundOut, audioContext, base64Of, pcmOf, readFile } from "./sound.js";
import { addDivider, addToHistory, fail, following, guard, say, swap, write } from "./view.js";

const APPEND = RATE; // most samples of one append: 1 s
const LEAST_SAMPLES = RATE / 10; // of a turn

const $ = (id) => document.getElementById(id);

let config;
let session = null; // Realtime
let spoke = false; // whether the session has spoken
let out = null; // SoundOut
let microphone = null;
let isHandsFree = false; // whether the microphone is open until it is closed, and the server finds the turns
let turn = null; // Message of the user whose sound is coming
let reply = null; // the latest one
let asked = 0; // replies so far, in all conversations
let written = 0; // turns in text, too
let replies = new Map(); // by id of the response
let messages = [];
let heard = null; // Heard: what was appended in this session
let speechStartMs = 0; // of the turn that is being spoken, hands-free
let found = null; // the latest one: its item, and when the last of it was recorded

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
    spoke = false;
    heard = new Heard(config.limits.max_turn_sec + 5);
    if (messages.length) addDivider("A new session: the model does not know what is above.");
  }
  const settings = sessionSettings(isHandsFree);
  if (spoke) delete settings.audio.output.voice; // fixed by now; `askFor` gives it
  const open = session;
  await open.update(settings);
  return open;
}

function ended(words) {
  session = null;
  for (const its of unfinished()) finishReply(its, { status: "failed", status_details: { error: { message: words } } });
  microphone?.close();
  microphone = turn = null;
  isHandsFree = false;
  fail(endOf(words));
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
      turnFound(event);
      break;
    case "input_audio_buffer.committed":
      if (event.item_id === found?.item_id) beginReply(found.time); // when the last of it was recorded
      break;
    case "error":
      refused(event.error);
  }
}

function refused(error) {
  if (error.code === "response_cancel_not_active") return; // a stop that came just after the end
  fail(new Error(error.message));
  if (error.event_id && error.event_id === reply?.askedBy) finishReply(reply, { status: "failed", status_details: { error } });
}

// --- replies -----------------------------------------------------------------------------------------------------

/** A reply is awaited; its first sound counts from `since`, the end of what the user said. */
function beginReply(since = performance.now()) {
  pausePlayback();
  const message = new Message("assistant", config.codebook);
  message.state = "running";
  add(message);
  reply = { message, since, isRunning: true, isPlaying: false, isStopped: false, number: ++asked };
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

/** Replies whose end has not come. */
function unfinished() {
  return [...new Set([reply, ...replies.values()])].filter((its) => its?.isRunning);
}

function hear(its, pcm) {
  its.message.addSound(pcm);
  spoke = true;
  if (!out || its.whenSilenced) return;
  if (!its.isPlaying) pausePlayback();
  its.isPlaying = true;
  out.push(pcm);
}

/** A message is played instead of the live sound, all of which stays in the conversation. */
live.silence = () => {
  const its = reply;
  if (!its?.isPlaying || its.isStopped) return;
  its.isPlaying = false;
  its.whenSilenced = out.flush();
  its.message.move(0);
  show();
};

function finishReply(its, response) {
  const { message } = its;
  its.isRunning = false;
  if (its === reply && !its.isStopped) out?.end();
  message.state = message.facts.status = response.status;
  message.facts.seconds = (performance.now() - its.since) / 1000;
  if (response.status === "failed") {
    message.facts.error = response.status_details?.error?.message ?? "The reply failed.";
  }
  message.finish(`reply_${messages.indexOf(message) + 1}.wav`);
  message.showFacts();
  if (!out && message.samples && !its.isStopped) message.toggle().catch(() => {}); // without a click none may play
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
  if (type === "played" && reply.isPlaying) message.move(samples);
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
  const [stopped, open] = [reply, session];
  if (!stopped || stopped.isStopped || !(stopped.isRunning || stopped.isPlaying)) return;
  stopped.isStopped = true;
  if (asks && stopped.isRunning) open?.send({ type: "response.cancel" });
  const heard = await (stopped.whenSilenced ?? (stopped.isPlaying ? out.flush() : 0));
  stopped.isPlaying = false;
  await stopped.whenDone;
  const { message } = stopped;
  if (message.samples > heard && stopped.itemId) {
    const audio_end_ms = Math.floor((1000 * heard) / RATE);
    open?.send({ type: "conversation.item.truncate", item_id: stopped.itemId, content_index: 0, audio_end_ms });
    message.facts.heardSeconds = heard / RATE;
    message.showFacts();
  }
  message.move(0);
  show();
}

// --- turns of the user -------------------------------------------------------------------------------------------

/** Sends a turn by `send(session)`, which is fulfilled once the server has taken it, and asks for the reply. */
function ask(message, send) {
  return inTurn(async (check) => {
    await stop();
    check();
    if (fields.reply.value === "speech") await openPlayer();
    const open = await ready();
    check();
    add(message);
    const since = performance.now();
    try {
      await send(open);
    } catch (error) {
      takeOut(message);
      throw error;
    }
    check();
    askFor(open, since);
  });
}

async function sendText() {
  const text = $("text").value.trim();
  if (!text) return;
  write("");
  const message = new Message("user", config.codebook);
  message.addText(text);
  const item = { id: `text_${++written}`, type: "message", role: "user", content: [{ type: "input_text", text }] };
  try {
    await ask(message, (open) => open.request({ type: "conversation.item.create", item }, "conversation.item.done"));
  } catch (error) {
    write([text, $("text").value].filter(Boolean).join("\n")); // to be sent again, before what was typed since
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
    return commit(open);
  });
}

/** Ends the turn whose sound was appended. */
function commit(open) {
  return open.request({ type: "input_audio_buffer.commit" }, "input_audio_buffer.committed");
}

function append(open, pcm) {
  if (open !== session) return; // the microphone's last sound comes when it is closed
  open.send({ type: "input_audio_buffer.append", audio: base64Of(pcm) });
  heard.add(pcm);
}

/** Begins to listen: to one turn, or hands-free until it is ended. */
async function listen(check) {
  const audio = await openSound();
  pausePlayback();
  await stop();
  check();
  isHandsFree = fields.hands_free.checked;
  const open = await ready();
  check();
  const speaking = isHandsFree ? null : new Message("user", config.codebook);
  const opened = await Microphone.open(audio, (pcm) => {
    const level = Math.sqrt(pcm.reduce((sum, value) => sum + value * value, 0) / pcm.length) / 8000;
    $("mic").style.setProperty("--level", Math.min(1, level));
    append(open, pcm);
    if (speaking) hearUser(speaking, pcm);
  }).catch((error) => {
    isHandsFree = false;
    throw error;
  });
  if (open !== session) return opened.close(); // the session has ended meanwhile
  microphone = opened;
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

function endTurn() {
  const [closing, message, wasHandsFree] = [microphone, turn, isHandsFree];
  microphone = turn = null;
  if (!closing) return;
  isHandsFree = false;
  say("");
  show();
  const since = performance.now();
  const closed = closing.close();
  return inTurn(async (check) => {
    await closed;
    const open = wasHandsFree ? await ready() : session; // the server listens to no more turns
    check();
    if (wasHandsFree || message.samples < LEAST_SAMPLES) open?.send({ type: "input_audio_buffer.clear" });
    if (wasHandsFree || !open) return;
    if (message.samples < LEAST_SAMPLES) {
      takeOut(message);
      throw new Error("That was shorter than 0.1 s: hold the button while you speak, or click it to begin and to end.");
    }
    message.finish(`turn_${messages.indexOf(message) + 1}.wav`);
    await stop();
    check();
    try {
      await commit(open);
    } catch (error) {
      message.state = "failed"; // it stays: what was said can still be heard and saved
      message.facts.error = error.message;
      message.showFacts();
      throw error;
    }
    askFor(open, since);
  });
}

/** A turn that the server found, hands-free. */
function turnFound({ item_id, audio_end_ms }) {
  say("");
  const { pcm, time } = heard.between(speechStartMs, audio_end_ms);
  if (!pcm.length) return;
  const message = new Message("user", config.codebook);
  message.addSound(pcm);
  message.finish(`turn_${messages.length + 1}.wav`);
  add(message);
  found = { item_id, time };
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
  message.draw(); // sound that it has already: before, it had no width
  show();
}

/** Takes out a turn that the server did not take. */
function takeOut(message) {
  messages = messages.filter((one) => one !== message);
  message.remove();
  show();
}

async function clear() {
  beginConversation();
  session?.close();
  session = null;
  out?.flush();
  const closing = microphone;
  for (const its of unfinished()) {
    its.isRunning = false;
    its.isStopped = true;
    its.done(); // what waits for its end would wait for good
  }
  microphone = turn = reply = found = null;
  isHandsFree = false;
  messages.forEach((message) => message.remove());
  messages = [];
  replies = new Map();
  $("history").replaceChildren();
  say("");
  fail(null);
  show();
  await closing?.close();
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
  addEventListener("beforeunload", (event) => messages.length && event.preventDefault()); // a reload would lose them
  document.body.dataset.ready = "";
}

guard(start);
