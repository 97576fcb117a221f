/** The conversation as a zip file: conversation.json and a WAV file for each turn that has sound. */

import { wavOf } from "./sound.js";
import { zipOf } from "./zip.js";

export function download(model, settings, messages) {
  const files = {};
  const turns = messages.map(({ role, text, pcm, codes, facts }, n) => {
    const name = `${String(n + 1).padStart(2, "0")}_${role}.wav`;
    if (pcm) files[name] = wavOf(pcm);
    return { role, text, audio: pcm ? name : null, codes, ...facts };
  });
  files["conversation.json"] = new TextEncoder().encode(JSON.stringify({ model, settings, turns }, null, 1));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(zipOf(files));
  link.download = `conversation_${new Date().toISOString().slice(0, 16).replace(/\D/g, "")}.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
