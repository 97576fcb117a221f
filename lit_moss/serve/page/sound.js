/** Sound as the page holds it: 24 kHz, one channel, 16 bits (pcm16), in and out of the audio thread. */

export const RATE = 24000;
const MOST_FILE_BYTES = 256 * 2 ** 20;

const START_MS = 3000; // for the sound card to start

let context = null;
let hasWorklets = null; // promise

/** Starts the page's one AudioContext. Call it in a click or a key: Safari starts none after an `await`. */
export function wakeSound() {
  context ??= new AudioContext({ latencyHint: "interactive" }); // its own rate: Firefox refuses microphones at another
  if (context.state !== "running") context.resume().catch(() => {});
  return context;
}

/** The page's one AudioContext, running, with the processors of worklets.js. */
export async function audioContext() {
  const audio = wakeSound();
  if (!audio.audioWorklet) throw new Error("Browsers allow live sound to pages on https and on localhost alone.");
  hasWorklets ??= audio.audioWorklet.addModule(new URL("worklets.js", import.meta.url));
  await hasWorklets.catch((error) => {
    hasWorklets = null; // the server may be there again the next time
    throw error;
  });
  // Without a sound card `resume` never ends in Firefox.
  if (audio.state !== "running") await Promise.race([audio.resume(), new Promise((resolve) => setTimeout(resolve, START_MS))]);
  if (audio.state !== "running") throw new Error("The browser has not started its sound: click once more. Is there a loudspeaker?");
  return audio;
}

/** Plays replies as they come; `on(message)` gets the player's messages, see worklets.js. */
export class SoundOut {
  constructor(audio, on) {
    this.audio = audio;
    this.node = new AudioWorkletNode(audio, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.connect(audio.destination);
    this.node.port.onmessage = ({ data }) => {
      if (data.type === "flushed") this.flushed(data);
      on(data);
    };
    this.flushes = 0;
    this.waiting = new Map(); // number of a flush -> what fulfils it
  }

  start(reply) {
    this.node.port.postMessage({ type: "start", reply });
  }

  push(pcm) {
    const samples = Float32Array.from(pcm, (value) => value / 32768);
    this.node.port.postMessage({ type: "push", samples }, [samples.buffer]);
  }

  end() {
    this.node.port.postMessage({ type: "end" });
  }

  /** Falls silent; how many samples of the reply were heard. */
  async flush() {
    const number = ++this.flushes;
    const played = await new Promise((resolve) => {
      this.waiting.set(number, resolve);
      this.node.port.postMessage({ type: "flush", number });
    });
    return Math.max(0, played - Math.round((this.audio.outputLatency || 0) * RATE));
  }

  /** One message may answer several flushes, the latest of which is `flush`. */
  flushed({ samples, flush }) {
    for (const [number, resolve] of this.waiting) {
      if (number > flush) continue;
      this.waiting.delete(number);
      resolve(samples);
    }
  }

  /** When a moment of the context is heard, as performance.now(). */
  heardAt(contextTime) {
    const ago = this.audio.currentTime - contextTime;
    return performance.now() + 1000 * ((this.audio.outputLatency || 0) - ago);
  }
}

/** The microphone; `on(pcm)` gets 40 ms at a time. */
export class Microphone {
  static async open(audio, on) {
    if (!navigator.mediaDevices) throw new Error("Browsers lend the microphone only to https and to localhost.");
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      const reasons = { NotAllowedError: "it is not allowed for this page", NotFoundError: "there is none" };
      throw new Error(`The microphone cannot be used: ${reasons[error.name] ?? error.message}.`);
    }
    try {
      return new Microphone(audio, stream, on);
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw new Error(`The microphone cannot be used: ${error.message}`); // Firefox: of another rate than the sound card
    }
  }

  constructor(audio, stream, on) {
    this.stream = stream;
    this.source = audio.createMediaStreamSource(stream);
    this.node = new AudioWorkletNode(audio, "microphone", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => (data.type === "pcm" ? on(data.pcm) : this.ended?.());
    this.source.connect(this.node);
    this.node.port.postMessage({ type: "record" });
  }

  /** Hands out the last samples and gives the microphone back. */
  async close() {
    await new Promise((resolve) => {
      this.ended = resolve;
      this.node.port.postMessage({ type: "end" });
    });
    this.source.disconnect();
    this.stream.getTracks().forEach((track) => track.stop());
  }
}

/** A sound file of any kind that the browser decodes -> pcm16. */
export async function readFile(file, mostSeconds) {
  if (file.size > MOST_FILE_BYTES) {
    throw new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB: expected a shorter sound.`);
  }
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} cannot be read as sound: expected a WAV, FLAC, MP3, Ogg or M4A file.`);
  }
  if (sound.duration > mostSeconds) {
    throw new Error(`${file.name} is ${sound.duration.toFixed(0)} s long, expected at most ${mostSeconds} s.`);
  }
  // The first channel alone, as everywhere in lit_moss.
  return Int16Array.from(sound.getChannelData(0), (value) =>
    Math.max(-32768, Math.min(32767, Math.round(32768 * value))),
  );
}

/** Chunks of pcm16 joined. */
export function joined(chunks) {
  const whole = new Int16Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let place = 0;
  for (const chunk of chunks) {
    whole.set(chunk, place);
    place += chunk.length;
  }
  return whole;
}

/** Bytes of a WAV file. */
export function wavOf(pcm) {
  const bytes = new Uint8Array(44 + 2 * pcm.length);
  const view = new DataView(bytes.buffer);
  const words = (place, text) => [...text].forEach((letter, n) => view.setUint8(place + n, letter.charCodeAt(0)));
  words(0, "RIFF");
  view.setUint32(4, 36 + 2 * pcm.length, true);
  words(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  words(36, "data");
  view.setUint32(40, 2 * pcm.length, true);
  pcm.forEach((value, n) => view.setInt16(44 + 2 * n, value, true));
  return bytes;
}

/** pcm16 -> base64, little-endian as every machine with a browser is. */
export function base64Of(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  let text = "";
  for (let n = 0; n < bytes.length; n += 8192) text += String.fromCharCode(...bytes.subarray(n, n + 8192));
  return btoa(text);
}

/** base64 -> pcm16. */
export function pcmOf(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}
