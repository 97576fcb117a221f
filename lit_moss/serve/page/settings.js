/** The form of settings <-> what the server offers and what a session is sent. */

import { RATE } from "./sound.js";

const form = document.getElementById("settings");

export const fields = form.elements;

export function checkSettings() {
  if (!form.reportValidity()) throw new Error("One of the settings is out of its range.");
}

/** Content of `session.update`; `handsFree` if the server is to find the turns. */
export function sessionSettings(handsFree = false) {
  const number = (name) => Number(fields[name].value);
  const turns = handsFree ? { type: "server_vad", create_response: true, interrupt_response: true } : null;
  const format = { type: "audio/pcm", rate: RATE };
  return {
    type: "realtime",
    instructions: fields.instructions.value.trim(),
    output_modalities: [fields.reply.value === "text" ? "text" : "audio"],
    max_output_tokens: number("max_tokens"),
    audio: { input: { format, turn_detection: turns }, output: { format, voice: fields.voice.value } },
    lit_moss: {
      codes: true,
      temperature: number("temperature"),
      top_k: number("top_k"),
      top_p: number("top_p"),
      repetition_penalty: fields.repetition_penalty.value === "" ? null : number("repetition_penalty"),
      seed: fields.seed.value === "" ? null : number("seed"),
      reply_form: fields.reply_form.value,
    },
  };
}

/** Fills the form by the server's `config.json`, and takes away what its model cannot do. */
export function showConfig(config) {
  document.title = `${config.model} · lit_moss`;
  document.getElementById("model").textContent = config.model;
  fields.voice.replaceChildren(...config.voices.map((name) => new Option(name)));
  for (const [name, value] of Object.entries(config.settings)) fields[name].value = value;
  fields.max_tokens.max = config.limits.max_new_tokens;
  fields.key.parentElement.hidden = !config.needs_key;
  fields.reply.value = config.can_speak ? "speech" : "text";
  document.getElementById("welcome").textContent = welcome(config);
  const speech = document.querySelector("[name=reply][value=speech]");
  speech.disabled = fields.reply_form.disabled = !config.can_speak;
  if (!config.can_speak) speech.parentElement.title = "The server has no decoder: start it with --codec";
  const ears = ["mic", "file", "file-label"].map((id) => document.getElementById(id));
  ears[0].disabled = ears[1].disabled = !config.can_listen;
  ears[2].classList.toggle("off", !config.can_listen);
  if (!config.can_listen) ears.forEach((ear) => (ear.title = "The server cannot listen: start it with --codec"));
}

/** How to begin. */
function welcome({ can_listen, can_speak }) {
  const ask = can_listen ? "Hold the microphone button and speak, choose a sound file, or type." : "Type a message.";
  const reply = can_speak ? "Replies come in speech or in text." : "Replies come in text: the server has no decoder (--codec).";
  return `${ask} ${reply}`;
}
